package pool_test

import (
	"context"
	"errors"
	"runtime"
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

// openDown returns a server that is down for its driver, whose calls no timeout
// of their own ends, and that answers by script from now on.
func openDown(t *testing.T, retry time.Duration, script memcachedtest.Script) (*memcachedtest.Fake, *memcacheddriver.MemcachedDB) {
	t.Helper()
	server := memcachedtest.StartFake(t, memcachedtest.Script{"*": memcachedtest.HangUp})
	db := drivertest.Open(t, server.Addr(), memcacheddriver.WithTimeout(drivertest.Never),
		driver.WithDialTimeout(drivertest.Never), memcacheddriver.WithServerFailureLimit(1, retry))
	require.Error(t, db.Ping(t.Context()))
	require.Equal(t, memcacheddriver.ServerDown, drivertest.Stat(t, db).State)
	server.SetScript(script)
	return server, db
}

func TestOneProbePerRetryTimeout(t *testing.T) {
	t.Parallel()
	const retry = 30 * time.Millisecond
	start := time.Now()
	server, db := openDown(t, retry, nil)
	server.Close() // each probe is a dial that fails at once
	before := drivertest.Dials(db)
	ctx, cancel := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for ctx.Err() == nil {
				_, err := db.Get(ctx, "k")
				assert.Error(t, err)
				runtime.Gosched()
			}
		})
	}
	memcachedtest.Eventually(t, func() bool { return drivertest.Dials(db) >= before+5 }, "probes go on")
	cancel()
	callers.Wait()
	probes := time.Duration(drivertest.Dials(db) - before)
	require.GreaterOrEqual(t, time.Since(start), probes*retry, "%d probes", probes)
}

// Dials that were under way when the server went down may never end.
func TestAProbeDialsAnew(t *testing.T) {
	t.Parallel()
	const dialling = 3
	goOn := make(chan struct{})
	f := memcachedtest.StartFake(t, nil)
	db := drivertest.Open(t, f.Addr(), memcacheddriver.WithTimeout(drivertest.Never), driver.WithDialTimeout(drivertest.Never),
		memcacheddriver.WithServerFailureLimit(1, 10*time.Millisecond))
	drivertest.Fill(t, db, 1)
	f.SetScript(memcachedtest.Script{"version": memcachedtest.Hang, "delete": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
		c.Wait(goOn)
		c.Close()
	}})
	var calls sync.WaitGroup
	calls.Go(func() {
		_, err := db.Delete(t.Context(), "k")
		assert.ErrorContains(t, err, "closed the connection")
	})
	memcachedtest.Eventually(t, func() bool { return f.Count("delete") == 1 }, "a call has the connection")
	for range dialling {
		calls.Go(func() { assert.ErrorIs(t, batch(t.Context(), db, "k"), memcacheddriver.ErrServerDown) })
	}
	memcachedtest.Eventually(t, func() bool { return f.Count("version") == 1+dialling }, "others dial")
	close(goOn)
	calls.Wait()
	f.SetScript(nil)
	memcachedtest.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		return batch(ctx, db, "k") == nil
	}, "the server is up")
}

