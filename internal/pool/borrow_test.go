package pool_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// batch is a call that has a connection of its own, however many there are.
func batch(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
	_, err := db.MGet(ctx, []string{key, "other"})
	return err
}

// awaitWaiting waits until so many calls wait for a connection.
func awaitWaiting(t *testing.T, db *memcacheddriver.MemcachedDB, n int) {
	t.Helper()
	memcachedtest.Eventually(t, func() bool { return drivertest.Stat(t, db).Waiting == n }, "%d wait", n)
}

// Whoever uses them, and however they end.
func TestOpenConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	const limit = 3
	plain := memcachedtest.Start(t)
	secure, config := memcachedtest.StartTLS(t)
	for name, db := range map[string]*memcacheddriver.MemcachedDB{
		"plain": drivertest.Open(t, plain.Addr(), memcacheddriver.WithTTLQuery(), memcacheddriver.WithMaxOpenConns(limit)),
		"TLS":   drivertest.Open(t, secure.Addr()+"?max_open_conns=3", memcacheddriver.WithTTLQuery(), driver.WithTLSConfig(config)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			calls := append(nativeCalls, drivertest.Calls...)
			var all sync.WaitGroup
			for g := range 40 {
				all.Go(func() {
					for i := range 40 {
						call := calls[(g+i)%len(calls)]
						ctx, cancel := context.WithCancel(t.Context())
						if i%4 == 0 {
							time.AfterFunc(rand.N(time.Millisecond), cancel)
						}
						err := call.Run(ctx, db, drivertest.Key())
						if missed(err) != nil && ctx.Err() == nil {
							t.Errorf("%s: %v", call.Name, err)
						}
						cancel()
						s := drivertest.Stat(t, db)
						if s.Idle+s.InUse+s.Dialing > limit {
							t.Errorf("%+v", s)
						}
					}
				})
			}
			all.Wait()
			drivertest.RequireIdle(t, db)
			s := drivertest.Stat(t, db)
			assert.Zero(t, s.Waiting)
			assert.NotZero(t, s.Waits)
			assert.NotZero(t, s.WaitTime)
			assert.Equal(t, memcacheddriver.ServerUp, s.State)
		})
	}
}

func TestTheLimitThatCounts(t *testing.T) {
	t.Parallel()
	const calls = 70
	addr := memcachedtest.StartFake(t, nil).Addr()
	for name, c := range map[string]struct {
		query string
		opts  []driver.Option
		want  int
	}{
		"the default":             {"", nil, 64},
		"WithMaxOpenConns":        {"", []driver.Option{memcacheddriver.WithMaxOpenConns(3)}, 3},
		"the last one":            {"", []driver.Option{memcacheddriver.WithMaxOpenConns(5), memcacheddriver.WithMaxOpenConns(2)}, 2},
		"max_open_conns":          {"?max_open_conns=66", nil, 66},
		"an option beats the DSN": {"?max_open_conns=5", []driver.Option{memcacheddriver.WithMaxOpenConns(1)}, 1},
		"0 is the default":        {"?max_open_conns=0", nil, 64},
		"0 beats the DSN":         {"?max_open_conns=5", []driver.Option{memcacheddriver.WithMaxOpenConns(0)}, 64},
		"it bounds the idle ones": {"?max_open_conns=4&max_idle_conns=64", nil, 4},
	} {
		db := drivertest.Open(t, addr+c.query, append(c.opts, driver.WithDialTimeout(drivertest.Never))...)
		release := drivertest.Hold(t, db, c.want)
		var all sync.WaitGroup
		for range calls - c.want {
			all.Go(func() { assert.NoError(t, batch(t.Context(), db, "k"), name) })
		}
		awaitWaiting(t, db, calls-c.want)
		s := drivertest.Stat(t, db)
		assert.Equal(t, c.want, s.InUse, name)
		assert.Zero(t, s.Dialing, name)
		release()
		all.Wait()
		s = drivertest.Stat(t, db)
		assert.EqualValues(t, c.want, s.Dials, name)
		assert.LessOrEqual(t, s.Idle, c.want, name)
	}
}

// Bare gomemcache, which dials for each, has thousands of errors here.
func TestTenThousandColdCalls(t *testing.T) {
	const callers = 10_000
	server := memcachedtest.Start(t, "-c", "1024")
	db := drivertest.Open(t, server.Addr(), driver.WithDialTimeout(drivertest.Never))
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			if _, err := db.Get(t.Context(), fmt.Sprint("k", i)); err != kv.ErrNotFound {
				t.Error(err)
			}
		})
	}
	all.Wait()
	assert.LessOrEqual(t, int(drivertest.Stat(t, db).Dials), 64)
}

