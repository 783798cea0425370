package memcacheddriver_test

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// setter gives a key that is not there a value with a ttl.
type setter func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string, value []byte, ttl time.Duration) error

// setters are one for every call that takes a TTL.
var setters = map[string]setter{
	"Set": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string, value []byte, ttl time.Duration) error {
		return db.Set(ctx, key, value, ttl)
	},
	"SetNX": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string, value []byte, ttl time.Duration) error {
		return stored(db.SetNX(ctx, key, value, ttl))
	},
	"SetXX": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string, value []byte, ttl time.Duration) error {
		if err := db.Set(ctx, key, []byte("old"), 0); err != nil {
			return err
		}
		return stored(db.SetXX(ctx, key, value, ttl))
	},
	"MSet": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string, value []byte, ttl time.Duration) error {
		return db.MSet(ctx, map[string][]byte{key: value, drivertest.Key(): []byte("another")}, ttl)
	},
	"MSet of one": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string, value []byte, ttl time.Duration) error {
		return db.MSet(ctx, map[string][]byte{key: value}, ttl)
	},
	"Expire": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string, value []byte, ttl time.Duration) error {
		if err := db.Set(ctx, key, value, time.Hour); err != nil {
			return err
		}
		return db.Expire(ctx, key, ttl)
	},
	"CompareAndSwap": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string, value []byte, ttl time.Duration) error {
		if err := db.Set(ctx, key, []byte("old"), time.Hour); err != nil {
			return err
		}
		update := func([]byte) ([]byte, error) { return value, nil }
		return db.CompareAndSwap(ctx, key, update, memcacheddriver.CASTTL(ttl))
	},
}

// stored is the error of a SetNX or SetXX that must store.
func stored(ok bool, err error) error {
	if err == nil && !ok {
		return errors.New("nothing was stored")
	}
	return err
}

// life is a TTL, and when the call that gave it began.
type life struct {
	began time.Time
	ttl   time.Duration
}

// assertLives checks what key has left, by a driver with WithTTLQuery, and returns
// it. The server counts whole seconds, takes a date by its own clock, and ticks
// late on a busy machine.
func assertLives(t *testing.T, db *memcacheddriver.MemcachedDB, key string, life life) (left time.Duration) {
	t.Helper()
	before := time.Since(life.began)
	left, err := db.TTL(t.Context(), key)
	require.NoError(t, err, "%v after %v", life.ttl, before)
	if life.ttl == 0 {
		assert.Equal(t, memcacheddriver.NoExpiry, left)
		return left
	}
	assert.LessOrEqual(t, left, life.ttl-before+5*time.Second, "%v after %v", life.ttl, before)
	assert.GreaterOrEqual(t, left, life.ttl-time.Since(life.began)-3*time.Second, "%v after %v", life.ttl, before)
	return left
}

func TestEveryTTLReachesTheServer(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	untilInt32 := time.Until(time.Unix(math.MaxInt32, 0))
	addr := memcachedtest.Addr(t)
	db := drivertest.Open(t, addr, memcacheddriver.WithTTLQuery())
	ctx := t.Context()
	for by, set := range setters {
		t.Run(by, func(t *testing.T) {
			for _, ttl := range []time.Duration{
				0, 20 * time.Second, 9500 * time.Millisecond, time.Hour, 30 * day, 30*day + 1, 60 * day, 200 * 365 * day,
			} {
				key := drivertest.Key()
				began := time.Now()
				require.NoError(t, set(ctx, db, key, []byte("1"), ttl), "%v", ttl)
				assertLives(t, db, key, life{began, min(ttl, untilInt32)})
				assert.Equal(t, "VA 1", drivertest.AskServer(t, addr, "mg "+key+" v"))
			}
			for _, ttl := range []time.Duration{-1, -time.Second, math.MinInt64} {
				key := drivertest.Key()
				require.NoError(t, set(ctx, db, key, []byte("1"), ttl), "%v", ttl)
				_, err := db.Get(ctx, key)
				assert.True(t, err == kv.ErrNotFound, "with %v the key lives: %v", ttl, err)
			}
		})
	}
}

