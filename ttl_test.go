package memcacheddriver_test

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// setters store "1" with a ttl by every call that takes one.
var setters = map[string]func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string, ttl time.Duration) error{
	"Set": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string, ttl time.Duration) error {
		return db.Set(ctx, key, []byte("1"), ttl)
	},
	"SetNX": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string, ttl time.Duration) error {
		_, err := db.SetNX(ctx, key, []byte("1"), ttl)
		return err
	},
	"SetXX": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string, ttl time.Duration) error {
		if err := db.Set(ctx, key, nil, 0); err != nil {
			return err
		}
		_, err := db.SetXX(ctx, key, []byte("1"), ttl)
		return err
	},
	"MSet": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string, ttl time.Duration) error {
		return db.MSet(ctx, map[string][]byte{key: []byte("1"), newKey(): nil}, ttl)
	},
	"MSet of one": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string, ttl time.Duration) error {
		return db.MSet(ctx, map[string][]byte{key: []byte("1")}, ttl)
	},
	"Expire": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string, ttl time.Duration) error {
		if err := db.Set(ctx, key, []byte("1"), time.Hour); err != nil {
			return err
		}
		return db.Expire(ctx, key, ttl)
	},
	"CompareAndSwap": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string, ttl time.Duration) error {
		if err := db.Set(ctx, key, nil, time.Hour); err != nil {
			return err
		}
		return db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { return []byte("1"), nil }, memcacheddriver.CASTTL(ttl))
	},
}

// What the server makes of a TTL.
func TestTTLOnTheServer(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	const day = 24 * 60 * 60
	addr := memcachedtest.Addr(t)
	db := openDB(t, addr)
	for by, set := range setters {
		for _, c := range []struct {
			ttl  time.Duration
			want int64 // seconds
		}{
			{0, -1},
			{10 * time.Second, 10},
			{9500 * time.Millisecond, 10},
			{time.Hour, 3600},
			{30 * day * time.Second, 30 * day},
			{30*day*time.Second + 1, 30*day + 1},
			{60 * day * time.Second, 60 * day},
			{200 * 365 * day * time.Second, math.MaxInt32 - time.Now().Unix()}, // past int32
		} {
			key := newKey()
			require.NoError(t, set(ctx, db, key, c.ttl), by)
			got, ok := serverTTL(t, addr, key)
			require.True(t, ok, "%s: with %v the key is not there", by, c.ttl)
			if c.want < 0 {
				assert.Equal(t, c.want, got, "%s: %v", by, c.ttl)
			} else {
				// memcached's clock is a second off at most; the machine may be slow.
				assert.LessOrEqual(t, got, c.want+2, "%s: %v", by, c.ttl)
				assert.GreaterOrEqual(t, got, c.want-8, "%s: %v", by, c.ttl)
			}
			assert.Equal(t, "VA 1", askServer(t, addr, "mg "+key+" v"), by)
		}

		for _, ttl := range []time.Duration{-1, -time.Second, math.MinInt64} {
			key := newKey()
			require.NoError(t, set(ctx, db, key, ttl), by)
			_, err := db.Get(ctx, key)
			assert.True(t, err == kv.ErrNotFound, "%s: with %v the key lives: %v", by, ttl, err)
		}
	}
}

// A TTL below a second ends, and is not for ever.
func TestShortTTLEnds(t *testing.T) {
	t.Parallel()
	metaAndClassic(t, func(t *testing.T, addr string) {
		for by, set := range setters {
			t.Run(by, func(t *testing.T) {
				t.Parallel()
				ctx := t.Context()
				db := openShared(t) // by a driver that knows of nothing
				key := newKey()
				require.NoError(t, set(ctx, openDB(t, addr), key, 900*time.Millisecond))
				eventually(t, func() bool {
					n, err := db.Exists(ctx, key)
					require.NoError(t, err)
					return n == 0
				}, "a key set for 900 ms is gone")
				_, err := db.Get(ctx, key)
				assert.True(t, err == kv.ErrNotFound, "%v", err)
				all, err := db.MGet(ctx, []string{key, newKey()})
				assert.NoError(t, err)
				assert.Equal(t, [][]byte{nil, nil}, all)
				ok, err := db.SetXX(ctx, key, nil, 0)
				assert.NoError(t, err)
				assert.False(t, ok)
				ok, err = db.SetNX(ctx, key, nil, 0)
				assert.NoError(t, err)
				assert.True(t, ok)
			})
		}
	})
}

func TestTTLQueryIsOptIn(t *testing.T) {
	t.Parallel()
	db := openShared(t)
	key := newKey()
	require.NoError(t, db.Set(t.Context(), key, nil, time.Minute))
	_, err := db.TTL(t.Context(), key)
	assert.ErrorIs(t, err, kv.ErrNotSupported)
	assert.NoError(t, db.Expire(t.Context(), key, time.Hour), "Expire works all the same")
	assert.EqualValues(t, 1, db.Stats()[0].Dials)
}

func TestTTLQuery(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	addr := memcachedtest.Addr(t)
	for name, db := range map[string]*memcacheddriver.MemcachedDB{
		"option": openDB(t, addr, memcacheddriver.WithTTLQuery()),
		"DSN":    openDB(t, addr+"?ttl_query=true"),
	} {
		key := newKey()
		_, err := db.TTL(ctx, key)
		assert.True(t, err == kv.ErrNotFound, "%s: %v", name, err)

		require.NoError(t, db.Set(ctx, key, nil, time.Hour))
		ttl, err := db.TTL(ctx, key)
		require.NoError(t, err, name)
		assert.LessOrEqual(t, ttl, time.Hour+time.Second)
		assert.Greater(t, ttl, time.Hour-time.Minute)

		require.NoError(t, db.Expire(ctx, key, time.Minute))
		ttl, err = db.TTL(ctx, key)
		require.NoError(t, err)
		assert.LessOrEqual(t, ttl, time.Minute+time.Second)
		assert.Greater(t, ttl, 30*time.Second)

		require.NoError(t, db.Expire(ctx, key, 0))
		ttl, err = db.TTL(ctx, key)
		require.NoError(t, err)
		assert.Equal(t, memcacheddriver.NoExpiry, ttl)
		assert.EqualValues(t, -1, ttl, "what Grove's mock says of a key without expiry")

		require.NoError(t, db.Expire(ctx, key, -time.Second))
		_, err = db.TTL(ctx, key)
		assert.True(t, err == kv.ErrNotFound, "%s: %v", name, err)
	}
}

// Where the server does not speak the meta protocol, TTL cannot be asked for.
func TestTTLQueryWithoutMeta(t *testing.T) {
	t.Parallel()
	db := openDB(t, startClassic(t, memcachedtest.Addr(t)), memcacheddriver.WithTTLQuery())
	key := newKey()
	require.NoError(t, db.Set(t.Context(), key, nil, time.Minute))
	for range 2 {
		_, err := db.TTL(t.Context(), key)
		assert.ErrorIs(t, err, kv.ErrNotSupported)
	}
	assert.NoError(t, db.Expire(t.Context(), key, time.Hour))
}

// Expire leaves value and flags alone.
func TestExpireKeepsTheItem(t *testing.T) {
	t.Parallel()
	db := openShared(t)
	key := newKey()
	require.NoError(t, db.Client().Set(&memcache.Item{Key: key, Value: []byte("v"), Flags: 7}))
	require.NoError(t, db.Expire(t.Context(), key, time.Minute))
	item, err := db.Client().Get(key)
	require.NoError(t, err)
	assert.Equal(t, "v", string(item.Value))
	assert.EqualValues(t, 7, item.Flags)
}
