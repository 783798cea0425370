package memcacheddriver_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/middleware"
	"github.com/xraph/grove/kv/plugins"
)

// interruptGrove returns a store whose caller waits, when its nth call has come
// back, until another one has done what between does.
func interruptGrove(t *testing.T, n int, between func()) *kv.Store {
	t.Helper()
	store, calls := drivertest.OpenStore(t, memcachedtest.Addr(t)), 0
	store.Hooks().AddHook(middleware.NewLogging(groveLog{info: func(map[string]any) {
		if calls++; calls == n {
			between()
		}
	}}))
	return store
}

func testGroveCounter(t *testing.T) {
	ctx := t.Context()
	name := drivertest.Key()
	store := drivertest.OpenStore(t, memcachedtest.Addr(t))
	yours := plugins.NewAtomicCounter(store, name)
	mine := plugins.NewAtomicCounter(interruptGrove(t, 1, func() {
		_, err := yours.Increment(ctx, 1)
		require.NoError(t, err)
	}), name)
	n, err := mine.Increment(ctx, 1)
	require.NoError(t, err)
	assert.EqualValues(t, 1, n, "as the other one's")
	n, err = yours.Get(ctx)
	require.NoError(t, err)
	assert.EqualValues(t, 1, n, "one of two is lost")

	// What the page says to use instead.
	const callers = 20
	key := drivertest.Key()
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			_, err := incrementGrove(t, store, key)
			assert.NoError(t, err)
		})
	}
	all.Wait()
	var got int
	require.NoError(t, store.Get(ctx, key, &got), "the JSON codec reads what memcached counts")
	assert.Equal(t, callers, got)
	require.NoError(t, memcacheddriver.Unwrap(store).Do(ctx, func(c *memcache.Client) error {
		n, err := c.Decrement(key, callers+1)
		assert.Zero(t, n)
		require.NoError(t, c.Delete(key))
		_, missing := c.Increment(key, 1)
		assert.Equal(t, memcache.ErrCacheMiss, missing)
		return err
	}))
}

// incrementGrove is docs/grove.md's.
func incrementGrove(t *testing.T, store *kv.Store, key string) (n uint64, err error) {
	err = memcacheddriver.Unwrap(store).Do(t.Context(), func(c *memcache.Client) error {
		err := c.Add(&memcache.Item{Key: key, Value: []byte("0"), Expiration: 60})
		if err != nil && err != memcache.ErrNotStored { // it is there
			return err
		}
		n, err = c.Increment(key, 1)
		return err
	})
	return n, err
}

func testGroveRateLimiter(t *testing.T) {
	ctx, addr := t.Context(), memcachedtest.Addr(t)
	prefix := drivertest.Key()
	store := drivertest.OpenStore(t, addr)
	yours := plugins.NewRateLimiter(store, prefix, 1, time.Hour)
	allow := func(limit *plugins.RateLimiter) bool {
		r, err := limit.Allow(ctx, "ann")
		require.NoError(t, err)
		return r.Allowed
	}
	mine := plugins.NewRateLimiter(interruptGrove(t, 1, func() {
		assert.True(t, allow(yours))
	}), prefix, 1, time.Hour)
	assert.True(t, allow(mine), "two of one")
	assert.False(t, allow(mine))

	// Each request that is allowed begins the window anew.
	prefix = drivertest.Key()
	slow := plugins.NewRateLimiter(store, prefix, 2, time.Hour)
	assert.True(t, allow(slow))
	require.NoError(t, store.Expire(ctx, prefix+":ann", time.Minute), "59 minutes later")
	assert.True(t, allow(slow))
	seconds, ok := drivertest.ServerTTL(t, addr, prefix+":ann")
	assert.True(t, ok)
	assert.Greater(t, seconds, int64(3000))

	// What the page says to use instead does not.
	key := drivertest.Key()
	for want := range uint64(2) {
		n, err := incrementGrove(t, store, key)
		require.NoError(t, err)
		assert.Equal(t, want+1, n)
		seconds, ok = drivertest.ServerTTL(t, addr, key)
		assert.True(t, ok)
		assert.LessOrEqual(t, seconds, int64(60))
		require.NoError(t, store.Expire(ctx, key, 30*time.Second))
	}
	seconds, ok = drivertest.ServerTTL(t, addr, key)
	assert.True(t, ok)
	assert.LessOrEqual(t, seconds, int64(30))
}

