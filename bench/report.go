package main

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// column of a table of works.
type column struct {
	title string
	cell  func(measurement) string
}

var (
	oursColumn       = column{"memcacheddriver, µs", microsOf(perCall)}
	gomemcacheColumn = column{"gomemcache", ratioTo(gomemcache, perCall)}
	redisColumn      = column{"redisdriver", ratioTo(redis, perCall)}

	roundsColumn = column{"rounds", func(m measurement) string { return strconv.Itoa(len(m)) }}

	singleColumns = []column{
		roundsColumn,
		oursColumn,
		{"p50, µs", microsOf(p50)},
		{"p99, µs", microsOf(p99)},
		{"CPU, µs", microsOf(cpu)},
		gomemcacheColumn,
		{"its p99", ratioTo(gomemcache, p99)},
		{"its CPU", ratioTo(gomemcache, cpu)},
		{fork.name, ratioTo(fork, perCall)},
		redisColumn,
		{"its p99", ratioTo(redis, p99)},
		{hand.name, ratioTo(hand, perCall)},
	}
	batchColumns = []column{
		roundsColumn,
		oursColumn,
		{loop.name, ratioTo(loop, perCall)},
		gomemcacheColumn,
		{fork.name, ratioTo(fork, perCall)},
		redisColumn,
		{hand.name, ratioTo(hand, perCall)},
	}
)

func microsOf(value metric) func(measurement) string {
	return func(m measurement) string { return microsText(m.of(ours, value)) }
}

// ratioTo is bold where the other has less in three rounds of four.
func ratioTo(other contestant, value metric) func(measurement) string {
	return func(m measurement) string {
		s := m.ratio(ours, other, value)
		if s.low > 1 {
			return "**" + ratioText(s) + "**"
		}
		return ratioText(s)
	}
}

// table writes the works that have been measured.
func (r *results) table(w io.Writer, works []work, columns []column) {
	titles := make([]string, len(columns))
	for i, c := range columns {
		titles[i] = c.title
	}
	fmt.Fprintf(w, "| Work | %s |\n| ---%s |\n", strings.Join(titles, " | "), strings.Repeat(" | ---:", len(columns)))
	for _, work := range works {
		fmt.Fprintf(w, "| %s", work.title())
		for _, c := range columns {
			fmt.Fprintf(w, " | %s", c.cell(r.works[work]))
		}
		fmt.Fprintln(w, " |")
	}
}

