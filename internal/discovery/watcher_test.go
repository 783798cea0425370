package discovery_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/discovery"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

const (
	interval = time.Minute
	timeout  = 3 * time.Second
)

// source is where a Watcher has its list from, and what it does with it.
type source struct {
	mu      sync.Mutex
	answer  discovery.Answer
	err     error
	takes   time.Duration // for a look-up; it ends earlier with its context
	refusal error

	asked   []time.Time
	applied [][]string
	infos   []string
	warns   []string
}

func (s *source) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *source) serve(version int64, servers ...string) {
	s.set(func() { s.answer, s.err = discovery.Answer{Servers: servers, Version: version}, nil })
}

func (s *source) fail(err error) { s.set(func() { s.err = err }) }

func (s *source) lookups() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

func (s *source) list() [][]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.applied)
}

// log returns how many warnings there were, and how many lines of good news.
func (s *source) log() (warns, infos int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.warns), len(s.infos)
}

func (s *source) lookup(ctx context.Context) (discovery.Answer, error) {
	s.mu.Lock()
	s.asked = append(s.asked, time.Now())
	takes := s.takes
	s.mu.Unlock()
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return discovery.Answer{}, fmt.Errorf("dial tcp: %w", ctx.Err())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answer, s.err
}

func (s *source) apply(servers []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refusal == nil {
		s.applied = append(s.applied, servers)
	}
	return s.refusal
}

func (s *source) config() discovery.Config {
	logTo := func(lines *[]string) func(string, ...any) {
		return func(format string, args ...any) {
			s.set(func() { *lines = append(*lines, fmt.Sprintf(format, args...)) })
		}
	}
	return discovery.Config{
		Sources: []discovery.Source{{Name: "cfg.test:11211", Lookup: s.lookup}}, Apply: s.apply, Interval: interval, Timeout: timeout,
		Infof: logTo(&s.infos), Warnf: logTo(&s.warns),
	}
}

// watch runs test in a bubble, whose time passes when all that is in it waits. The
// source has a list of version 5 and takes a second to say so. A goroutine that is
// left behind fails the test.
func watch(t *testing.T, test func(t *testing.T, w *discovery.Watcher, s *source)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &source{takes: time.Second}
		s.serve(5, "a:1", "b:2")
		w := discovery.New(s.config())
		defer w.Close()
		test(t, w, s)
	})
}

// next waits for the next regular look-up to be over.
func (s *source) next(t *testing.T) {
	t.Helper()
	for before, start := s.lookups(), time.Now(); s.lookups() == before; time.Sleep(time.Second) {
		require.Less(t, time.Since(start), 2*interval)
	}
	time.Sleep(timeout + time.Second)
}

func TestWatcherSharesTheFirstLookup(t *testing.T) {
	watch(t, func(t *testing.T, w *discovery.Watcher, s *source) {
		time.Sleep(time.Hour)
		require.Zero(t, s.lookups(), "nobody has asked")
		require.Equal(t, discovery.Status{Version: discovery.NoVersion}, w.Status())

		start := time.Now()
		var waiters sync.WaitGroup
		for range 100 {
			waiters.Go(func() { assert.NoError(t, w.Wait(t.Context())) })
		}
		waiters.Wait()
		require.Equal(t, time.Second, time.Since(start))
		require.Equal(t, 1, s.lookups())
		require.Equal(t, [][]string{{"a:1", "b:2"}}, s.list())
		require.Equal(t, discovery.Status{Version: 5, LastSuccess: time.Now()}, w.Status())
		warns, infos := s.log()
		require.Zero(t, warns+infos)

		ended, cancel := context.WithCancel(t.Context())
		cancel()
		require.NoError(t, w.Wait(ended), "nothing to wait for")
	})
}

// Who gives up leaves the look-up to the others, and to those who come later.
func TestWatcherWaitsByTheCallersContext(t *testing.T) {
	watch(t, func(t *testing.T, w *discovery.Watcher, s *source) {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, w.Wait(ended), context.Canceled)
		synctest.Wait()
		require.Zero(t, s.lookups(), "for nobody")

		short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		start := time.Now()
		err := w.Wait(short)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "cfg.test:11211")
		require.Equal(t, 10*time.Millisecond, time.Since(start))
		require.NoError(t, w.Wait(t.Context()))
		require.Equal(t, time.Second, time.Since(start))
		require.Equal(t, 1, s.lookups())
	})
}

