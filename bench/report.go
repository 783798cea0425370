package main

import (
	"fmt"
	"io"
	"math"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// columns of the table.
var columns = []contestant{ours, cancellable, bare, tuned, fork, redisGrove, hand}

// result is a row: the median of each column, 0 where it was not measured.
type result struct {
	work  work
	times []time.Duration
}

// works are the rows of the table.
func works(p plan) []work {
	var all []work
	delays, counts := []time.Duration{0, addedRoundTrip}, []int{1, 3}
	if p.quick {
		delays, counts = delays[:1], counts[:1]
	}
	for _, delay := range delays {
		for _, servers := range counts {
			for _, o := range []op{opGet, opSet} {
				for _, goroutines := range []int{1, 8, 64, 256} {
					all = append(all, work{op: o, goroutines: goroutines, servers: servers, delay: delay})
				}
			}
			for _, o := range []op{opMGet, opMSet, opDelete, opExists} {
				for _, keys := range batchSizes {
					all = append(all, work{op: o, keys: keys, goroutines: 1, servers: servers, delay: delay})
				}
			}
		}
	}
	return all
}

var batchSizes = []int{1, 10, 100, 1_000, 10_000}

func (s *servers) writeFigures(w io.Writer, p plan) (failed int, err error) {
	fmt.Fprintf(w, `# Benchmarks

Made by "make bench" with %s on %s/%s, %d cores, %s.
All servers and clients were on that one machine, on the loopback interface.

## Figures

Ratios of times: medians of rounds in which both sides were measured one right
after the other. *tuned* and *by hand* are explained below the second table.

`, runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), strings.Join(s.versions, ", "))
	return s.checkFigures(w, p)
}

func (s *servers) writeTable(w io.Writer, p plan) ([]result, error) {
	fmt.Fprintf(w, `
## Times

Microseconds per call; in brackets how many times as long as memcacheddriver it
takes. With several goroutines it is the time from one call's end to the next
one's, of whichever goroutine. Values have 100 bytes, and every key is there.

`)
	header := []string{"Work", "Servers", "RTT"}
	for _, c := range columns {
		header = append(header, c.name)
	}
	fmt.Fprintf(w, "| %s |\n| --- | ---: | ---:%s |\n", strings.Join(header, " | "), strings.Repeat(" | ---:", len(columns)))
	var results []result
	for _, work := range works(p) {
		r, err := s.measure(work, p)
		if err != nil {
			return nil, err
		}
		results = append(results, r)
		cells := []string{work.title(), strconv.Itoa(work.servers), rtt(work.delay)}
		for i := range columns {
			cells = append(cells, r.cell(i))
		}
		fmt.Fprintf(w, "| %s |\n", strings.Join(cells, " | "))
	}
	fmt.Fprintf(w, `
- *tuned*: %d idle connections; where it has no batch, %d goroutines share the
  keys. *gomemcache* as it comes keeps 2 idle connections, and sets and deletes
  in a loop. For Exists, both count what GetMulti returns.
- memcached has one thread (-t 1), like Redis, so that all clients meet the same
  one; all else of both servers is as they come, but that Redis saves nothing.
- memcacheddriver and redisdriver keep %d idle connections, too.
- *redisdriver*: Grove's driver for Redis, v1.5.1, on one Redis server.
- *by hand*: requests built beforehand, written at once, replies read and not
  parsed, a socket for each server and goroutine: the floor.
- *RTT*: what was added to the round trip, by TCP proxies in a process of their
  own that hold every request back for %v; their own work comes on top.
- Clients took turns, %d rounds of %v each (with several goroutines %d of %v), at
  least one call a round; a time is the median of its rounds. A client that is
  slow had fewer: no more began after %v.
`, maxConns, setters, maxConns, addedRoundTrip, p.rounds, round, max(p.rounds/manyTimes, 3), manyRound, p.budget)
	return results, nil
}

// measure makes a row.
func (s *servers) measure(w work, p plan) (result, error) {
	res := result{work: w, times: make([]time.Duration, len(columns))}
	runners := make([]*runner, len(columns))
	defer func() {
		for _, r := range runners {
			if r != nil {
				r.close()
			}
		}
	}()
	for i, c := range columns {
		switch {
		case c.redis && w.servers > 1:
			continue // spread over several, it would be another product: Redis Cluster
		case c.name == cancellable.name && w.batch():
			continue // once per call, not per key
		}
		r, err := s.ready(c, w)
		if err != nil {
			return res, fmt.Errorf("%s, %s: %w", w.title(), c.name, err)
		}
		runners[i] = r
	}
	rounds, d := w.of(p.rounds)
	times, err := compare(runners, rounds, d, p.budget)
	if err != nil {
		return res, fmt.Errorf("%s: %w", w.title(), err)
	}
	for i, t := range times {
		if len(t) > 0 {
			res.times[i] = median(t)
		}
	}
	return res, nil
}

func (r result) cell(i int) string {
	t := r.times[i]
	switch {
	case t == 0:
		return ""
	case columns[i].name == ours.name:
		return "**" + micros(t) + "**"
	}
	return fmt.Sprintf("%s (%s)", micros(t), significant(float64(t)/float64(r.times[0])))
}

func rtt(d time.Duration) string {
	if d == 0 {
		return "0"
	}
	return "+" + d.String()
}

func micros(d time.Duration) string {
	us := float64(d) / 1e3
	if us < 100 {
		return significant(us)
	}
	return thousands(int(math.Round(us)))
}

// significant prints a number with at least two digits that matter.
func significant(f float64) string {
	switch {
	case f >= 1000:
		return thousands(int(math.Round(f)))
	case f >= 10:
		return fmt.Sprintf("%.0f", f)
	case f >= 1:
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.2f", f)
}

func thousands(n int) string {
	if n < 1000 {
		return strconv.Itoa(n)
	}
	return thousands(n/1000) + fmt.Sprintf(",%03d", n%1000)
}
