package memcacheddriver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// connMoody is a server that answers, hangs or closes the connection.
type connMoody struct {
	*connServer
	mood     atomic.Int32
	requests atomic.Int32 // commands that came in
	conns    atomic.Int32
	deaf     atomic.Int32 // the first so many connections hang, whatever the mood
}

const (
	moodAnswers int32 = iota
	moodHangs
	moodHangsUp // closes the connection
)

func connServeMoody(t testing.TB) *connMoody {
	m := &connMoody{}
	m.connServer = connServe(t, func(c net.Conn, r *bufio.Reader) {
		n := m.conns.Add(1)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			m.requests.Add(1)
			mood := m.mood.Load()
			if n <= m.deaf.Load() {
				mood = moodHangs
			}
			switch mood {
			case moodAnswers:
				fmt.Fprint(c, connMissReply(line))
			case moodHangs:
				connHang(c, r)
				return
			case moodHangsUp:
				return
			}
		}
	})
	return m
}

// connDown makes calls fail until the driver's only server is down.
func connDown(t testing.TB, db *memcacheddriver.MemcachedDB, limit int) {
	t.Helper()
	for range limit {
		_, err := db.Get(context.Background(), "k")
		require.Error(t, err)
		require.NotErrorIs(t, err, memcacheddriver.ErrServerDown)
	}
	require.Equal(t, memcacheddriver.ServerDown, connStats(t, db).State)
}

func TestHealthDownAndUpAgain(t *testing.T) {
	t.Parallel()
	for _, byDSN := range []bool{false, true} {
		t.Run(fmt.Sprintf("by DSN %v", byDSN), func(t *testing.T) {
			t.Parallel()
			server := memcachedtest.Start(t)
			logger := newConnLog()
			opts := []driver.Option{driver.WithLogger(logger), memcacheddriver.WithTTLQuery()}
			dsn := server.Addr()
			if byDSN {
				dsn += "?server_failure_limit=4&server_retry_timeout=1s"
			} else {
				opts = append(opts, memcacheddriver.WithServerFailureLimit(4, time.Second))
			}
			db := connOpen(t, dsn, opts...)
			require.NoError(t, db.Ping(context.Background()))
			server.Kill()
			time.Sleep(connRest)
			for range 4 {
				_, err := db.Get(context.Background(), "k")
				require.ErrorIs(t, err, syscall.ECONNREFUSED)
				require.NotErrorIs(t, err, memcacheddriver.ErrServerDown)
			}
			downSince := time.Now()

			before := connStats(t, db)
			require.Equal(t, memcacheddriver.ServerDown, before.State)
			require.Equal(t, uint64(4), before.DialErrors)
			for _, call := range connCalls() {
				err := call.run(context.Background(), db)
				if time.Since(downSince) > 900*time.Millisecond {
					break // a machine so slow that a probe is due
				}
				require.ErrorIs(t, err, memcacheddriver.ErrServerDown, call.name)
				require.ErrorIs(t, err, syscall.ECONNREFUSED, call.name)
				require.ErrorContains(t, err, server.Addr(), call.name)
				require.Equal(t, before.Dials, connStats(t, db).Dials, "%s dialled", call.name)
			}
			_, err := db.Client().Get("k")
			require.Error(t, err)

			server.Restart()
			connPoll(t, "a probe brings it back", func() bool {
				_, err := db.Get(context.Background(), "k")
				if err != kv.ErrNotFound {
					require.ErrorIs(t, err, memcacheddriver.ErrServerDown)
				}
				return err == kv.ErrNotFound
			})
			require.GreaterOrEqual(t, time.Since(downSince), 990*time.Millisecond, "it was probed too early")
			require.Equal(t, memcacheddriver.ServerUp, connStats(t, db).State)
			for _, call := range connCalls() {
				if err := call.run(context.Background(), db); err != kv.ErrNotFound {
					require.NoError(t, err, call.name)
				}
			}
			require.Len(t, logger.with("is down", server.Addr()), 1)
			require.Len(t, logger.with("is up again", server.Addr()), 1)
			require.Len(t, logger.with(""), 2, "nothing else is logged")
			connRequireIdle(t, db)
		})
	}
}