func TestWaitersAreServedInTheirOrder(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, nil)
	db := drivertest.Open(t, f.Addr(), memcacheddriver.WithMaxOpenConns(1))
	release := drivertest.Hold(t, db, 1)
	var calls sync.WaitGroup
	var want []string
	for i := range 20 {
		key := fmt.Sprint("key", i)
		want = append(want, "get "+key+" other")
		calls.Go(func() { assert.NoError(t, batch(t.Context(), db, key)) })
		awaitWaiting(t, db, i+1)
	}
	release()
	calls.Wait()
	assert.Contains(t, f.Received(), strings.Join(want, "\r\n"))
	s := drivertest.Stat(t, db)
	assert.EqualValues(t, 20, s.Waits)
	assert.EqualValues(t, 1, s.Dials)
}

// Who is handed a connection that the server has closed waits on as the first in line.
func TestAStaleConnectionCostsNobodyHisPlace(t *testing.T) {
	t.Parallel()
	goOn, closed := make(chan struct{}), make(chan struct{})
	f := memcachedtest.StartFake(t, memcachedtest.Script{
		"version": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			if c.N == 1 || c.Wait(goOn) {
				c.Default(cmd)
			}
		},
		"get": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			c.Default(cmd)
			if c.N == 1 {
				c.Close()
				close(closed)
			}
		},
	})
	db := drivertest.Open(t, f.Addr(), memcacheddriver.WithMaxOpenConns(1), driver.WithDialTimeout(drivertest.Never))
	release := drivertest.Hold(t, db, 1)
	<-closed
	var calls sync.WaitGroup
	var want []string
	for i := range 5 {
		key := fmt.Sprint("key", i)
		want = append(want, "get "+key+" other")
		calls.Go(func() { assert.NoError(t, batch(t.Context(), db, key)) })
		awaitWaiting(t, db, i+1)
	}
	release()
	memcachedtest.Eventually(t, func() bool {
		s := drivertest.Stat(t, db)
		return s.Dialing == 1 && s.Waiting == 4
	}, "the first one is in line again")
	close(goOn)
	calls.Wait()
	assert.Contains(t, f.Received(), strings.Join(want, "\r\n"))
}

func TestAWaitEndsWithItsContext(t *testing.T) {
	t.Parallel()
	db := drivertest.Open(t, memcachedtest.StartFake(t, nil).Addr(), memcacheddriver.WithTTLQuery(),
		memcacheddriver.WithMaxOpenConns(1), memcacheddriver.WithServerFailureLimit(1, drivertest.Never), driver.WithDialTimeout(drivertest.Never))
	defer drivertest.Hold(t, db, 1)()
	for i, call := range drivertest.Calls {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- call.Run(ctx, db, "k") }()
		awaitWaiting(t, db, 1)
		cancel()
		assert.ErrorIs(t, <-ended, context.Canceled, call.Name)
		s := drivertest.Stat(t, db)
		assert.Zero(t, s.Waiting, call.Name)
		assert.EqualValues(t, i+1, s.Cancelled, call.Name)
		assert.Equal(t, memcacheddriver.ServerUp, s.State, call.Name)
	}
}

// No connection is lost to a call that leaves just when it is given one.
func TestLeavingWhileOneIsHandedOver(t *testing.T) {
	t.Parallel()
	db := drivertest.OpenShared(t, memcacheddriver.WithMaxOpenConns(2))
	var served, left atomic.Int64
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 400 {
				ctx, cancel := context.WithTimeout(t.Context(), rand.N(2*time.Millisecond))
				switch err := batch(ctx, db, "k"); {
				case err == nil:
					served.Add(1)
				case ctx.Err() != nil:
					left.Add(1)
				default:
					t.Error(err)
				}
				cancel()
			}
		})
	}
	all.Wait()
	assert.NotZero(t, served.Load())
	assert.NotZero(t, left.Load())
	drivertest.RequireIdle(t, db)
	release := drivertest.Hold(t, db, 2)
	assert.Equal(t, 2, drivertest.Stat(t, db).InUse, "both are there")
	release()
}

func TestPoolTimeout(t *testing.T) {
	t.Parallel()
	log := drivertest.NewLog()
	db := drivertest.Open(t, memcachedtest.StartFake(t, nil).Addr(), memcacheddriver.WithTTLQuery(), driver.WithLogger(log),
		memcacheddriver.WithMaxOpenConns(2), memcacheddriver.WithServerFailureLimit(1, drivertest.Never), driver.WithDialTimeout(20*time.Millisecond))
	require.NoError(t, db.Ping(t.Context()))
	release := drivertest.Hold(t, db, 2)
	for _, call := range append(nativeCalls, drivertest.Calls...) {
		err := call.Run(t.Context(), db, "k")
		assert.ErrorIs(t, err, memcacheddriver.ErrPoolTimeout, call.Name)
		assert.ErrorContains(t, err, "no connection became free within 20ms, all 2 are in use; WithMaxOpenConns", call.Name)
	}
	s := drivertest.Stat(t, db)
	assert.Equal(t, s.Addr, drivertest.RequireOpError(t, batch(t.Context(), db, "k")).Server)
	assert.Zero(t, s.Timeouts)
	assert.Zero(t, s.Waiting)
	assert.Equal(t, memcacheddriver.ServerUp, s.State)
	release()
	assert.NoError(t, batch(t.Context(), db, "k"))
	assert.Empty(t, log.Lines())
}

