package memcacheddriver_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/codec"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/keyspace"
	"github.com/xraph/grove/kv/kvtest"
	"github.com/xraph/grove/kv/plugins"
)

func testRegistry(t *testing.T, dsn string) {
	ctx := t.Context()
	drv, err := kv.OpenDriver(ctx, "memcached", "memcached://"+dsn+"?timeout=10s&max_idle_conns=4")
	require.NoError(t, err)
	store, err := kv.Open(drv, kv.WithCodec(codec.MsgPack()))
	require.NoError(t, err)
	defer store.Close()
	key := drivertest.Key()
	require.NoError(t, store.Set(ctx, key, "value"))
	var got string
	require.NoError(t, store.Get(ctx, key, &got))
	assert.Equal(t, "value", got)
}

// promised is the driver as Grove's page promises it: without a TTL query. The
// suite's TTLExpire, which asks for one, goes by the interface.
type promised struct {
	driver.Driver
	driver.BatchDriver
	driver.CASDriver
}

func testConformance(t *testing.T, dsn string) {
	t.Run("default", func(t *testing.T) {
		db := drivertest.Open(t, dsn)
		kvtest.RunConformanceSuite(t, promised{db, db, db})
	})
	t.Run("with the TTL query", func(t *testing.T) {
		kvtest.RunConformanceSuite(t, drivertest.Open(t, dsn, memcacheddriver.WithTTLQuery()))
	})
}

// Grove's plugins. None needs a scan.
func testPlugins(t *testing.T, dsn string) {
	ctx := t.Context()
	store := drivertest.OpenStore(t, dsn)

	t.Run("counter", func(t *testing.T) {
		c := plugins.NewAtomicCounter(store, drivertest.Key())
		n, err := c.Get(ctx)
		require.NoError(t, err, "the plugin compares a miss by ==")
		assert.Zero(t, n)
		for want := range int64(3) {
			n, err = c.Increment(ctx, 1)
			require.NoError(t, err)
			assert.Equal(t, want+1, n)
		}
		n, err = c.Decrement(ctx, 2)
		require.NoError(t, err)
		assert.EqualValues(t, 1, n)
		require.NoError(t, c.Set(ctx, 9))
		require.NoError(t, c.Reset(ctx))
		n, err = c.Get(ctx)
		require.NoError(t, err)
		assert.Zero(t, n)
	})
	t.Run("rate limit", func(t *testing.T) {
		limit := plugins.NewRateLimiter(store, drivertest.Key(), 3, 2*time.Minute)
		for i := range 5 {
			r, err := limit.Allow(ctx, "ann")
			require.NoError(t, err)
			assert.Equal(t, i < 3, r.Allowed, "request %d", i)
			assert.Equal(t, max(0, 2-i), r.Remaining, "request %d", i)
		}
		r, err := limit.Allow(ctx, "bob")
		require.NoError(t, err)
		assert.True(t, r.Allowed)
		require.NoError(t, limit.Reset(ctx, "ann"))
		r, err = limit.Allow(ctx, "ann")
		require.NoError(t, err)
		assert.True(t, r.Allowed)

		// The window ends.
		short := plugins.NewRateLimiter(store, drivertest.Key(), 1, time.Second)
		_, err = short.Allow(ctx, "ann")
		require.NoError(t, err)
		memcachedtest.Eventually(t, func() bool {
			r, err := short.Allow(ctx, "ann")
			require.NoError(t, err)
			return r.Allowed
		}, "the window is over")
	})
	t.Run("lock", func(t *testing.T) { testLock(t, store) })
	t.Run("session", func(t *testing.T) { testSessions(t, store) })
	t.Run("leaderboard", func(t *testing.T) {
		board := plugins.NewLeaderboard(store, drivertest.Key())
		size, err := board.Size(ctx)
		require.NoError(t, err, "the plugin compares a miss by ==")
		assert.Zero(t, size)
		for member, score := range map[string]float64{"ann": 3, "bob": 1, "eve": 2} {
			require.NoError(t, board.Add(ctx, member, score))
		}
		top, err := board.TopN(ctx, 2)
		require.NoError(t, err)
		assert.Equal(t, []plugins.LeaderboardEntry{{Member: "ann", Score: 3}, {Member: "eve", Score: 2}}, top)
		rank, err := board.Rank(ctx, "bob")
		require.NoError(t, err)
		assert.Equal(t, 3, rank)
		require.NoError(t, board.Remove(ctx, "ann"))
		_, err = board.Score(ctx, "ann")
		assert.Equal(t, kv.ErrNotFound, err)
	})
	t.Run("queue", func(t *testing.T) {
		q := plugins.NewQueue(store, drivertest.Key(), plugins.WithVisibilityTimeout(time.Minute))
		job, err := q.Dequeue(ctx)
		require.NoError(t, err, "the plugin compares a miss by ==")
		assert.Nil(t, job)
		for _, payload := range []string{"first", "second"} {
			_, err := q.Enqueue(ctx, payload)
			require.NoError(t, err)
		}
		for left, payload := range []string{"first", "second"} {
			job, err := q.Dequeue(ctx)
			require.NoError(t, err)
			require.NotNil(t, job)
			assert.Equal(t, payload, job.Payload)
			require.NoError(t, q.Ack(ctx, job.ID))
			size, err := q.Size(ctx)
			require.NoError(t, err)
			assert.Equal(t, 1-left, size)
		}
	})
}