func TestProbesThatHangKeepNobodyOut(t *testing.T) {
	t.Parallel()
	const (
		retry = 50 * time.Millisecond
		calls = 8 // more would share a socket
	)
	var hanging, answered atomic.Int32
	release := make(chan struct{}) // the probe of one caller
	start := time.Now()
	_, db := openDown(t, retry, memcachedtest.Script{"gets": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		if hanging.Add(1) == 1 {
			c.Wait(release)
			c.Default(cmd)
			return
		}
		c.Hang()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var callers sync.WaitGroup
	for range calls {
		callers.Go(func() {
			for {
				_, err := db.Get(ctx, "k")
				switch {
				case errors.Is(err, memcacheddriver.ErrServerDown):
					time.Sleep(time.Millisecond)
					continue
				case err == kv.ErrNotFound:
					answered.Add(1)
				default:
					assert.ErrorIs(t, err, context.Canceled)
				}
				return
			}
		})
	}
	for n := int32(1); n <= 3; n++ {
		memcachedtest.Eventually(t, func() bool { return hanging.Load() >= n }, "probe %d", n)
		require.Equal(t, memcacheddriver.ServerProbing, drivertest.Stat(t, db).State)
		probes := time.Duration(hanging.Load())
		require.GreaterOrEqual(t, time.Since(start), probes*retry, "%d probes", probes)
	}
	require.Zero(t, answered.Load())

	// The first good reply brings the server back, whatever the others do.
	close(release)
	memcachedtest.Eventually(t, func() bool { return answered.Load() == 1 }, "the first probe is answered")
	require.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
	memcachedtest.Eventually(t, func() bool { return hanging.Load() == calls }, "nobody is refused any more")
	cancel()
	callers.Wait()
	require.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
	drivertest.RequireIdle(t, db)
}

// However a probe ends, the next call after the retry timeout brings the server
// back; a probe that was answered has done so itself.
func TestProbeThatEndsKeepsNobodyOut(t *testing.T) {
	t.Parallel()
	do := func(fn func(cancel func(), c *memcache.Client)) func(t *testing.T, db *memcacheddriver.MemcachedDB) {
		return func(_ *testing.T, db *memcacheddriver.MemcachedDB) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			var gone sync.WaitGroup
			gone.Go(func() { // for Goexit
				defer func() { _ = recover() }()
				_ = db.Do(ctx, func(c *memcache.Client) error { fn(cancel, c); return nil })
			})
			gone.Wait()
		}
	}
	// cancelled is a Get that is cancelled when it has come so far.
	cancelled := func(soFar func(memcacheddriver.ServerStats) bool) func(t *testing.T, db *memcacheddriver.MemcachedDB) {
		return func(t *testing.T, db *memcacheddriver.MemcachedDB) {
			ctx, cancel := context.WithCancel(context.Background())
			var get sync.WaitGroup
			get.Go(func() { _, _ = db.Get(ctx, "k") })
			memcachedtest.Eventually(t, func() bool { return soFar(db.Stats()[0]) }, "the probe hangs")
			cancel()
			get.Wait()
		}
	}
	dials := func(s memcacheddriver.ServerStats) bool { return s.State == memcacheddriver.ServerProbing }
	asks := func(s memcacheddriver.ServerStats) bool { return s.InUse == 1 }
	for _, probe := range []struct {
		name   string
		run    func(t *testing.T, db *memcacheddriver.MemcachedDB)
		script memcachedtest.Script // what the probe meets
		state  memcacheddriver.ServerState
	}{
		{"panic before a request", do(func(func(), *memcache.Client) { panic("mine") }), nil, memcacheddriver.ServerDown},
		{"a bad key", do(func(_ func(), c *memcache.Client) { _, _ = c.Get("a b") }), nil, memcacheddriver.ServerDown},
		{"panic after a reply", do(func(_ func(), c *memcache.Client) {
			_, _ = c.Get("k")
			panic("mine")
		}), nil, memcacheddriver.ServerUp},
		{"Goexit after a reply", do(func(_ func(), c *memcache.Client) {
			_, _ = c.Get("k")
			runtime.Goexit()
		}), nil, memcacheddriver.ServerUp},
		{"cancelled after a reply", do(func(cancel func(), c *memcache.Client) {
			_, _ = c.Get("k")
			cancel()
			_, _ = c.Get("k")
		}), nil, memcacheddriver.ServerUp},
		{"many goroutines", do(func(_ func(), c *memcache.Client) {
			var all sync.WaitGroup
			for range 5 {
				all.Go(func() { _, _ = c.Get("k") })
			}
			all.Wait()
		}), nil, memcacheddriver.ServerUp},
		{"native", func(_ *testing.T, db *memcacheddriver.MemcachedDB) { _, _ = db.Client().Get("k") }, nil, memcacheddriver.ServerUp},
		{"native protocol error", func(_ *testing.T, db *memcacheddriver.MemcachedDB) { _, _ = db.Client().Get("k") },
			memcachedtest.Script{"gets": memcachedtest.Say("ERROR\r\n")}, memcacheddriver.ServerUp},
		{"protocol error", func(_ *testing.T, db *memcacheddriver.MemcachedDB) { _, _ = db.Get(context.Background(), "k") },
			memcachedtest.Script{"gets": memcachedtest.Say("ERROR\r\n")}, memcacheddriver.ServerUp},
		{"another failure", func(_ *testing.T, db *memcacheddriver.MemcachedDB) { _, _ = db.Get(context.Background(), "k") },
			memcachedtest.Script{"*": memcachedtest.HangUp}, memcacheddriver.ServerDown},
		{"cancelled in the request", cancelled(asks), hangsAfterDial, memcacheddriver.ServerProbing},
		{"cancelled in the dial", cancelled(dials), memcachedtest.Script{"*": memcachedtest.Hang}, memcacheddriver.ServerProbing},
	} {
		t.Run(probe.name, func(t *testing.T) {
			t.Parallel()
			const retry = 10 * time.Millisecond
			server, db := openDown(t, retry, probe.script)
			time.Sleep(retry)
			probe.run(t, db)
			require.Equal(t, probe.state, drivertest.Stat(t, db).State)
			drivertest.RequireIdle(t, db)
			server.SetScript(nil)
			memcachedtest.Eventually(t, func() bool {
				_, err := db.Get(t.Context(), "k")
				if err != kv.ErrNotFound {
					require.ErrorIs(t, err, memcacheddriver.ErrServerDown)
				}
				return err == kv.ErrNotFound
			}, "the server is back")
			require.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
		})
	}
}

// A probe has its verdict when its reply is there, not when the Do that it is in
// returns.
func TestProbeInALongDo(t *testing.T) {
	t.Parallel()
	const retry = 10 * time.Millisecond
	_, db := openDown(t, retry, nil)
	time.Sleep(retry)
	require.NoError(t, db.Do(t.Context(), func(c *memcache.Client) error {
		_, err := c.Get("k")
		assert.Equal(t, memcache.ErrCacheMiss, err)
		assert.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
		_, err = db.Get(t.Context(), "k")
		assert.Equal(t, kv.ErrNotFound, err)
		return nil
	}))
}

// A call that was under way before the server went down need not wait for a
// probe to show that it is up.
func TestReplyOnAnOldConnectionBringsTheServerBack(t *testing.T) {
	t.Parallel()
	asked, answer := make(chan struct{}), make(chan struct{})
	server := memcachedtest.StartFake(t, memcachedtest.Script{"gets": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		close(asked)
		c.Wait(answer)
		c.Default(cmd)
	}})
	db := drivertest.Open(t, server.Addr(), memcacheddriver.WithTimeout(drivertest.Never),
		memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
	old := make(chan error, 1)
	go func() {
		_, err := db.Get(t.Context(), "k")
		old <- err
	}()
	<-asked
	server.SetScript(memcachedtest.Script{"*": memcachedtest.HangUp})
	require.Error(t, db.Ping(t.Context()))
	require.Equal(t, memcacheddriver.ServerDown, drivertest.Stat(t, db).State)
	close(answer)
	require.Equal(t, kv.ErrNotFound, <-old)
	require.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
	server.SetScript(nil)
	require.NoError(t, db.Ping(t.Context()))
}

// A server that stops answering without closing leaves idle connections that
// look sound. They must not keep a server down that is back.
func TestIdleConnectionsDoNotProbe(t *testing.T) {
	t.Parallel()
	const idle, retry = 10, 20 * time.Millisecond
	server := memcachedtest.StartFake(t, nil)
	db := drivertest.Open(t, server.Addr(), memcacheddriver.WithTimeout(500*time.Millisecond),
		driver.WithDialTimeout(drivertest.Never), memcacheddriver.WithServerFailureLimit(3, retry))
	drivertest.Fill(t, db, idle)
	// What is connected from here on is answered; the old connections are silent.
	server.SetScript(memcachedtest.Script{"*": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		if c.N <= idle {
			c.Hang()
			return
		}
		c.Default(cmd)
	}})
	var calls sync.WaitGroup
	for range 3 {
		calls.Go(func() {
			_, err := db.Get(t.Context(), "k")
			assert.Error(t, err)
		})
	}
	calls.Wait()
	s := drivertest.Stat(t, db)
	require.Equal(t, memcacheddriver.ServerDown, s.State)
	require.Zero(t, s.Idle)
	time.Sleep(retry)
	_, err := db.Get(t.Context(), "k")
	require.Equal(t, kv.ErrNotFound, err, "the first probe used a connection from before")
}

// Other calls need not wait for the last reply of a long batch.
func TestABatchThatProbesBringsTheServerBackWithItsFirstReply(t *testing.T) {
	t.Parallel()
	const retry = 200 * time.Millisecond
	rest := make(chan struct{})
	f, db := openDown(t, retry, memcachedtest.Script{"delete": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		if cmd.Keys()[0] == "a" || c.Wait(rest) {
			c.Say("DELETED\r\n")
		}
	}})
	time.Sleep(retry)
	done := make(chan error, 1)
	go func() {
		_, err := db.Delete(t.Context(), "a", "b", "c")
		done <- err
	}()
	memcachedtest.Eventually(t, func() bool { return f.Count("delete") >= 2 }, "the batch has its first reply")
	memcachedtest.Eventually(t, func() bool { return drivertest.Stat(t, db).State == memcacheddriver.ServerUp },
		"the server is up while the batch runs")
	_, err := db.Get(t.Context(), "k")
	assert.Equal(t, kv.ErrNotFound, err)
	close(rest)
	assert.NoError(t, <-done)
}
