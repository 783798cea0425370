package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"golang.org/x/sys/unix"
)

// storm is many callers at once, on a server of its own with all as it comes.
type storm struct {
	title          string
	callers, calls int           // calls of each
	pause          time.Duration // how long the server stands still, when half the calls are over
	timeout        time.Duration
}

var (
	warm   = storm{title: "256 callers × 200 calls", callers: 256, calls: 200, timeout: timeout}
	cold   = storm{title: "10,000 callers × 1 call", callers: 10_000, calls: 1, timeout: timeout}
	paused = storm{title: "10,000 callers × 20 calls, 2 s of the server paused", callers: 10_000, calls: 20, pause: 2 * time.Second, timeout: shortTimeout}

	storms = []storm{warm, cold, paused}
)

// shortTimeout is gomemcache's default.
const shortTimeout = 500 * time.Millisecond

// stormClients are the clients that are met with storms.
var stormClients = []contestant{ours, gomemcache}

// tally counts how calls ended.
type tally struct {
	answered int // with what the key has, or with a write done
	refused  int // at once: ErrServerDown
	timeouts int
	failed   int // anything else
	wrong    int // another key's value, or none
	slowest  time.Duration
	err      error // the first of failed

	// Of the server.
	sockets int // the most at a time
	made    int // connections in all
}

func (t *tally) add(o tally) {
	t.answered += o.answered
	t.refused += o.refused
	t.timeouts += o.timeouts
	t.failed += o.failed
	t.wrong += o.wrong
	t.slowest = max(t.slowest, o.slowest)
	if t.err == nil {
		t.err = o.err
	}
}

// call makes a call and counts it: a Get that must find what valueOf says, or a
// Set of it.
func (t *tally) call(c library, o op, key string) {
	start := time.Now()
	var got string
	var err error
	if o == opGet {
		var b []byte
		b, err = c.get(key)
		got = string(b)
	} else {
		got = valueOf(key)
		err = c.set(key, []byte(got))
	}
	t.slowest = max(t.slowest, time.Since(start))
	var network net.Error
	var connecting *memcache.ConnectTimeoutError
	switch {
	case err == nil && got == valueOf(key):
		t.answered++
	case err == nil, errors.Is(err, kv.ErrNotFound), errors.Is(err, memcache.ErrCacheMiss):
		t.wrong++
	case errors.Is(err, memcacheddriver.ErrServerDown):
		t.refused++
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &connecting), errors.As(err, &network) && network.Timeout():
		t.timeouts++
	default:
		t.failed++
		if t.err == nil {
			t.err = err
		}
	}
}

func valueOf(key string) string { return strings.Repeat(key+" ", 4) }

// fill stores what the storms read.
func fill(addrs []string, keys []string) error {
	db := memcacheddriver.New()
	if err := db.Open(context.Background(), strings.Join(addrs, ",")); err != nil {
		return err
	}
	pairs := make(map[string][]byte)
	for _, key := range keys {
		pairs[key] = []byte(valueOf(key))
	}
	return errors.Join(db.MSet(context.Background(), pairs, 0), db.Close())
}

// weather meets a client with a storm.
func (s *servers) weather(st storm, contestant contestant) (total tally, err error) {
	server, err := s.startMemcached("-t", "1") // -c 1024 is the default
	if err != nil {
		return total, err
	}
	defer server.stop()
	keys := keysOf("storm", st.callers)
	if err := fill([]string{server.addr}, keys); err != nil {
		return total, err
	}
	opened, err := contestant.open(setting{addrs: []string{server.addr}, callers: st.callers, timeout: st.timeout})
	if err != nil {
		return total, err
	}
	defer opened.close()
	watch, err := watchSockets(server.addr)
	if err != nil {
		return total, err
	}

	var wg, pausing sync.WaitGroup
	var done atomic.Int64
	tallies := make([]tally, st.callers)
	for g := range tallies {
		wg.Go(func() {
			var t tally // not in the slice: there it would share a cache line
			for i := range st.calls {
				t.call(opened.(library), []op{opGet, opSet}[i%2], keys[g])
				if done.Add(1) == int64(st.callers*st.calls/2) && st.pause > 0 {
					pausing.Go(func() { pause(server, st.pause) })
				}
			}
			tallies[g] = t
		})
	}
	wg.Wait()
	pausing.Wait()
	for _, t := range tallies {
		total.add(t)
	}
	total.sockets, total.made, err = watch()
	return total, err
}

// pause stops a process for d.
func pause(s server, d time.Duration) {
	unix.Kill(s.pid, unix.SIGSTOP)
	time.Sleep(d)
	unix.Kill(s.pid, unix.SIGCONT)
}

// watchSockets asks a server again and again how many connections it has, on one
// of its own. The function that it returns stops it, and tells how many there
// were at most, and how many have been made.
func watchSockets(addr string) (stop func() (most, made int, err error), err error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(nc)
	ask := func() (open, ever int, err error) {
		fmt.Fprint(nc, "stats\r\n")
		for lines.Scan() && lines.Text() != "END" {
			name, number, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "STAT "), " ")
			switch name {
			case "curr_connections":
				open, err = strconv.Atoi(number)
			case "total_connections":
				ever, err = strconv.Atoi(number)
			}
			if err != nil {
				return 0, 0, err
			}
		}
		return open, ever, lines.Err()
	}
	// What is there already, this connection among it, does not count.
	open, ever, err := ask()
	if err != nil {
		return nil, err
	}
	var most int
	var asked error
	ended, over := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		for asked == nil {
			var now int
			now, _, asked = ask()
			most = max(most, now-open)
			select {
			case <-ended:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() (int, int, error) {
		defer nc.Close()
		close(ended)
		<-over
		_, made, err := ask()
		return most, made - ever, errors.Join(asked, err)
	}, nil
}

// freeze is how a picture is taken of a server that stands still for a time, one
// of two, with callers that read keys of both.
type freeze struct{ before, frozen, after int } // seconds

const freezeCallers = 64

// frozen returns what the callers got in each second.
func (s *servers) frozen(f freeze, contestant contestant) ([]tally, error) {
	var two []server
	var addrs []string
	for range 2 {
		server, err := s.startMemcached("-t", "1")
		if err != nil {
			return nil, err
		}
		defer server.stop()
		two, addrs = append(two, server), append(addrs, server.addr)
	}
	keys := keysOf("frozen", 100)
	if err := fill(addrs, keys); err != nil {
		return nil, err
	}
	opened, err := contestant.open(setting{addrs: addrs, callers: freezeCallers, timeout: shortTimeout})
	if err != nil {
		return nil, err
	}
	defer opened.close()

	var wg sync.WaitGroup
	end := f.before + f.frozen + f.after
	tallies := make([][]tally, freezeCallers)
	start := time.Now()
	for g := range tallies {
		wg.Go(func() {
			seconds := make([]tally, end)
			for i := g; time.Since(start) < time.Duration(end)*time.Second; i++ {
				var t tally
				t.call(opened.(library), opGet, keys[i%len(keys)])
				seconds[min(int(time.Since(start)/time.Second), end-1)].add(t)
			}
			tallies[g] = seconds
		})
	}
	time.Sleep(time.Duration(f.before) * time.Second)
	pause(two[0], time.Duration(f.frozen)*time.Second)
	wg.Wait()
	seconds := make([]tally, end)
	for _, of := range tallies {
		for i, t := range of {
			seconds[i].add(t)
		}
	}
	return seconds, nil
}
