package main

import (
	"fmt"
	"slices"
)

// ratioFigure is a promise: in this work, ours has at most bound times what the
// other has.
type ratioFigure struct {
	work    work
	of      string
	metric  metric
	ours    contestant
	against contestant
	bound   float64
}

// ratioFigures are the promises that are ratios.
func ratioFigures() []ratioFigure {
	var all []ratioFigure
	add := func(w work, of string, m metric, a, b contestant, bound float64) {
		all = append(all, ratioFigure{w, of, m, a, b, bound})
	}
	for _, o := range []op{opGet, opSet} {
		add(work{o, 0, 1, near}, "time", perCall, ours, gomemcache, 1.03)
		add(work{o, 0, 1, near}, "time", perCall, cancellable, gomemcache, 1.05)
		add(work{o, 0, 8, near}, "time", perCall, ours, gomemcache, 1.05)
		for _, callers := range []int{64, 256} {
			add(work{o, 0, callers, near}, "time", perCall, ours, gomemcache, 0.45)
			add(work{o, 0, callers, near}, "99th percentile", p99, ours, gomemcache, 1)
			add(work{o, 0, callers, delayed}, "time", perCall, ours, gomemcache, 1)
			add(work{o, 0, callers, secured}, "time", perCall, ours, gomemcache, 1)
		}
	}
	add(work{opGet, 0, 64, near}, "CPU of client and server", cpu, ours, gomemcache, 0.5)

	mset, mget := work{opMSet, 100, 1, near}, work{opMGet, 100, 1, near}
	add(mset, "time", perCall, ours, loop, 0.06)
	add(mset, "time", perCall, ours, hand, 1.25)
	add(mget, "time", perCall, ours, hand, 1.25)
	add(mget, "time", perCall, ours, gomemcache, 0.75)
	add(mset, "time", perCall, ours, redis, 1)
	add(mget, "time", perCall, ours, redis, 1)
	return all
}

// curve are the numbers of callers of the picture.
var curve = []int{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024}

var batchSizes = []int{1, 10, 100, 1_000, 10_000}

// works are all that are measured, each once, in the order of the tables.
func works() []work {
	var all []work
	for _, o := range []op{opGet, opSet} {
		for _, at := range []string{near, three, threads, delayed, secured} {
			for _, callers := range curve {
				inCurve := o == opGet && at == near
				inTable := slices.Contains([]int{1, 64, 256}, callers) || at == near && callers == 8
				if inCurve || inTable {
					all = append(all, work{o, 0, callers, at})
				}
			}
		}
	}
	for _, at := range []string{near, three, delayed} {
		for _, o := range []op{opMGet, opMSet, opDelete, opExists} {
			for _, keys := range batchSizes {
				if at == near || keys == 100 {
					all = append(all, work{o, keys, 1, at})
				}
			}
		}
	}
	return all
}

// contestants are those that take turns at w.
func (w work) contestants() []contestant {
	all := []contestant{ours, gomemcache}
	if w.place != three && w.place != secured { // several Redis would be another product: Redis Cluster
		all = append(all, redis)
	}
	if w.place != near {
		return all
	}
	if w.batch() || slices.Contains([]int{1, 8, 64, 256}, w.callers) {
		all = append(all, fork, hand)
	}
	switch {
	case w.op == opMSet, w.op == opDelete: // elsewhere it is no other call
		all = append(all, loop)
	case w.callers == 1 && !w.batch():
		all = append(all, cancellable)
	}
	return all
}

// promised tells which clients have figures in w.
func (w work) promised() map[string]bool {
	names := make(map[string]bool)
	for _, f := range ratioFigures() {
		if f.work == w {
			names[f.ours.name], names[f.against.name] = true, true
		}
	}
	return names
}

// title names a work in a table.
func (w work) title() string {
	title := string(w.op)
	switch {
	case w.batch():
		title = fmt.Sprintf("%s of %s", w.op, thousands(w.keys))
	case w.callers == 1:
		title += ", 1 caller"
	default:
		title = fmt.Sprintf("%s, %s callers", w.op, thousands(w.callers))
	}
	if w.place != near {
		title += ", " + w.place
	}
	return title
}