// Calls to an endpoint that is down do not add up to a storm.
func TestWatcherFailsAllWhoWait(t *testing.T) {
	watch(t, func(t *testing.T, w *discovery.Watcher, s *source) {
		down := errors.New("connection refused")
		s.fail(down)
		start := time.Now()
		var waiters sync.WaitGroup
		for range 100 {
			waiters.Go(func() {
				err := w.Wait(t.Context())
				assert.ErrorIs(t, err, down)
				assert.ErrorContains(t, err, "cfg.test:11211")
			})
		}
		waiters.Wait()
		require.Equal(t, time.Second, time.Since(start))
		for time.Since(start) < 1990*time.Millisecond {
			require.ErrorIs(t, w.Wait(t.Context()), down)
			time.Sleep(10 * time.Millisecond)
		}
		require.Equal(t, 1, s.lookups())
		status := w.Status()
		require.ErrorIs(t, status.LastError, down)
		require.Zero(t, status.LastSuccess)

		time.Sleep(time.Hour)
		require.Equal(t, 1, s.lookups(), "nothing goes on by itself before the first list")
		require.ErrorIs(t, w.Wait(t.Context()), down)
		require.Equal(t, 2, s.lookups())
		warns, infos := s.log()
		require.Equal(t, []int{1, 0}, []int{warns, infos})

		s.serve(5, "a:1")
		time.Sleep(time.Second)
		require.NoError(t, w.Wait(t.Context()))
		require.Equal(t, [][]string{{"a:1"}}, s.list())
		require.NoError(t, w.Status().LastError)
		warns, infos = s.log()
		require.Equal(t, []int{1, 1}, []int{warns, infos})
	})
}

// The look-up's own timeout is not the end of a caller's context.
func TestWatcherLimitsALookup(t *testing.T) {
	watch(t, func(t *testing.T, w *discovery.Watcher, s *source) {
		s.set(func() { s.takes = time.Hour })
		start := time.Now()
		err := w.Wait(t.Context())
		require.Equal(t, timeout, time.Since(start))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.NotErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "no answer within 3s: dial tcp: ")
	})
}

func TestWatcherKeepsUp(t *testing.T) {
	watch(t, func(t *testing.T, w *discovery.Watcher, s *source) {
		require.NoError(t, w.Wait(t.Context()))
		s.next(t)
		require.Len(t, s.list(), 1, "the same list is not applied again")
		s.serve(6, "c:3")
		s.next(t)
		require.Equal(t, [][]string{{"a:1", "b:2"}, {"c:3"}}, s.list())
		require.EqualValues(t, 6, w.Status().Version)
		s.serve(6, "another:4")
		s.next(t)
		require.Len(t, s.list(), 2, "a version has one list")
		s.serve(1000, "c:3")
		s.next(t)
		require.Len(t, s.list(), 3, "whether it changes is Apply's to find out")

		warns, infos := s.log()
		require.Zero(t, warns+infos)
		time.Sleep(100 * interval)
		s.mu.Lock()
		defer s.mu.Unlock()
		var pauses []time.Duration
		for i := 1; i < len(s.asked); i++ {
			pauses = append(pauses, s.asked[i].Sub(s.asked[i-1])-s.takes)
		}
		assert.GreaterOrEqual(t, slices.Min(pauses), interval-interval/10)
		assert.LessOrEqual(t, slices.Max(pauses), interval+interval/10)
		assert.Less(t, slices.Min(pauses), interval-interval/20, "jitter")
		assert.Greater(t, slices.Max(pauses), interval+interval/20, "jitter")
	})
}