// A TTL below a second is not for ever, whatever the server speaks.
func TestShortTTLEnds(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	other := drivertest.OpenShared(t) // which knows nothing of it
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		db := drivertest.Open(t, addr)
		keys := make(map[string]string)
		for by, set := range setters {
			keys[by] = drivertest.Key()
			require.NoError(t, set(ctx, db, keys[by], []byte("1"), 900*time.Millisecond), by)
		}
		for by, key := range keys {
			memcachedtest.Eventually(t, func() bool {
				n, err := other.Exists(ctx, key)
				require.NoError(t, err)
				return n == 0
			}, "%s: a key set for 900 ms is gone", by)
			_, err := other.Get(ctx, key)
			assert.True(t, err == kv.ErrNotFound, "%s: %v", by, err)
			all, err := other.MGet(ctx, []string{key, drivertest.Key()})
			assert.NoError(t, err, by)
			assert.Equal(t, [][]byte{nil, nil}, all, by)
			ok, err := other.SetXX(ctx, key, nil, 0)
			assert.NoError(t, err, by)
			assert.False(t, ok, by)
			assert.NoError(t, stored(other.SetNX(ctx, key, nil, 0)), by)
		}
	})
}

func TestTTLQueryIsOptIn(t *testing.T) {
	t.Parallel()
	db, key := drivertest.OpenShared(t), drivertest.Key()
	require.NoError(t, db.Set(t.Context(), key, nil, time.Minute))
	_, err := db.TTL(t.Context(), key)
	assert.ErrorIs(t, err, kv.ErrNotSupported)
	assert.NoError(t, db.Expire(t.Context(), key, time.Hour), "Expire works all the same")
	assert.EqualValues(t, 1, drivertest.Dials(db))
}

// Whenever in its second the server's clock ticks.
func TestTTLIsNotMoreThanWasGiven(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	db := drivertest.OpenShared(t, memcacheddriver.WithTTLQuery())
	ctx := t.Context()
	for range 20 {
		for _, ttl := range []time.Duration{2 * time.Second, time.Hour, 30 * day, 30*day + time.Second, 31 * day, 365 * day} {
			key := drivertest.Key()
			require.NoError(t, db.Set(ctx, key, nil, ttl))
			left, err := db.TTL(ctx, key)
			require.NoError(t, err)
			assert.LessOrEqual(t, left, ttl)
			assert.Greater(t, left, ttl-5*time.Second)
		}
		time.Sleep(60 * time.Millisecond)
	}
}

func TestTTLFollowsExpire(t *testing.T) {
	t.Parallel()
	ctx, addr := t.Context(), memcachedtest.Addr(t)
	for name, db := range map[string]*memcacheddriver.MemcachedDB{
		"option": drivertest.Open(t, addr, memcacheddriver.WithTTLQuery()),
		"DSN":    drivertest.Open(t, addr+"?ttl_query=true"),
	} {
		key := drivertest.Key()
		_, err := db.TTL(ctx, key)
		assert.True(t, err == kv.ErrNotFound, "%s: %v", name, err)

		began := time.Now()
		require.NoError(t, db.Set(ctx, key, nil, time.Hour))
		assertLives(t, db, key, life{began, time.Hour})
		began = time.Now()
		require.NoError(t, db.Expire(ctx, key, time.Minute))
		assertLives(t, db, key, life{began, time.Minute})
		require.NoError(t, db.Expire(ctx, key, 0))
		left, err := db.TTL(ctx, key)
		require.NoError(t, err)
		assert.EqualValues(t, -1, left, "what Grove's mock says of a key without expiry")

		require.NoError(t, db.Expire(ctx, key, -time.Second))
		_, err = db.TTL(ctx, key)
		assert.True(t, err == kv.ErrNotFound, "%s: %v", name, err)
	}
}

func TestTTLQueryNeedsMeta(t *testing.T) {
	t.Parallel()
	db := drivertest.Open(t, memcachedtest.StartClassic(t, memcachedtest.Addr(t)), memcacheddriver.WithTTLQuery())
	key := drivertest.Key()
	require.NoError(t, db.Set(t.Context(), key, nil, time.Minute))
	for range 2 {
		_, err := db.TTL(t.Context(), key)
		assert.ErrorIs(t, err, kv.ErrNotSupported)
	}
	assert.NoError(t, db.Expire(t.Context(), key, time.Hour))
}

func TestExpireKeepsValueAndFlags(t *testing.T) {
	t.Parallel()
	db, key := drivertest.OpenShared(t), drivertest.Key()
	require.NoError(t, db.Client().Set(&memcache.Item{Key: key, Value: []byte("v"), Flags: 7}))
	require.NoError(t, db.Expire(t.Context(), key, time.Minute))
	item, err := db.Client().Get(key)
	require.NoError(t, err)
	assert.Equal(t, "v", string(item.Value))
	assert.EqualValues(t, 7, item.Flags)
}
