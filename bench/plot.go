package main

import (
	"bytes"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Colors that those too tell apart who do not see all of them (Okabe and Ito's).
var (
	vermillion = color.RGBA{R: 0xd5, G: 0x5e, A: 0xff}
	blue       = color.RGBA{G: 0x72, B: 0xb2, A: 0xff}
	purple     = color.RGBA{R: 0xcc, G: 0x79, B: 0xa7, A: 0xff}
	green      = color.RGBA{G: 0x9e, B: 0x73, A: 0xff}
	grey       = color.RGBA{R: 0x80, G: 0x80, B: 0x80, A: 0xff}
)

// styles of the lines, by name.
var styles = map[string]struct {
	color  color.Color
	width  float64
	dashed bool
}{
	ours.name:       {vermillion, 2.5, false},
	loop.name:       {color.Black, 1, false},
	gomemcache.name: {blue, 1, false},
	fork.name:       {purple, 1, false},
	redis.name:      {green, 1, false},
	hand.name:       {grey, 1, true},
	byKetama:        {vermillion, 2.5, false},
	byModulo:        {blue, 1, false},
	fair:            {grey, 1, true},
}

// draw makes the pictures.
func (r *results) draw(p plan, dir string) error {
	times := r.againstCallers("Get: time from one call's end to the next one's", perCall)
	times.Y.Scale, times.Y.Tick.Marker, times.Y.Min = plot.LinearScale{}, steps(10, duration), 0
	times.Legend.Left = false // above the lines
	pictures := map[string][][]*plot.Plot{
		"callers.svg": {{times, r.againstCallers("Get: 99th percentile of what a call takes", p99)}},
		"batch.svg": {
			{r.againstKeys(opMSet), r.againstKeys(opMGet)},
			{r.againstKeys(opDelete), r.againstKeys(opExists)},
		},
		"frozen.svg": {{
			r.whileFrozen(p.freeze, "calls answered in each second", count, 10, 1e6, func(t tally) float64 { return float64(t.answered) }),
			r.whileFrozen(p.freeze, "slowest call of each second", duration, 1e3, 1e7, func(t tally) float64 { return float64(t.slowest) / 1e3 }),
		}},
	}
	for name, plots := range pictures {
		if err := save(plots, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// againstCallers draws a metric of Get against the number of callers.
func (r *results) againstCallers(title string, value metric) *plot.Plot {
	p := newPlot(title, "callers", duration)
	p.X.Scale = plot.LogScale{}
	p.X.Tick.Marker = powers(4, count)
	for _, c := range []contestant{ours, gomemcache, redis} {
		var points plotter.XYs
		for _, callers := range curve {
			m := r.works[work{opGet, 0, callers, near}]
			points = append(points, plotter.XY{X: float64(callers), Y: m.of(c, value).median})
		}
		addLine(p, c.name, points)
	}
	return p
}

// againstKeys draws the time of a batch against the number of its keys.
func (r *results) againstKeys(o op) *plot.Plot {
	p := newPlot(string(o), "keys in one call", duration)
	p.X.Scale = plot.LogScale{}
	p.X.Tick.Marker = powers(10, count)
	p.Y.Min, p.Y.Max = 10, 1e6
	p.Legend.Left = true
	for _, c := range []contestant{ours, loop, gomemcache, fork, redis, hand} {
		var points plotter.XYs
		for _, keys := range batchSizes {
			m := r.works[work{o, keys, 1, near}]
			points = append(points, plotter.XY{X: float64(keys), Y: m.of(c, perCall).median})
		}
		addLine(p, c.name, points)
	}
	return p
}

// whileFrozen draws what there is of a tally in each second, between low and high.
func (r *results) whileFrozen(f freeze, title string, label func(float64) string, low, high float64, value func(tally) float64) *plot.Plot {
	p := newPlot(title, "seconds", label)
	p.X.Tick.Marker = steps(2, count)
	p.X.Min, p.X.Max = 0, float64(f.before+f.frozen+f.after)
	p.Y.Min, p.Y.Max = low, high
	from, to := float64(f.before), float64(f.before+f.frozen)
	band, err := plotter.NewPolygon(plotter.XYs{{X: from, Y: low}, {X: to, Y: low}, {X: to, Y: high}, {X: from, Y: high}})
	if err != nil {
		panic(err) // of four points
	}
	band.Color, band.LineStyle.Width = color.Gray{Y: 0xe4}, 0
	p.Add(band)
	p.Legend.Add("frozen", band)
	for _, c := range stormClients {
		var points plotter.XYs
		for i, t := range r.frozen[c.name] {
			points = append(points, plotter.XY{X: float64(i) + 0.5, Y: max(value(t), low)})
		}
		addLine(p, c.name, points)
	}
	return p
}

func newPlot(title, x string, label func(float64) string) *plot.Plot {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	p := plot.New()
	p.Title.Text = title
	p.X.Label.Text = x
	p.Y.Scale = plot.LogScale{}
	p.Y.Tick.Marker = powers(10, label)
	p.Legend.Top = true
	p.Add(plotter.NewGrid())
	return p
}

// addLine draws what there is of points.
func addLine(p *plot.Plot, name string, points plotter.XYs) {
	points = slices.DeleteFunc(points, func(point plotter.XY) bool { return math.IsNaN(point.Y) })
	if len(points) == 0 {
		return
	}
	line, marks, err := plotter.NewLinePoints(points)
	if err != nil {
		panic(err) // of numbers
	}
	style := styles[name]
	line.Color, marks.Color = style.color, style.color
	line.Width = vg.Points(style.width)
	if style.dashed {
		line.Dashes = []vg.Length{vg.Points(4), vg.Points(3)}
	}
	marks.Shape = draw.CircleGlyph{}
	marks.Radius = vg.Points(2)
	p.Add(line, marks)
	p.Legend.Add(name, line, marks)
}

// save writes plots as a picture, on white, so that it can be read on a dark page
// too. Only the first has a legend.
func save(plots [][]*plot.Plot, path string) error {
	svg := vgsvg.New(9*vg.Inch, vg.Length(len(plots))*3.5*vg.Inch)
	dc := draw.New(svg)
	dc.SetColor(color.White)
	dc.Fill(dc.Rectangle.Path())
	tiles := draw.Tiles{Rows: len(plots), Cols: len(plots[0]), PadX: 12, PadY: 12, PadTop: 8, PadBottom: 4, PadLeft: 4, PadRight: 12}
	for i, row := range plot.Align(plots, tiles, dc) {
		for j, canvas := range row {
			if i+j > 0 {
				plots[i][j].Legend = plot.NewLegend()
			}
			plots[i][j].Draw(canvas)
		}
	}
	var b bytes.Buffer
	if _, err := svg.WriteTo(&b); err != nil {
		return err
	}
	// Few machines have that font.
	picture := bytes.ReplaceAll(b.Bytes(), []byte("font-family:Liberation Sans"), []byte("font-family:Liberation Sans,Arial,sans-serif"))
	return os.WriteFile(path, picture, 0o644)
}

func count(v float64) string { return thousands(int(v)) }

// duration is that of microseconds.
func duration(v float64) string { return (time.Duration(v) * time.Microsecond).String() }

// powers marks the powers of a number.
func powers(of float64, label func(float64) string) plot.TickerFunc {
	return func(low, high float64) (ticks []plot.Tick) {
		for v := 1.0; v <= high; v *= of {
			if v >= low {
				ticks = append(ticks, plot.Tick{Value: v, Label: label(v)})
			}
		}
		return ticks
	}
}

// steps marks the multiples of a number.
func steps(of float64, label func(float64) string) plot.TickerFunc {
	return func(low, high float64) (ticks []plot.Tick) {
		for v := math.Ceil(low/of) * of; v <= high; v += of {
			ticks = append(ticks, plot.Tick{Value: v, Label: label(v)})
		}
		return ticks
	}
}