// Nothing but a newer list that is accepted replaces one, and one outage is a line in
// the log.
func TestWatcherKeepsAGoodList(t *testing.T) {
	watch(t, func(t *testing.T, w *discovery.Watcher, s *source) {
		require.NoError(t, w.Wait(t.Context()))
		success := w.Status().LastSuccess
		warns := 0
		for _, trouble := range []struct {
			name   string
			begin  func(i int)
			status string
			warns  int // more of them than before
		}{
			{"no answer", func(i int) { s.fail(fmt.Errorf("read tcp 127.0.0.1:%d: refused", i)) }, "refused", 1},
			{"none in time", func(int) { s.set(func() { s.takes = time.Hour }) }, "no answer within 3s", 0},
			{"an empty list", func(int) { s.set(func() { s.takes = time.Second }); s.serve(6) }, "the list is empty", 0},
			{"an older list", func(int) { s.serve(4, "old:1") }, "version 4 of the list is not newer than 5", 1},
			{"without a version", func(int) { s.serve(0, "old:1") }, "not newer", 0},
			{"a list refused", func(int) { s.serve(6, "c:3"); s.set(func() { s.refusal = errors.New("no such weight") }) }, "no such weight", 1},
			{"no answer again", func(int) { s.fail(errors.New("refused")) }, "refused", 1},
		} {
			for i := range 3 {
				trouble.begin(i)
				s.next(t)
				require.ErrorContains(t, w.Status().LastError, trouble.status, trouble.name)
				require.NoError(t, w.Wait(t.Context()), trouble.name)
			}
			warns += trouble.warns
			gotWarns, gotInfos := s.log()
			require.Equal(t, []int{warns, 0}, []int{gotWarns, gotInfos}, "%s: %q", trouble.name, s.warns)
			require.Equal(t, [][]string{{"a:1", "b:2"}}, s.list(), trouble.name)
			require.EqualValues(t, 5, w.Status().Version, trouble.name)
			require.Equal(t, success, w.Status().LastSuccess, trouble.name)
		}
		require.Equal(t, "memcacheddriver: discovery of servers by cfg.test:11211: read tcp 127.0.0.1:0: refused; the servers in use stay", s.warns[0])

		s.set(func() { s.refusal = nil })
		s.serve(6, "c:3")
		s.next(t)
		s.next(t)
		require.Equal(t, []string{"memcacheddriver: the discovery of servers by cfg.test:11211 works again"}, s.infos)
		require.Equal(t, [][]string{{"a:1", "b:2"}, {"c:3"}}, s.list(), "the version that was refused")
		require.NoError(t, w.Status().LastError)

		s.fail(errors.New("refused"))
		s.next(t)
		gotWarns, _ := s.log()
		require.Equal(t, warns+1, gotWarns, "another outage")
	})
}

// The first list may be refused as well.
func TestWatcherRefusesTheFirstList(t *testing.T) {
	watch(t, func(t *testing.T, w *discovery.Watcher, s *source) {
		refusal := errors.New("no such weight")
		s.set(func() { s.refusal = refusal })
		require.ErrorIs(t, w.Wait(t.Context()), refusal)
		require.Equal(t, []string{"memcacheddriver: discovery of servers by cfg.test:11211: no such weight"}, s.warns)
		s.set(func() { s.refusal = nil })
		time.Sleep(time.Second)
		require.NoError(t, w.Wait(t.Context()))
		require.Equal(t, [][]string{{"a:1", "b:2"}}, s.list())
	})
}

// Where no versions are counted, the servers themselves tell.
func TestWatcherWithoutVersions(t *testing.T) {
	watch(t, func(t *testing.T, w *discovery.Watcher, s *source) {
		s.serve(discovery.NoVersion, "a:1", "b:2")
		require.NoError(t, w.Wait(t.Context()))
		s.serve(discovery.NoVersion, "a:1", "b:2")
		s.next(t)
		require.Len(t, s.list(), 1)
		s.serve(discovery.NoVersion, "a:1")
		s.next(t)
		s.serve(discovery.NoVersion, "a:1", "b:2")
		s.set(func() { s.refusal = errors.New("refused") })
		s.next(t)
		s.set(func() { s.refusal = nil })
		s.next(t)
		require.Equal(t, [][]string{{"a:1", "b:2"}, {"a:1"}, {"a:1", "b:2"}}, s.list())
		require.EqualValues(t, discovery.NoVersion, w.Status().Version)
	})
}

func TestWatcherClosesUnused(t *testing.T) {
	watch(t, func(t *testing.T, w *discovery.Watcher, s *source) {
		w.Close()
		require.Equal(t, discovery.ErrClosed, w.Wait(t.Context()))
		synctest.Wait()
		require.Zero(t, s.lookups())
	})
}