// By default it takes three failures, and a success between them starts anew.
func TestHealthCountsFailuresInARow(t *testing.T) {
	t.Parallel()
	server := connServeMoody(t)
	db := connOpen(t, server.addr())
	get := func() error { _, err := db.Get(context.Background(), "k"); return err }
	for range 3 {
		server.mood.Store(moodHangsUp)
		for range 2 {
			require.ErrorIs(t, get(), io.ErrUnexpectedEOF)
		}
		require.Equal(t, memcacheddriver.ServerUp, connStats(t, db).State)
		server.mood.Store(moodAnswers)
		require.Equal(t, kv.ErrNotFound, get())
	}
	server.mood.Store(moodHangsUp)
	connDown(t, db, 3)
	require.ErrorIs(t, get(), memcacheddriver.ErrServerDown)
	require.ErrorIs(t, get(), io.ErrUnexpectedEOF)
}

// A timeout counts, of a call and of a native one.
func TestHealthCountsTimeouts(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	db := connOpen(t, server.Addr(), memcacheddriver.WithTimeout(20*time.Millisecond), memcacheddriver.WithServerFailureLimit(2, never))
	server.Stop()
	_, err := db.Get(context.Background(), "k")
	require.Error(t, err)
	_, err = db.Client().Get("k")
	require.Error(t, err)
	s := connStats(t, db)
	require.Equal(t, memcacheddriver.ServerDown, s.State)
	require.Equal(t, uint64(2), s.Timeouts)
	require.Zero(t, s.DialErrors)
	require.Zero(t, s.Cancelled)
	connRequireIdle(t, db)
}

func TestHealthCallersDeadlinesDoNotCount(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	db := connOpen(t, server.Addr(), memcacheddriver.WithServerFailureLimit(1, never), memcacheddriver.WithTimeout(never), memcacheddriver.WithTTLQuery())
	_, err := db.Exists(context.Background(), "k")
	require.NoError(t, err)
	server.Stop()
	n := 0
	for range 5 {
		for i, call := range connCalls() {
			end := connEnds[i%len(connEnds)]
			ctx, stop := end.make(time.Millisecond)
			require.ErrorIs(t, call.run(ctx, db), end.err, call.name)
			stop()
			n++
		}
	}
	s := connStats(t, db)
	require.Equal(t, memcacheddriver.ServerUp, s.State)
	require.Zero(t, s.Timeouts)
	require.Zero(t, s.DialErrors)
	require.LessOrEqual(t, s.Cancelled, uint64(n))
	require.GreaterOrEqual(t, s.Cancelled, uint64(n/2)) // some end before they reach it
	server.Cont()
	require.NoError(t, db.Ping(context.Background()))
}

func TestHealthLimit0IsOff(t *testing.T) {
	t.Parallel()
	for _, open := range []func(addr string) *memcacheddriver.MemcachedDB{
		func(addr string) *memcacheddriver.MemcachedDB {
			return connOpen(t, addr, memcacheddriver.WithServerFailureLimit(0, 0))
		},
		func(addr string) *memcacheddriver.MemcachedDB { return connOpen(t, addr+"?server_failure_limit=0") },
	} {
		server := memcachedtest.Start(t)
		db := open(server.Addr())
		server.Kill()
		time.Sleep(connRest)
		for range 10 {
			_, err := db.Get(context.Background(), "k")
			require.ErrorIs(t, err, syscall.ECONNREFUSED)
			require.NotErrorIs(t, err, memcacheddriver.ErrServerDown)
		}
		require.Equal(t, uint64(10), connStats(t, db).DialErrors)
		server.Restart()
		require.NoError(t, db.Ping(context.Background()))
	}
}

