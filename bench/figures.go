package main

import (
	"fmt"
	"strconv"
	"testing"
)

// figure is a promise and what was measured of it.
type figure struct {
	work, of, against string
	measured          string
	value, bound      float64
}

// held is false as well if nothing could be measured.
func (f figure) held() bool { return f.value <= f.bound }

// allocationBounds are for one call.
var allocationBounds = []struct {
	work  work
	bound float64
}{
	{work{opGet, 0, 1, near}, 4},
	{work{opSet, 0, 1, near}, 3},
	{work{opMSet, 100, 1, near}, 40},
	{work{opMGet, 100, 1, near}, 140},
}

// figures compares the results with what was promised.
func (r *results) figures() []figure {
	var all []figure
	for _, f := range ratioFigures() {
		measured := r.works[f.work].ratio(f.ours, f.against, f.metric)
		title := f.work.title()
		if f.ours.name == cancellable.name {
			title += ", cancellable context"
		}
		all = append(all, figure{title, f.of, f.against.name, ratioText(measured), measured.median, f.bound})
	}
	count := func(work, of string, bound int, number func(tally) int, from map[string]tally) {
		us, them := number(from[ours.name]), number(from[gomemcache.name])
		against := fmt.Sprintf("%s: %s", gomemcache.name, thousands(them))
		all = append(all, figure{work, of, against, thousands(us), float64(us), float64(bound)})
	}
	errors := func(t tally) int { return t.timeouts + t.refused + t.failed }
	failed := func(t tally) int { return t.failed }
	wrong := func(t tally) int { return t.wrong }
	count(warm.title, "sockets at a time", 10, func(t tally) int { return t.sockets }, r.storms[warm.title])
	count(cold.title, "errors", 0, errors, r.storms[cold.title])
	count(cold.title, "connections made", 64, func(t tally) int { return t.made }, r.storms[cold.title])
	count(paused.title, "errors other than timeouts and ErrServerDown", 0, failed, r.storms[paused.title])
	count(paused.title, "wrong values", 0, wrong, r.storms[paused.title])
	for _, a := range allocationBounds {
		n := r.allocations[a.work]
		all = append(all, figure{a.work.title(), "allocations", "", strconv.Itoa(int(n)), n, a.bound})
	}
	return all
}

// allocated is how many allocations a call of ours makes.
func (s *servers) allocated(w work) (float64, error) {
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