func TestWatcherClosesDuringTheFirstLookup(t *testing.T) {
	watch(t, func(t *testing.T, w *discovery.Watcher, s *source) {
		start := time.Now()
		var waiters sync.WaitGroup
		for range 10 {
			waiters.Go(func() { assert.Equal(t, discovery.ErrClosed, w.Wait(t.Context())) })
		}
		time.Sleep(500 * time.Millisecond)
		w.Close()
		waiters.Wait()
		require.Equal(t, 500*time.Millisecond, time.Since(start), "the look-up was cut off")
		require.Equal(t, discovery.ErrClosed, w.Wait(t.Context()))
		w.Close()
		time.Sleep(time.Hour)
		require.Equal(t, 1, s.lookups())
		require.Empty(t, s.list())
		warns, infos := s.log()
		require.Zero(t, warns+infos)
		require.NoError(t, w.Status().LastError)
	})
}

func TestWatcherClosesBetweenRefreshes(t *testing.T) {
	watch(t, func(t *testing.T, w *discovery.Watcher, s *source) {
		require.NoError(t, w.Wait(t.Context()))
		time.Sleep(interval / 2)
		s.closes(t, w)
	})
}

func TestWatcherClosesDuringARefresh(t *testing.T) {
	watch(t, func(t *testing.T, w *discovery.Watcher, s *source) {
		require.NoError(t, w.Wait(t.Context()))
		s.set(func() { s.takes = time.Hour })
		for s.lookups() < 2 {
			time.Sleep(time.Second)
		}
		s.closes(t, w)
	})
}

// closes requires that Close takes no time, and that nothing happens after it.
func (s *source) closes(t *testing.T, w *discovery.Watcher) {
	t.Helper()
	before, start := s.lookups(), time.Now()
	w.Close()
	require.Zero(t, time.Since(start))
	require.Equal(t, discovery.ErrClosed, w.Wait(t.Context()))
	time.Sleep(time.Hour)
	require.Equal(t, before, s.lookups())
	require.Len(t, s.list(), 1)
	warns, infos := s.log()
	require.Zero(t, warns+infos)
	require.NoError(t, w.Status().LastError)
}

// A look-up that does not heed its context holds up nobody, and what it brings then is
// not applied.
func TestWatcherClosesOverADeafLookup(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &source{}
		config := s.config()
		config.Sources[0].Lookup = func(context.Context) (discovery.Answer, error) {
			time.Sleep(time.Minute)
			return discovery.Answer{Servers: []string{"a:1"}, Version: 1}, nil
		}
		w := discovery.New(config)
		start := time.Now()
		waiter := make(chan error)
		go func() { waiter <- w.Wait(t.Context()) }()
		synctest.Wait()
		w.Close()
		require.Equal(t, discovery.ErrClosed, <-waiter)
		require.Zero(t, time.Since(start))
		time.Sleep(time.Minute)
		require.Empty(t, s.list())
	})
}

// Nor does one that ends its goroutine.
func TestWatcherOutlivesALookup(t *testing.T) {
	watch(t, func(t *testing.T, _ *discovery.Watcher, s *source) {
		config := s.config()
		ends := true
		config.Sources[0].Lookup = func(ctx context.Context) (discovery.Answer, error) {
			if ends {
				runtime.Goexit()
			}
			return s.lookup(ctx)
		}
		w := discovery.New(config)
		defer w.Close()
		require.ErrorContains(t, w.Wait(t.Context()), "cfg.test:11211: the look-up ended its goroutine")
		ends = false
		time.Sleep(time.Minute)
		require.NoError(t, w.Wait(t.Context()))
	})
}

// Of several sources the first good answer counts, whatever the others do; and what all
// of them say is told where there is none.
func TestWatcherAsksAllSources(t *testing.T) {
	watch(t, func(t *testing.T, _ *discovery.Watcher, s *source) {
		errRefused := errors.New("refused")
		config := s.config()
		config.Sources = []discovery.Source{
			{Name: "hangs", Lookup: func(ctx context.Context) (discovery.Answer, error) {
				<-ctx.Done()
				return discovery.Answer{}, ctx.Err()
			}},
			{Name: "refuses", Lookup: func(context.Context) (discovery.Answer, error) { return discovery.Answer{}, errRefused }},
			{Name: "empty", Lookup: func(context.Context) (discovery.Answer, error) { return discovery.Answer{}, nil }},
			{Name: "good", Lookup: s.lookup},
		}
		w := discovery.New(config)
		start := time.Now()
		require.NoError(t, w.Wait(t.Context()))
		require.Equal(t, s.takes, time.Since(start))
		w.Close()

		config.Sources = config.Sources[1:3]
		w = discovery.New(config)
		defer w.Close()
		err := w.Wait(t.Context())
		require.ErrorIs(t, err, errRefused)
		require.EqualError(t, err, "discovery of servers by refuses,empty: refuses: refused; empty: the list is empty")
	})
}

