package main

import (
	"fmt"
	"image/color"
	"os"
	"strings"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// colors of the columns, told apart also by those who do not see all of them
// (Okabe and Ito's).
var colors = []color.Color{
	color.RGBA{R: 0xd5, G: 0x5e, A: 0xff},
	color.RGBA{A: 0xff},
	color.RGBA{R: 0x56, G: 0xb4, B: 0xe9, A: 0xff},
	color.RGBA{G: 0x72, B: 0xb2, A: 0xff},
	color.RGBA{R: 0xcc, G: 0x79, B: 0xa7, A: 0xff},
	color.RGBA{G: 0x9e, B: 0x73, A: 0xff},
	color.RGBA{R: 0x80, G: 0x80, B: 0x80, A: 0xff},
}

// plotBatches draws time against batch size, on one server without added round
// trip, a picture for each call.
func plotBatches(results []result, path string) error {
	calls := [][]op{{opMGet, opMSet}, {opDelete, opExists}}
	var plots [][]*plot.Plot
	for _, row := range calls {
		var line []*plot.Plot
		for _, o := range row {
			p, err := plotBatch(results, o)
			if err != nil {
				return err
			}
			line = append(line, p)
		}
		plots = append(plots, line)
	}
	plots[0][0].Legend.Top = true
	plots[0][0].Legend.Left = true

	svg := vgsvg.New(9*vg.Inch, 7*vg.Inch)
	dc := draw.New(svg)
	dc.SetColor(color.White)
	dc.Fill(dc.Rectangle.Path())
	tiles := draw.Tiles{Rows: len(plots), Cols: len(plots[0]), PadX: 12, PadY: 12, PadTop: 8, PadBottom: 4, PadLeft: 4, PadRight: 12}
	for i, row := range plot.Align(plots, tiles, dc) {
		for j, canvas := range row {
			plots[i][j].Draw(canvas)
		}
	}
	var b strings.Builder
	if _, err := svg.WriteTo(&b); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(b.String()), 0o644)
}

func plotBatch(results []result, o op) (*plot.Plot, error) {
	p := plot.New()
	p.Title.Text = string(o)
	p.X.Label.Text = "keys in one call"
	p.Y.Label.Text = "time of the call"
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Scale = plot.LogScale{}
	}
	p.X.Tick.Marker = decades{func(v float64) string { return thousands(int(v)) }}
	p.Y.Tick.Marker = decades{func(v float64) string { return (time.Duration(v) * time.Microsecond).String() }}
	p.Y.Min, p.Y.Max = 10, 1e6
	p.Add(plotter.NewGrid())
	for i, c := range columns {
		var points plotter.XYs
		for _, r := range results {
			if r.work.op == o && r.work.servers == 1 && r.work.delay == 0 && r.times[i] > 0 {
				points = append(points, plotter.XY{X: float64(r.work.keys), Y: float64(r.times[i]) / 1e3})
			}
		}
		if len(points) == 0 {
			continue
		}
		line, marks, err := plotter.NewLinePoints(points)
		if err != nil {
			return nil, err
		}
		line.Color, marks.Color = colors[i], colors[i]
		line.Width = vg.Points(1)
		if c.name == ours.name {
			line.Width = vg.Points(2.5)
		}
		if c.name == hand.name {
			line.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
		}
		marks.Shape = draw.CircleGlyph{}
		marks.Radius = vg.Points(2)
		p.Add(line, marks)
		if o == opMGet {
			p.Legend.Add(c.name, line, marks)
		}
	}
	return p, nil
}

// decades marks the powers of ten.
type decades struct{ label func(float64) string }

func (d decades) Ticks(low, high float64) []plot.Tick {
	var ticks []plot.Tick
	for v := 1.0; v <= high; v *= 10 {
		if v >= low {
			ticks = append(ticks, plot.Tick{Value: v, Label: d.label(v)})
		}
	}
	if len(ticks) == 0 {
		panic(fmt.Sprintf("no power of ten in %v to %v", low, high))
	}
	return ticks
}
