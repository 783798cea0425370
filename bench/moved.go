package main

import (
	"fmt"
	"hash/crc32"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/ketama"
)

// The ways to spread keys that drawMoved compares.
const (
	byModulo = "modulo"
	byKetama = "ketama"
	fair     = "a fair share, 1/(n+1)"
)

const (
	mostServers = 20     // that another one joins
	movedKeys   = 20_000 // as in internal/ketama's TestKeysThatMove
)

// drawMoved draws which share of the keys belongs to another server once a server is
// added to so many.
func drawMoved(dir string) error {
	p := newPlot("keys that move when a server is added", "servers before", percent)
	p.X.Tick.Marker = steps(1, count)
	p.Y.Scale, p.Y.Tick.Marker = plot.LinearScale{}, steps(20, percent)
	p.Y.Min, p.Y.Max = 0, 100
	p.Legend.YOffs = -vg.Inch // between the lines
	points := make(map[string]plotter.XYs)
	for n := 1; n <= mostServers; n++ {
		for name, share := range movedShares(n) {
			points[name] = append(points[name], plotter.XY{X: float64(n), Y: 100 * share})
		}
	}
	for _, name := range []string{byModulo, byKetama, fair} {
		addLine(p, name, points[name])
	}
	return save([][]*plot.Plot{{p}}, filepath.Join(dir, "moved.svg"))
}

// movedShares returns the share of keys that move when one server joins n.
func movedShares(n int) map[string]float64 {
	var servers []ketama.Server
	for i := range n + 1 {
		servers = append(servers, ketama.Server{Host: fmt.Sprintf("cache%d", i+1), Port: 11211})
	}
	before, after := ketama.New(servers[:n]), ketama.New(servers)
	modulo, consistent := 0, 0
	for i := range movedKeys {
		key := fmt.Sprintf("user:%d:profile", i)
		if sum := crc32.ChecksumIEEE([]byte(key)); sum%uint32(n) != sum%uint32(n+1) {
			modulo++
		}
		if before.Pick(key) != after.Pick(key) {
			consistent++
		}
	}
	return map[string]float64{
		byModulo: float64(modulo) / movedKeys,
		byKetama: float64(consistent) / movedKeys,
		fair:     1 / float64(n+1),
	}
}

func percent(v float64) string { return fmt.Sprintf("%.0f %%", v) }