func testLock(t *testing.T, store *kv.Store) {
	ctx := t.Context()
	name := drivertest.Key()
	mine, yours := plugins.NewLock(store, name, time.Minute), plugins.NewLock(store, name, time.Minute)
	require.NoError(t, mine.Acquire(ctx))
	assert.ErrorIs(t, yours.Acquire(ctx), kv.ErrConflict)
	assert.Error(t, yours.AcquireWithRetry(ctx, time.Millisecond, 3))
	require.NoError(t, mine.Extend(ctx, 2*time.Minute))
	require.NoError(t, mine.Release(ctx))
	require.NoError(t, yours.Acquire(ctx))
	require.NoError(t, yours.Extend(ctx, -time.Second), "a lock that ends at once")
	assert.ErrorIs(t, yours.Extend(ctx, time.Minute), kv.ErrNotFound)
	require.NoError(t, mine.Acquire(ctx))

	// A lock whose owner died is free when its time is over.
	name = drivertest.Key()
	require.NoError(t, plugins.NewLock(store, name, time.Second).Acquire(ctx))
	require.NoError(t, plugins.NewLock(store, name, time.Minute).AcquireWithRetry(ctx, 20*time.Millisecond, 500))
}

func testSessions(t *testing.T, store *kv.Store) {
	ctx := t.Context()
	type data struct{ User string }
	sessions := plugins.NewSessionStore(store, plugins.WithSessionPrefix(drivertest.Key()), plugins.WithSessionTTL(time.Minute))
	id, err := sessions.Create(ctx, data{"ann"})
	require.NoError(t, err)
	var got data
	require.NoError(t, sessions.Get(ctx, id, &got))
	assert.Equal(t, "ann", got.User)
	require.NoError(t, sessions.Update(ctx, id, data{"bob"}))
	require.NoError(t, sessions.Touch(ctx, id))
	there, err := sessions.Exists(ctx, id)
	require.NoError(t, err)
	assert.True(t, there)
	require.NoError(t, sessions.Delete(ctx, id))
	there, err = sessions.Exists(ctx, id)
	require.NoError(t, err)
	assert.False(t, there)
	assert.Equal(t, kv.ErrNotFound, sessions.Get(ctx, id, &got))
	assert.Equal(t, kv.ErrNotFound, sessions.Touch(ctx, id))
}

func testKeyspace(t *testing.T, dsn string) {
	ctx := t.Context()
	type User struct {
		Name string `json:"name" msgpack:"name"`
		Age  int    `json:"age" msgpack:"age"`
	}
	store := drivertest.OpenStore(t, dsn)
	for name, users := range map[string]*keyspace.Keyspace[User]{
		"JSON":    keyspace.New[User](store, drivertest.Key(), keyspace.WithTTL(time.Hour)),
		"MsgPack": keyspace.New[User](store, drivertest.Key(), keyspace.WithTTL(time.Hour), keyspace.WithCodec(codec.MsgPack()), keyspace.WithSeparator("/")),
	} {
		ann, bob := User{"Ann", 30}, User{"Bob", 40}
		_, err := users.Get(ctx, "ann")
		assert.True(t, err == kv.ErrNotFound, "%s: %v", name, err)
		require.NoError(t, users.Set(ctx, "ann", ann))
		require.NoError(t, users.Set(ctx, "bob", bob, kv.WithTTL(time.Minute)))
		got, err := users.Get(ctx, "ann")
		require.NoError(t, err, name)
		assert.Equal(t, ann, got)
		assert.Equal(t, kv.ErrConflict, users.Set(ctx, "ann", bob, kv.WithNX()))
		assert.Equal(t, kv.ErrNotFound, users.Set(ctx, "eve", bob, kv.WithXX()))

		entry, err := users.GetEntry(ctx, "ann")
		require.NoError(t, err, name)
		assert.Equal(t, ann, entry.Value)
		assert.Zero(t, entry.TTL, "no TTL query")

		n, err := users.Exists(ctx, "ann", "bob", "eve")
		require.NoError(t, err)
		assert.EqualValues(t, 2, n)
		if name == "JSON" { // Grove's MGet reads with the store's codec
			many, err := users.MGet(ctx, []string{"bob", "eve", "ann"})
			require.NoError(t, err)
			assert.Equal(t, map[string]User{"ann": ann, "bob": bob}, many)
		}
		assert.ErrorIs(t, users.Scan(ctx, "*", func(string) error { return nil }), kv.ErrNotSupported)
		require.NoError(t, users.Delete(ctx, "ann", "bob", "eve"))
		n, err = users.Exists(ctx, "ann", "bob", "eve")
		require.NoError(t, err)
		assert.Zero(t, n)
	}
}
