package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// work is what is measured, and where.
type work struct {
	op      op
	keys    int // of a batch; 0 for Get and Set
	callers int // each calls again when its call has ended
	place   string
}

func (w work) batch() bool { return w.keys > 0 }

// turn is how long one turn of a client is: short, so that what else the machine
// does spoils few of them, but some calls of each caller.
func (w work) turn() time.Duration {
	return min(max(20, time.Duration(w.callers)), 100) * time.Millisecond
}

// sample is what one turn of a client gave, in microseconds.
type sample struct {
	call     float64 // from one call's end to the next one's, of whichever caller
	p50, p99 float64 // percentiles of what the calls took
	cpu      float64 // per call, of this process and the servers together; NaN where the system does not tell
}

// metric is one of a sample's numbers.
type metric func(sample) float64

func perCall(s sample) float64 { return s.call }
func p50(s sample) float64     { return s.p50 }
func p99(s sample) float64     { return s.p99 }
func cpu(s sample) float64     { return s.cpu }

// measurement is all of a work's rounds: in each, what the clients gave that had
// a turn in it, by their names.
type measurement []map[string]sample

// of is what the client gave.
func (m measurement) of(c contestant, value metric) spread {
	var values []float64
	for _, round := range m {
		if s, ok := round[c.name]; ok {
			values = append(values, value(s))
		}
	}
	return spreadOf(values)
}

// ratio is what a gave as a ratio to what b gave in the same round: a slow moment
// of the machine is in both.
func (m measurement) ratio(a, b contestant, value metric) spread {
	var values []float64
	for _, round := range m {
		sa, inA := round[a.name]
		sb, inB := round[b.name]
		if inA && inB {
			values = append(values, value(sa)/value(sb))
		}
	}
	return spreadOf(values)
}

// spread is the median of the rounds' values and their quartiles; NaN if there
// are none.
type spread struct{ low, median, high float64 }

func spreadOf(values []float64) spread {
	slices.Sort(values)
	return spread{quantile(values, 0.25), quantile(values, 0.5), quantile(values, 0.75)}
}

// quantile interpolates between the two values that q falls between.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	at := q * float64(len(sorted)-1)
	below := int(at)
	above := min(below+1, len(sorted)-1)
	return sorted[below] + (at-float64(below))*(sorted[above]-sorted[below])
}

// sittings is how often all clients of a work connect anew: what the system makes
// of a connection, its port and who wakes on which core, is luck.
const sittings = 4

// measure lets the clients take turns at w, each for share in all.
func (s *servers) measure(w work, contestants []contestant, share time.Duration) (measurement, error) {
	var m measurement
	for range sittings {
		rounds, err := s.sit(w, contestants, share/sittings)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", w.title(), err)
		}
		m = append(m, rounds...)
	}
	return m, nil
}

// sit measures until the first contestant, memcacheddriver, has had its share; one
// that is slow has fewer turns, but as much time.
func (s *servers) sit(w work, contestants []contestant, share time.Duration) (rounds measurement, err error) {
	var runners []*runner
	for _, c := range contestants {
		r, err := s.ready(c, w)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.name, err)
		}
		defer r.close()
		runners = append(runners, r)
	}
	spent := make([]time.Duration, len(runners))
	for spent[0] < share {
		round := make(map[string]sample)
		// Nobody is always behind the same one.
		for _, i := range rand.Perm(len(runners)) {
			if spent[i] >= share {
				continue
			}
			r, start := runners[i], time.Now()
			if round[r.name], err = r.run(w.turn()); err != nil {
				return nil, fmt.Errorf("%s: %w", r.name, err)
			}
			spent[i] += time.Since(start)
		}
		rounds = append(rounds, round)
	}
	return rounds, nil
}

// runner does one work with one client.
type runner struct {
	contestant
	calls   []func() error // one for each caller
	restock func() error   // before each call, not measured; with one caller alone
	pids    []int          // of the servers
	client  client
	stocker client
	took    [][]float64
}

// singleKeys is how many keys a caller uses in turn for Get and Set: so few that
// one TLS record holds the MSet that stores them, as memcached 1.6.18 may forget
// what stands behind a value that began in the record before.
const singleKeys = 5

// timeout is that of all clients.
const timeout = 3 * time.Second

// ready opens a client for w and checks that it does it.
func (s *servers) ready(c contestant, w work) (*runner, error) {
	at, stock := s.places[w.place], ours
	servers := at.memcached
	if c.redis {
		servers, stock = at.redis, c
	}
	to := setting{tls: at.tls, callers: w.callers, timeout: timeout}
	r := &runner{contestant: c, took: make([][]float64, w.callers)}
	for _, server := range servers {
		to.addrs = append(to.addrs, server.addr)
		r.pids = append(r.pids, server.pid)
	}
	var err error
	if r.stocker, err = stock.open(to); err != nil {
		return nil, err
	}
	if r.client, err = c.open(to); err != nil {
		return nil, err
	}
	for g := range w.callers {
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

func keysOf(prefix string, n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("%s:%06d", prefix, i)
	}
	return keys
}

func (r *runner) close() {
	r.client.close()
	r.stocker.close()
}

// run lets each caller do the work again and again for d, at least once.
func (r *runner) run(d time.Duration) (sample, error) {
	var wg sync.WaitGroup
	var restocking time.Duration
	errs := make([]error, len(r.calls))
	cpu, start := cpuTime(r.pids), time.Now()
	for g, call := range r.calls {
		wg.Go(func() {
			took, began := r.took[g][:0], time.Now()
			for len(took) == 0 || began.Sub(start) < d {
				if r.restock != nil {
					if errs[g] = r.restock(); errs[g] != nil {
						return
					}
					now := time.Now()
					restocking += now.Sub(began)
					began = now
				}
				if errs[g] = call(); errs[g] != nil {
					return
				}
				now := time.Now()
				took = append(took, float64(now.Sub(began))/1e3)
				began = now
			}
			r.took[g] = took
		})
	}
	wg.Wait()
	spent := time.Since(start) - restocking
	cpu = cpuTime(r.pids) - cpu
	for _, err := range errs {
		if err != nil {
			return sample{}, err
		}
	}
	took := slices.Concat(r.took...)
	slices.Sort(took)
	n := float64(len(took))
	return sample{
		call: float64(spent) / 1e3 / n,
		p50:  quantile(took, 0.5),
		p99:  quantile(took, 0.99),
		cpu:  cpu / n,
	}, nil
}