// While a server is down one call at a time finds out whether it still is.
func TestHealthSingleProbe(t *testing.T) {
	t.Parallel()
	server := connServeMoody(t)
	const retry = 50 * time.Millisecond
	db := connOpen(t, server.addr(), memcacheddriver.WithTimeout(never), memcacheddriver.WithServerFailureLimit(3, retry))
	server.mood.Store(moodHangsUp)
	connDown(t, db, 3)
	time.Sleep(retry + 10*time.Millisecond)
	server.mood.Store(moodHangs)
	before := server.requests.Load()
	ctx, cancel := context.WithCancel(context.Background())
	var down, cancelled atomic.Int32
	var calls sync.WaitGroup
	const callers = 20
	for range callers {
		calls.Go(func() {
			_, err := db.Get(ctx, "k")
			switch {
			case errors.Is(err, memcacheddriver.ErrServerDown):
				down.Add(1)
			case errors.Is(err, context.Canceled):
				cancelled.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	connPoll(t, "all but the probe are refused at once", func() bool { return down.Load() == callers-1 })
	connPoll(t, "the probe reaches the server", func() bool { return server.requests.Load() == before+1 })
	require.Equal(t, memcacheddriver.ServerProbing, connStats(t, db).State)
	cancel()
	calls.Wait()
	require.Equal(t, int32(1), cancelled.Load())

	// The probe was cancelled, so nothing is known: the next call is one.
	require.Equal(t, memcacheddriver.ServerDown, connStats(t, db).State)
	server.mood.Store(moodAnswers)
	_, err := db.Get(context.Background(), "k")
	require.Equal(t, kv.ErrNotFound, err)
	require.Equal(t, memcacheddriver.ServerUp, connStats(t, db).State)
}

// However a probe ends, the server does not stay "probing".
func TestHealthProbeNeverSticks(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for name, probe := range map[string]func(db *memcacheddriver.MemcachedDB){
		"panic before a call": func(db *memcacheddriver.MemcachedDB) {
			defer func() { _ = recover() }()
			_ = db.Do(ctx, func(*memcache.Client) error { panic("mine") })
		},
		"panic behind a call": func(db *memcacheddriver.MemcachedDB) {
			defer func() { _ = recover() }()
			_ = db.Do(ctx, func(c *memcache.Client) error {
				_, _ = c.Get("k")
				panic("mine")
			})
		},
		"Goexit behind a call": func(db *memcacheddriver.MemcachedDB) {
			var gone sync.WaitGroup
			gone.Go(func() {
				_ = db.Do(ctx, func(c *memcache.Client) error {
					_, _ = c.Get("k")
					runtime.Goexit()
					return nil
				})
			})
			gone.Wait()
		},
		"cancelled in Do": func(db *memcacheddriver.MemcachedDB) {
			ctx, cancel := context.WithCancel(ctx)
			_ = db.Do(ctx, func(c *memcache.Client) error {
				_, _ = c.Get("k")
				cancel()
				_, err := c.Get("k")
				return err
			})
		},
		"a bad key": func(db *memcacheddriver.MemcachedDB) {
			_ = db.Do(ctx, func(c *memcache.Client) error { return c.Set(&memcache.Item{Key: "a b"}) })
		},
		"a native call": func(db *memcacheddriver.MemcachedDB) { _, _ = db.Client().Get("k") },
		"a protocol error": func(db *memcacheddriver.MemcachedDB) {
			_ = db.Do(ctx, func(c *memcache.Client) error { return c.Set(&memcache.Item{Key: "k"}) }) // ERROR
		},
		"a native protocol error": func(db *memcacheddriver.MemcachedDB) {
			_ = db.Client().Set(&memcache.Item{Key: "k"})
		},
		"too many goroutines": func(db *memcacheddriver.MemcachedDB) {
			_ = db.Do(ctx, func(c *memcache.Client) error {
				var all sync.WaitGroup
				for range 5 {
					all.Go(func() { _, _ = c.Get("k") })
				}
				all.Wait()
				return nil
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := connServeMoody(t)
			const retry = 10 * time.Millisecond
			db := connOpen(t, server.addr(), memcacheddriver.WithServerFailureLimit(3, retry))
			server.mood.Store(moodHangsUp)
			connDown(t, db, 3)
			server.mood.Store(moodAnswers)
			time.Sleep(2 * retry)
			probe(db)
			require.NotEqual(t, memcacheddriver.ServerProbing, connStats(t, db).State)
			_, err := db.Get(ctx, "k")
			require.Equal(t, kv.ErrNotFound, err)
			require.Equal(t, memcacheddriver.ServerUp, connStats(t, db).State)
			connRequireIdle(t, db)
		})
	}
}

// A probe has its answer when its reply is there, not when the Do that it is in
// returns.
func TestHealthProbeInALongDo(t *testing.T) {
	t.Parallel()
	server := connServeMoody(t)
	const retry = 10 * time.Millisecond
	db := connOpen(t, server.addr(), memcacheddriver.WithServerFailureLimit(3, retry))
	server.mood.Store(moodHangsUp)
	connDown(t, db, 3)
	server.mood.Store(moodAnswers)
	time.Sleep(2 * retry)
	err := db.Do(context.Background(), func(c *memcache.Client) error {
		if _, err := c.Get("k"); err != memcache.ErrCacheMiss {
			return err
		}
		assert.Equal(t, memcacheddriver.ServerUp, connStats(t, db).State)
		if _, err := db.Get(context.Background(), "k"); err != kv.ErrNotFound {
			t.Errorf("the server has answered, and another call gets: %v", err)
		}
		return nil
	})
	require.NoError(t, err)
}

// A server that stops answering without closing leaves idle connections that
// look sound. They must not keep a server down that is back.
func TestHealthOldConnectionsDoNotProbe(t *testing.T) {
	t.Parallel()
	server := connServeMoody(t)
	const retry = 20 * time.Millisecond
	db := connOpen(t, server.addr(), memcacheddriver.WithTimeout(100*time.Millisecond), memcacheddriver.WithServerFailureLimit(3, retry))
	var old sync.WaitGroup
	connFill(t, db, 10)
	server.mood.Store(moodHangs)
	for range 3 {
		old.Go(func() { _, _ = db.Get(context.Background(), "k") })
	}
	old.Wait()
	require.Equal(t, memcacheddriver.ServerDown, connStats(t, db).State)

	// What is connected from here on is answered; the old connections stay silent.
	server.deaf.Store(10)
	server.mood.Store(moodAnswers)
	time.Sleep(2 * retry)
	_, err := db.Get(context.Background(), "k")
	require.Equal(t, kv.ErrNotFound, err, "the first probe used a connection from before")
}

// Asking for the meta protocol makes some proxies close the connection, which is
// no failure of theirs.
func TestHealthAskingForMetaIsNoFailure(t *testing.T) {
	t.Parallel()
	server := connServe(t, func(c net.Conn, r *bufio.Reader) {
		for {
			line, err := r.ReadString('\n')
			if err != nil || strings.HasPrefix(line, "m") {
				return
			}
			fmt.Fprint(c, connMissReply(line))
		}
	})
	db := connOpen(t, server.addr())
	var calls sync.WaitGroup
	for range 16 {
		calls.Go(func() {
			if _, err := db.Exists(context.Background(), "k"); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	require.Equal(t, memcacheddriver.ServerUp, connStats(t, db).State)
}

// Not parallel: it measures time.
func TestHealthOtherServersDoNotNotice(t *testing.T) {
	well, hung := memcachedtest.Start(t), memcachedtest.Start(t)
	db := connOpen(t, well.Addr()+","+hung.Addr(), memcacheddriver.WithTimeout(200*time.Millisecond))
	var wellKey, hungKey string
	for i := 0; wellKey == "" || hungKey == ""; i++ {
		key := fmt.Sprint("k", i)
		require.NoError(t, db.Set(context.Background(), key, []byte("v"), 0))
		if well.Stats(t)["curr_items"] != "0" && wellKey == "" {
			wellKey = key
		}
		if hung.Stats(t)["curr_items"] != "0" && hungKey == "" {
			hungKey = key
		}
	}
	median := func() time.Duration {
		var took []time.Duration
		for range 300 {
			start := time.Now()
			_, err := db.Get(context.Background(), wellKey)
			require.NoError(t, err)
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		return took[len(took)/2]
	}
	for range 4 { // a busy machine gets another chance
		before := median()
		hung.Stop()
		stop := make(chan struct{})
		var callers sync.WaitGroup
		for range 4 {
			callers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						_, _ = db.Get(context.Background(), hungKey)
						time.Sleep(time.Millisecond)
					}
				}
			})
		}
		during := median() // first into timeouts, then while it is down
		connPoll(t, "the other one is down", func() bool { return db.Stats()[1].State != memcacheddriver.ServerUp })
		during = max(during, median())
		close(stop)
		callers.Wait()
		hung.Cont()
		if during < 3*before+time.Millisecond {
			return
		}
		t.Logf("median %v, with a hung server beside it %v", before, during)
		connPoll(t, "it comes back", func() bool {
			_, err := db.Get(context.Background(), hungKey)
			return err == nil
		})
	}
	t.Error("a hung server slows down the others")
}

// A batch serves what the other servers hold.
func TestHealthBatchBesideADownServer(t *testing.T) {
	t.Parallel()
	well, dead := memcachedtest.Start(t), memcachedtest.Start(t)
	db := connOpen(t, well.Addr()+","+dead.Addr())
	pairs := make(map[string][]byte)
	var keys []string
	for i := range 40 {
		keys = append(keys, fmt.Sprint("k", i))
		pairs[keys[i]] = []byte(keys[i])
	}
	require.NoError(t, db.MSet(context.Background(), pairs, 0))
	dead.Kill()
	time.Sleep(connRest)
	for i := range 6 {
		values, err := db.MGet(context.Background(), keys)
		require.Error(t, err)
		require.Equal(t, i >= 3, errors.Is(err, memcacheddriver.ErrServerDown), "%v", err)
		var op *memcacheddriver.OpError
		require.ErrorAs(t, err, &op)
		require.Equal(t, dead.Addr(), op.Server)
		for j, v := range values {
			require.Equal(t, v == nil, slices.Contains(op.Keys, keys[j]))
		}
	}
	require.Equal(t, memcacheddriver.ServerUp, db.Stats()[0].State)
	require.Equal(t, memcacheddriver.ServerDown, db.Stats()[1].State)
}