func testGroveLeaderboard(t *testing.T) {
	ctx := t.Context()
	name := drivertest.Key()
	yours := plugins.NewLeaderboard(drivertest.OpenStore(t, memcachedtest.Addr(t)), name)
	mine := plugins.NewLeaderboard(interruptGrove(t, 1, func() {
		require.NoError(t, yours.Add(ctx, "bob", 1))
	}), name)
	require.NoError(t, mine.Add(ctx, "ann", 2))
	_, err := yours.Score(ctx, "bob")
	assert.Equal(t, kv.ErrNotFound, err, "the one who came between is lost")
	assert.ErrorIs(t, yours.Add(ctx, strings.Repeat("x", 1<<20), 3), memcacheddriver.ErrValueTooLarge, "all are one value")
}

func testGroveQueue(t *testing.T) {
	ctx := t.Context()
	name := drivertest.Key()
	yours := plugins.NewQueue(drivertest.OpenStore(t, memcachedtest.Addr(t)), name, plugins.WithVisibilityTimeout(-time.Second))
	add := func(q *plugins.Queue, payload string) {
		_, err := q.Enqueue(ctx, payload)
		require.NoError(t, err)
	}
	size := func() int {
		n, err := yours.Size(ctx)
		require.NoError(t, err)
		return n
	}

	// The second call is the Get of the list of jobs.
	add(plugins.NewQueue(interruptGrove(t, 2, func() { add(yours, "yours") }), name), "mine")
	assert.Equal(t, 1, size(), "one of two is lost")

	var first *plugins.Job
	var err error
	mine := plugins.NewQueue(interruptGrove(t, 1, func() {
		first, err = yours.Dequeue(ctx)
		require.NoError(t, err)
	}), name)
	second, err := mine.Dequeue(ctx)
	require.NoError(t, err)
	assert.Equal(t, first, second, "the other one is done twice")

	// Nobody has acknowledged it, and the time for that is over.
	job, err := yours.Dequeue(ctx)
	require.NoError(t, err)
	assert.Nil(t, job, "it does not come back")

	// A Get of the list that fails empties it.
	server := memcachedtest.StartFake(t, memcachedtest.Script{
		"gets": memcachedtest.Say("SERVER_ERROR out of memory\r\n"),
		"set":  memcachedtest.Say("STORED\r\n"),
	})
	id, err := plugins.NewQueue(drivertest.OpenStore(t, server.Addr()), name).Enqueue(ctx, "the only one")
	require.NoError(t, err)
	assert.Positive(t, server.Count("gets"))
	assert.Contains(t, server.Received(), "\r\n[\""+id+"\"]\r\n")
}

func testGroveLockOfAnother(t *testing.T) {
	ctx := t.Context()
	name := drivertest.Key()
	store := drivertest.OpenStore(t, memcachedtest.Addr(t))
	mine, yours, third := plugins.NewLock(store, name, time.Minute), plugins.NewLock(store, name, time.Minute), plugins.NewLock(store, name, time.Minute)
	expire := func(l *plugins.Lock) { require.NoError(t, l.Extend(ctx, -time.Second)) }

	require.NoError(t, mine.Acquire(ctx))
	expire(mine)
	require.NoError(t, yours.Acquire(ctx))
	require.NoError(t, mine.Extend(ctx, time.Hour), "of what is no more its own")
	require.NoError(t, mine.Release(ctx))
	require.NoError(t, third.Acquire(ctx), "while yours has it")

	// What the page says to use instead.
	key := drivertest.Key()
	require.NoError(t, store.SetRaw(ctx, key, []byte("yours"), kv.WithNX(), kv.WithTTL(time.Minute)))
	assert.Error(t, releaseGrove(t, store, key, "mine"))
	assert.Equal(t, kv.ErrConflict, store.SetRaw(ctx, key, []byte("third"), kv.WithNX()))
	require.NoError(t, releaseGrove(t, store, key, "yours"))
	require.NoError(t, store.SetRaw(ctx, key, []byte("third"), kv.WithNX()))
}

// releaseGrove is docs/grove.md's.
func releaseGrove(t *testing.T, store *kv.Store, key, token string) error {
	return memcacheddriver.Unwrap(store).CompareAndSwap(t.Context(), key, func(current []byte) ([]byte, error) {
		if string(current) != token {
			return nil, kv.ErrConflict // somebody else has it by now
		}
		return current, nil
	}, memcacheddriver.CASTTL(-time.Second)) // expired
}