func (r *results) report(p plan, versions []string) []byte {
	var b bytes.Buffer
	var singles, batches []work
	for _, w := range works() {
		switch {
		case r.works[w] == nil: // not with -quick
		case w.batch():
			batches = append(batches, w)
		default:
			singles = append(singles, w)
		}
	}
	held := 0
	figures := r.figures()
	for _, f := range figures {
		if f.held() {
			held++
		}
	}
	fmt.Fprintf(&b, `# Benchmarks

Made by "make bench" with %s on %s/%s, %d cores, %s.
All servers and clients were on that one machine, on the loopback interface.

The clients took turns of %v to %v; a round is one turn of each. A number is the
median of the rounds, and behind it in brackets are their quartiles: half the
rounds lie between. **A ratio is memcacheddriver's number divided by the other
client's in the same round**; below 1 memcacheddriver has less of it. Each work was
measured once, and has the same numbers wherever it is shown.

## Figures

What was promised, and whether it holds, by the median: %d of %d do.

| Work | Of | Against | Measured | At most | |
| --- | --- | --- | ---: | ---: | --- |
`, runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), strings.Join(versions, ", "),
		work{callers: 1}.turn(), work{callers: 1000}.turn(), held, len(figures))
	for _, f := range figures {
		verdict := "FAIL"
		if f.held() {
			verdict = "PASS"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", f.work, f.of, f.against, f.measured,
			strconv.FormatFloat(f.bound, 'f', -1, 64), verdict)
	}

	fmt.Fprint(&b, `
## One key

![Time per call, and the 99th percentile, against the number of callers](callers.svg)

First memcacheddriver's own numbers: the time from one call's end to the next
one's, of whichever caller; the percentiles of what a call takes its caller; and the
CPU per call, of client and server together. Then the ratios to the others' times,
and to their p99 and CPU. **Bold**: the other one is better in three rounds of four,
Redis too.

`)
	r.table(&b, singles, singleColumns)
	fmt.Fprint(&b, `
## Batches

![Time against batch size, for each client](batch.svg)

memcacheddriver's time for a call with so many keys, and the ratios to the others'
times. **Bold**: the other one is quicker.

`)
	r.table(&b, batches, batchColumns)

	fmt.Fprint(&b, `
## Many callers at once

On a memcached of its own with the 1,024 connections that it comes with; no socket
is open when it begins. Even calls are Gets of a caller's own key, odd ones Sets of
it, and what is read is compared.

| | Client | Answered | `+"`ErrServerDown`"+` | Timeouts | Other errors | Wrong values | Slowest, ms | Sockets at a time | Connections made |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
`)
	for _, st := range storms {
		for _, c := range stormClients {
			t := r.storms[st.title][c.name]
			fmt.Fprintf(&b, "| %s | %s", st.title, c.name)
			for _, n := range []int{t.answered, t.refused, t.timeouts, t.failed, t.wrong, int(t.slowest / time.Millisecond), t.sockets, t.made} {
				fmt.Fprintf(&b, " | %s", thousands(n))
			}
			fmt.Fprintln(&b, " |")
		}
	}
	f := p.freeze
	fmt.Fprintf(&b, `
## A frozen server

![Calls answered in each second, and the slowest of it, while one of two servers is frozen](frozen.svg)

%d callers read keys of two servers, as fast as they can; one of them is frozen for
%d s (SIGSTOP). Both clients have a timeout of %v. Calls that are answered have
their value from the healthy server, and before and after from both.

| Client | Answered per s before | while frozen | in the last second | `+"`ErrServerDown`"+` while frozen | Timeouts | Other errors | Slowest, ms |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
`, freezeCallers, f.frozen, shortTimeout)
	for _, c := range stormClients {
		seconds := r.frozen[c.name]
		var before, during, all tally
		for i, t := range seconds {
			all.add(t)
			switch {
			case i < f.before:
				before.add(t)
			case i < f.before+f.frozen:
				during.add(t)
			}
		}
		fmt.Fprintf(&b, "| %s", c.name)
		for _, n := range []int{before.answered / f.before, during.answered / f.frozen, seconds[len(seconds)-1].answered,
			during.refused, all.timeouts, all.failed, int(all.slowest / time.Millisecond)} {
			fmt.Fprintf(&b, " | %s", thousands(n))
		}
		fmt.Fprintln(&b, " |")
	}

	fmt.Fprintf(&b, `
## How it was measured

- Every client connected anew %d times for each work. In each round the order was
  drawn anew. Each client had %v for a work with a figure and %v for another; one
  whose single call takes longer than a turn had fewer rounds.
- Values have 100 bytes, and every key that is read is there.
- Clients are set up for the callers they have: gomemcache and grafana's fork keep
  as many idle connections as there are callers, as memcacheddriver does, and
  redisdriver has a pool of as many, up to %d: more made it no quicker. In a batch of
  what they have no batch for, %d goroutines share the keys; "in a loop" is one. For
  Exists they count what GetMulti returns.
- *redisdriver*: Grove's driver for Redis, v1.5.1, on one Redis server that saves
  nothing, and else is as it comes, with one thread for its commands.
- *by hand*: requests built beforehand, written at once, replies read and not
  parsed, a socket for each server and caller: the floor.
- memcached has one thread unless it says `+"`-t 4`"+`, so that all clients meet the
  same one. *+0.5 ms*: TCP proxies in a process of their own hold every request back
  for %v; their own work comes on top.
- CPU is the user's and the system's, of this process by getrusage and of the
  servers, not the proxies, from /proc/PID/task/*/schedstat: on Linux alone.
`, sittings, p.share, p.share/2, redisPool, setters, addedRoundTrip)
	return b.Bytes()
}

func microsText(s spread) string {
	if math.IsNaN(s.median) {
		return ""
	}
	return fmt.Sprintf("%s (%s–%s)", significant(s.median), significant(s.low), significant(s.high))
}

func ratioText(s spread) string {
	switch {
	case math.IsNaN(s.median):
		return ""
	case s.median < 0.1:
		return fmt.Sprintf("%.3f (%.3f–%.3f)", s.median, s.low, s.high)
	}
	return fmt.Sprintf("%.3f (%.2f–%.2f)", s.median, s.low, s.high)
}

// significant prints a number with at least two digits that matter.
func significant(f float64) string {
	switch {
	case f >= 100:
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
