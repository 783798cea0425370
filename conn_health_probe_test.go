package memcacheddriver_test

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
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

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
