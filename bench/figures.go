package main

import (
	"fmt"
	"io"
	"testing"
	"time"
)

// figure is a promise: the work takes at most bound times what the other takes.
// One without a bound is there to be compared with.
type figure struct {
	work    work
	ours    contestant
	against contestant
	bound   float64
}

func (f figure) title() string {
	if f.work.servers == 1 {
		return f.work.title()
	}
	return fmt.Sprintf("%s, %d servers", f.work.title(), f.work.servers)
}

// allocations is a promise for one call.
type allocations struct {
	work  work
	bound float64
}

var (
	one   = func(o op) work { return work{op: o, goroutines: 1, servers: 1} }
	many  = func(o op) work { return work{op: o, goroutines: 64, servers: 1} }
	batch = func(o op) work { return work{op: o, goroutines: 1, servers: 1, keys: 100} }

	onThree = func(w work) work { w.servers = 3; return w }
	onOne   = contestant{name: "itself, 1 server", servers: 1, open: ours.open}
	handOne = contestant{name: "itself, 1 server", servers: 1, open: hand.open}

	figures = []figure{
		{one(opGet), ours, tuned, 1.05},
		{one(opSet), ours, tuned, 1.05},
		{one(opGet), cancellable, tuned, 1.08},
		{one(opSet), cancellable, tuned, 1.08},
		{many(opGet), ours, tuned, 1.08},
		{many(opSet), ours, tuned, 1.08},
		{batch(opMSet), ours, bare, 0.06},
		{batch(opMSet), ours, hand, 1.25},
		{batch(opMGet), ours, hand, 1.25},
		{batch(opMGet), ours, tuned, 0.75},
		{batch(opMSet), ours, redisGrove, 1.0},
		{batch(opMGet), ours, redisGrove, 1.0},
		// Three servers on one machine are three exchanges for the same two cores.
		{onThree(batch(opMSet)), hand, handOne, 0},
		{onThree(batch(opMSet)), ours, onOne, 0},
		{onThree(batch(opMGet)), hand, handOne, 0},
		{onThree(batch(opMGet)), ours, onOne, 0},
	}

	allocationFigures = []allocations{
		{batch(opMSet), 40},
		{batch(opMGet), 140},
	}
)

// checkFigures measures all figures, writes them as a table and returns how many
// do not hold.
func (s *servers) checkFigures(w io.Writer, p plan) (failed int, err error) {
	fmt.Fprintln(w, "| Work | Of | µs | Against | µs | Ratio | At most | |")
	fmt.Fprintln(w, "| --- | --- | ---: | --- | ---: | ---: | ---: | --- |")
	verdict := func(ok bool) string {
		if ok {
			return "PASS"
		}
		failed++
		return "FAIL"
	}
	for _, f := range figures {
		times, ratio, err := s.ratio(f, p)
		if err != nil {
			return failed, fmt.Errorf("%s of %s against %s: %w", f.work.op, f.ours.name, f.against.name, err)
		}
		bound, held := "", ""
		if f.bound > 0 {
			bound, held = fmt.Sprintf("%.2f", f.bound), verdict(ratio <= f.bound)
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %.3f | %s | %s |\n", f.title(),
			f.ours.name, micros(times[0]), f.against.name, micros(times[1]), ratio, bound, held)
	}
	for _, a := range allocationFigures {
		n, err := s.allocations(a.work)
		if err != nil {
			return failed, err
		}
		fmt.Fprintf(w, "| %s | %s | | allocations | | %.0f | %.0f | %s |\n",
			a.work.title(), ours.name, n, a.bound, verdict(n <= a.bound))
	}
	return failed, nil
}

// reopenings is how often both sides of a figure connect anew: what the system
// makes of a connection, its port and who wakes on which core, is luck.
const reopenings = 4

// ratio is the median of the rounds' ratios: both sides of one are measured one
// right after the other, so that a slow moment of the machine is in both.
func (s *servers) ratio(f figure, p plan) (medians [2]time.Duration, ratio float64, err error) {
	var ratios []float64
	var times [2][]time.Duration
	for range reopenings {
		t, err := s.both(f, p.figureRounds/reopenings)
		if err != nil {
			return medians, 0, err
		}
		for i := range t[0] {
			ratios = append(ratios, float64(t[0][i])/float64(t[1][i]))
		}
		times[0] = append(times[0], t[0]...)
		times[1] = append(times[1], t[1]...)
	}
	return [2]time.Duration{median(times[0]), median(times[1])}, median(ratios), nil
}

// both measures both sides of a figure, side by side.
func (s *servers) both(f figure, rounds int) ([][]time.Duration, error) {
	var runners []*runner
	for _, c := range []contestant{f.ours, f.against} {
		r, err := s.ready(c, f.work)
		if err != nil {
			return nil, err
		}
		defer r.close()
		runners = append(runners, r)
	}
	rounds, d := f.work.of(rounds)
	return compare(runners, rounds, d, time.Hour)
}

func (s *servers) allocations(w work) (float64, error) {
	r, err := s.ready(ours, w)
	if err != nil {
		return 0, err
	}
	defer r.close()
	n := testing.AllocsPerRun(200, func() {
		if e := r.calls[0](); e != nil {
			err = e
		}
	})
	return n, err
}
