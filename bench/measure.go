package main

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// work is what is measured, and where.
type work struct {
	op         op
	keys       int // of a batch
	goroutines int
	servers    int
	delay      time.Duration
}

func (w work) batch() bool { return w.op != opGet && w.op != opSet }

// runner does one work with one client.
type runner struct {
	client  client
	calls   []func() error // one for each goroutine
	restock func() error   // before each call, not measured
	stocker client
}

// singleKeys is how many keys a goroutine uses in turn for Get and Set.
const singleKeys = 100

func keysOf(prefix string, n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("%s:%06d", prefix, i)
	}
	return keys
}

// ready opens a client for w and checks that it does it.
func (s *servers) ready(c contestant, w work) (*runner, error) {
	if c.servers > 0 {
		w.servers = c.servers
	}
	direct := s.memcached[:w.servers]
	stock := hand
	if c.redis {
		direct, stock = []string{s.redis}, c
	}
	addrs := direct
	if w.delay > 0 {
		addrs = nil
		for _, a := range direct {
			addrs = append(addrs, s.delayed[a])
		}
	}
	r := &runner{}
	var err error
	// The proxies have other addresses, but keys are mapped by their order.
	if r.stocker, err = stock.open(direct); err != nil {
		return nil, err
	}
	if r.client, err = c.open(addrs); err != nil {
		return nil, err
	}
	for g := range w.goroutines {
		n := w.keys
		if !w.batch() {
			n = singleKeys
		}
		keys := keysOf(fmt.Sprintf("bench:%d", g), n)
		fill := r.stocker.prepare(opMSet, keys)
		if w.op == opDelete {
			r.restock = fill
		} else if err := fill(); err != nil {
			return nil, err
		}
		r.calls = append(r.calls, r.client.prepare(w.op, keys))
	}
	_, err = r.run(0)
	return r, err
}

func (r *runner) close() {
	r.client.close()
	r.stocker.close()
}

// run does the work again and again for d, at least once, and returns the time
// per call.
func (r *runner) run(d time.Duration) (time.Duration, error) {
	if len(r.calls) > 1 {
		return r.runAll(d)
	}
	var spent time.Duration
	for n := 1; ; n++ {
		if r.restock != nil {
			if err := r.restock(); err != nil {
				return 0, err
			}
		}
		start := time.Now()
		if err := r.calls[0](); err != nil {
			return 0, err
		}
		if spent += time.Since(start); spent >= d {
			return spent / time.Duration(n), nil
		}
	}
}

// runAll is run with several goroutines: the time is that between one call's end
// and the next, of whichever goroutine.
func (r *runner) runAll(d time.Duration) (time.Duration, error) {
	var wg sync.WaitGroup
	counts := make([]int, len(r.calls))
	errs := make([]error, len(r.calls))
	start := time.Now()
	for g, call := range r.calls {
		wg.Go(func() {
			n := 0
			for n == 0 || time.Since(start) < d {
				if errs[g] = call(); errs[g] != nil {
					break
				}
				n++
			}
			counts[g] = n
		})
	}
	wg.Wait()
	spent := time.Since(start)
	total := 0
	for g, n := range counts {
		if errs[g] != nil {
			return 0, errs[g]
		}
		total += n
	}
	return spent / time.Duration(total), nil
}

// compare measures contestants in turns, round by round, so that what else the
// machine does hits all of them alike, and returns the times of all rounds.
func compare(runners []*runner, rounds int, d, budget time.Duration) ([][]time.Duration, error) {
	times := make([][]time.Duration, len(runners))
	spent := make([]time.Duration, len(runners))
	for round := range rounds {
		for i := range runners {
			// Every other round the other way round: nobody is always behind the
			// same one.
			if round%2 == 1 {
				i = len(runners) - 1 - i
			}
			if runners[i] == nil || spent[i] > budget {
				continue
			}
			start := time.Now()
			t, err := runners[i].run(d)
			if err != nil {
				return nil, err
			}
			spent[i] += time.Since(start)
			times[i] = append(times[i], t)
		}
	}
	return times, nil
}

func median[T ~int64 | ~float64](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}