// Its own client as well as the driver's calls: Do has a connection only from a
// request to its reply.
func TestDoMayCallTheDriver(t *testing.T) {
	t.Parallel()
	db := drivertest.OpenShared(t, memcacheddriver.WithMaxOpenConns(1), driver.WithDialTimeout(drivertest.Never))
	key := drivertest.Key()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 20 {
				assert.NoError(t, db.Do(t.Context(), func(c *memcache.Client) error {
					if err := c.Set(&memcache.Item{Key: key, Value: []byte("1")}); err != nil {
						return err
					}
					err := db.Do(t.Context(), func(inner *memcache.Client) error {
						_, err := inner.Get(key)
						return errors.Join(err, batch(t.Context(), db, key))
					})
					_, err2 := c.GetMulti([]string{key, "other"})
					_, err3 := db.Get(t.Context(), key)
					_, err4 := db.Client().Get(key)
					return errors.Join(err, err2, err3, err4)
				}))
			}
		})
	}
	all.Wait()
	assert.EqualValues(t, 1, drivertest.Dials(db))
}

// Each batch needs a connection to either server, and there is one of each.
func TestNobodyWaitsWithAConnectionInHand(t *testing.T) {
	t.Parallel()
	_, addrs := drivertest.StartServers(t, 2)
	keys := drivertest.KeysOf(t, addrs, 4)
	db := drivertest.Open(t, strings.Join(addrs, ","), memcacheddriver.WithMaxOpenConns(1), driver.WithDialTimeout(drivertest.Never))
	var all sync.WaitGroup
	for g := range 16 {
		a, b := keys[g%2], keys[1-g%2]
		all.Go(func() {
			for range 50 {
				_, err := db.MGet(t.Context(), append(append([]string{}, a...), b...))
				assert.NoError(t, err)
				assert.NoError(t, db.MSet(t.Context(), drivertest.Pairs(append(append([]string{}, b...), a...)), time.Minute))
				assert.NoError(t, db.Do(t.Context(), func(c *memcache.Client) error {
					_, err := c.Get(a[0])
					if err == nil || err == memcache.ErrCacheMiss {
						_, err = c.Get(b[0])
					}
					return missed(err)
				}))
			}
		})
	}
	all.Wait()
	assert.EqualValues(t, 2, drivertest.Dials(db))
}

func missed(err error) error {
	if err == memcache.ErrCacheMiss {
		return nil
	}
	return err
}

func TestThoseWhoWaitLearnThatTheServerIsDown(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, hangsAfterDial)
	db := drivertest.Open(t, f.Addr(), memcacheddriver.WithMaxOpenConns(2), driver.WithDialTimeout(drivertest.Never),
		memcacheddriver.WithTimeout(300*time.Millisecond), memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
	var refused atomic.Int32
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if errors.Is(batch(t.Context(), db, "k"), memcacheddriver.ErrServerDown) {
				refused.Add(1)
			}
		})
	}
	awaitWaiting(t, db, 48)
	all.Wait()
	assert.GreaterOrEqual(t, int(refused.Load()), 48)
}

// The next call finds the connection that the first one did not live to see.
func TestADialOutlivesItsCall(t *testing.T) {
	t.Parallel()
	answer := make(chan struct{})
	f := memcachedtest.StartFake(t, memcachedtest.Script{"version": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		if c.Wait(answer) {
			c.Default(cmd)
		}
	}})
	db := drivertest.Open(t, f.Addr())
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, err := db.Get(ctx, "k")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		cancel()
	}
	require.Equal(t, 1, drivertest.Stat(t, db).Dialing)
	close(answer)
	_, err := db.Get(t.Context(), "k")
	require.Equal(t, kv.ErrNotFound, err)
	require.EqualValues(t, 1, drivertest.Dials(db))
}

func TestCloseEndsWaits(t *testing.T) {
	t.Parallel()
	for name, run := range map[string]func(*memcacheddriver.MemcachedDB) error{
		"a batch":           func(db *memcacheddriver.MemcachedDB) error { return batch(context.Background(), db, "k") },
		"the native client": func(db *memcacheddriver.MemcachedDB) error { _, err := db.Client().Get("k"); return err },
	} {
		db := drivertest.Open(t, memcachedtest.StartFake(t, hangsAfterDial).Addr(), memcacheddriver.WithMaxOpenConns(1),
			memcacheddriver.WithTimeout(drivertest.Never), driver.WithDialTimeout(drivertest.Never))
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() { assert.ErrorIs(t, run(db), memcacheddriver.ErrNotOpen, name) })
		}
		awaitWaiting(t, db, 9)
		assert.NoError(t, db.Close())
		all.Wait()
	}
}