func TestWatcherTakesAnyInterval(t *testing.T) {
	for _, interval := range []time.Duration{1, 9, math.MaxInt64} {
		t.Run(interval.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &source{takes: time.Second}
				s.serve(1, "a:1")
				config := s.config()
				config.Interval = interval
				w := discovery.New(config)
				defer w.Close()
				require.NoError(t, w.Wait(t.Context()))
				time.Sleep(time.Hour)
				if interval == math.MaxInt64 {
					require.Equal(t, 1, s.lookups())
				} else {
					require.Greater(t, s.lookups(), 3000)
				}
			})
		})
	}
}

// All at once and for real, for the race detector.
func TestWatcherIsSafeForConcurrentUse(t *testing.T) {
	t.Parallel()
	for range 50 {
		s := &source{takes: time.Millisecond}
		s.serve(1, "a:1")
		config := s.config()
		config.Interval = time.Millisecond
		w := discovery.New(config)
		var all sync.WaitGroup
		for i := range 20 {
			all.Go(func() {
				for range 20 {
					err := w.Wait(t.Context())
					assert.True(t, err == nil || errors.Is(err, discovery.ErrClosed), "%v", err)
					w.Status()
					s.serve(int64(i), "a:1")
				}
			})
		}
		all.Go(w.Close)
		all.Wait()
	}
}

// From an endpoint and from a name service, over the network.
func TestWatcherOfRealSources(t *testing.T) {
	t.Parallel()
	endpoint := memcachedtest.StartFake(t, memcachedtest.ConfigEndpoint(1, "a||1"))
	names := memcachedtest.StartNameServer(t)
	names.SetSRV(service, net.SRV{Target: "a.", Port: 1})
	for name, test := range map[string]struct {
		lookup         func(context.Context) (discovery.Answer, error)
		change, breaks func()
	}{
		"cluster": {
			func(ctx context.Context) (discovery.Answer, error) {
				var d net.Dialer
				c, err := d.DialContext(ctx, "tcp", endpoint.Addr())
				if err != nil {
					return discovery.Answer{}, err
				}
				defer c.Close()
				defer context.AfterFunc(ctx, func() { c.Close() })()
				return discovery.Cluster(c)
			},
			func() { endpoint.SetScript(memcachedtest.ConfigEndpoint(2, "a||1", "b||2")) },
			func() { endpoint.SetScript(memcachedtest.Script{"config": memcachedtest.HangUp}) },
		},
		"srv": {
			func(ctx context.Context) (discovery.Answer, error) {
				return discovery.SRV(ctx, names.Resolver(), service)
			},
			func() { names.SetSRV(service, net.SRV{Target: "b.", Port: 2}, net.SRV{Target: "a.", Port: 1}) },
			func() { names.Remove(service) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &source{}
			config := s.config()
			config.Sources[0].Lookup, config.Interval, config.Timeout = test.lookup, 5*time.Millisecond, time.Minute
			w := discovery.New(config)
			defer w.Close()
			require.NoError(t, w.Wait(t.Context()))
			require.Equal(t, []string{"a:1"}, s.list()[0])
			test.change()
			memcachedtest.Eventually(t, func() bool { return len(s.list()) == 2 }, "the change is noticed")
			require.Equal(t, []string{"a:1", "b:2"}, s.list()[1])
			test.breaks()
			memcachedtest.Eventually(t, func() bool { return w.Status().LastError != nil }, "the failure is noticed")
			time.Sleep(20 * time.Millisecond)
			require.Len(t, s.list(), 2)
			warns, infos := s.log()
			require.Equal(t, []int{1, 0}, []int{warns, infos})
		})
	}
}
