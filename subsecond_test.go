package memcacheddriver_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func openSubsecond(t *testing.T, addr string) *memcacheddriver.MemcachedDB {
	t.Helper()
	db := memcacheddriver.New()
	require.NoError(t, db.Open(t.Context(), addr))
	t.Cleanup(func() { assert.NoError(t, db.Close()) })
	return db
}

// life returns how long key was still seen after since.
func life(t *testing.T, db *memcacheddriver.MemcachedDB, key string, since time.Time) time.Duration {
	t.Helper()
	for {
		seen := time.Since(since)
		n, err := db.Exists(context.Background(), key)
		require.NoError(t, err)
		if n == 0 {
			return seen
		}
		require.Less(t, seen, 10*time.Second, "the value never dies")
		time.Sleep(200 * time.Microsecond)
	}
}

func TestSubsecondTTLIsExact(t *testing.T) {
	db := openSubsecond(t, memcachedtest.Start(t).Addr())
	const ttl = 60 * time.Millisecond
	value := []byte("v")
	ctx := t.Context()
	for name, write := range map[string]func(key string) error{
		"Set":  func(key string) error { return db.Set(ctx, key, value, ttl) },
		"MSet": func(key string) error { return db.MSet(ctx, map[string][]byte{key: value, key + "2": value}, ttl) },
		"SetNX": func(key string) error {
			ok, err := db.SetNX(ctx, key, value, ttl)
			if err == nil && !ok {
				return kv.ErrConflict
			}
			return err
		},
		"SetXX": func(key string) error {
			if err := db.Set(ctx, key, value, 0); err != nil {
				return err
			}
			ok, err := db.SetXX(ctx, key, value, ttl)
			if err == nil && !ok {
				return kv.ErrNotFound
			}
			return err
		},
		"Expire": func(key string) error {
			if err := db.Set(ctx, key, value, time.Hour); err != nil {
				return err
			}
			return db.Expire(ctx, key, ttl)
		},
		"CompareAndSwap": func(key string) error {
			if err := db.Set(ctx, key, value, ttl); err != nil {
				return err
			}
			return db.CompareAndSwap(ctx, key, func(v []byte) ([]byte, error) { return append(v, '!'), nil })
		},
		"CASTTL": func(key string) error {
			if err := db.Set(ctx, key, value, 0); err != nil {
				return err
			}
			return db.CompareAndSwap(ctx, key, func(v []byte) ([]byte, error) { return v, nil }, memcacheddriver.CASTTL(ttl))
		},
	} {
		t.Run(name, func(t *testing.T) {
			var late []time.Duration
			for i := range 11 {
				key := fmt.Sprintf("%s-%d", name, i)
				start := time.Now()
				require.NoError(t, write(key))
				if wrote := time.Since(start); wrote > ttl/2 {
					continue // the machine is too busy to tell
				}
				lived := life(t, db, key, start)
				assert.Greater(t, lived, ttl-10*time.Millisecond, "it died early")
				late = append(late, lived-ttl)
			}
			require.NotEmpty(t, late)
			slices.Sort(late)
			assert.Less(t, late[len(late)/2], 40*time.Millisecond, "lateness %v", late)
		})
	}
}

func TestSubsecondConditionsHold(t *testing.T) {
	db := openSubsecond(t, memcachedtest.Start(t).Addr())
	ctx := t.Context()
	ok, err := db.SetXX(ctx, "absent", []byte("v"), 500*time.Millisecond)
	require.NoError(t, err)
	assert.False(t, ok)
	require.NoError(t, db.Set(ctx, "there", []byte("v"), 0))
	ok, err = db.SetNX(ctx, "there", []byte("w"), 500*time.Millisecond)
	require.NoError(t, err)
	assert.False(t, ok)
	assert.ErrorIs(t, db.Expire(ctx, "absent", 500*time.Millisecond), kv.ErrNotFound)
	assert.ErrorIs(t, db.Set(ctx, "large", make([]byte, 2<<20), 500*time.Millisecond), memcacheddriver.ErrValueTooLarge)
	err = db.MSet(ctx, map[string][]byte{"large": make([]byte, 2<<20), "small": []byte("v")}, 900*time.Millisecond)
	assert.ErrorIs(t, err, memcacheddriver.ErrValueTooLarge)
	_, err = db.Get(ctx, "small")
	assert.NoError(t, err)
}

// What was written since must not be removed with the value that it replaced.
func TestSubsecondRemovesOnlyItsOwn(t *testing.T) {
	server := memcachedtest.Start(t)
	db, other := openSubsecond(t, server.Addr()), openSubsecond(t, server.Addr())
	ctx := t.Context()
	const ttl = 50 * time.Millisecond
	for _, key := range []string{"set", "other", "swapped", "expire", "cas"} {
		require.NoError(t, db.Set(ctx, key, []byte("old"), ttl))
	}
	require.NoError(t, db.Set(ctx, "set", []byte("new"), time.Hour))
	require.NoError(t, other.Set(ctx, "other", []byte("new"), time.Hour))
	require.NoError(t, other.CompareAndSwap(ctx, "swapped", func([]byte) ([]byte, error) { return []byte("new"), nil }, memcacheddriver.CASTTL(time.Hour)))
	require.NoError(t, db.Expire(ctx, "expire", time.Hour))
	require.NoError(t, db.CompareAndSwap(ctx, "cas", func([]byte) ([]byte, error) { return []byte("new"), nil }, memcacheddriver.CASTTL(time.Hour)))
	time.Sleep(3 * ttl)
	values, err := db.MGet(ctx, []string{"set", "other", "swapped", "expire", "cas"})
	require.NoError(t, err)
	for i, value := range values {
		assert.NotNil(t, value, "value %d was removed", i)
	}
}

// A TTL of a second and more is the server's alone.
func TestWholeTTLsAreNotTouched(t *testing.T) {
	server := memcachedtest.Start(t)
	db := openSubsecond(t, server.Addr())
	require.NoError(t, db.Set(t.Context(), "k", []byte("v"), time.Second))
	require.NoError(t, db.Set(t.Context(), "l", []byte("v"), 2*time.Second))
	assert.Eventually(t, func() bool {
		n, err := db.Exists(t.Context(), "k", "l")
		return err == nil && n == 0
	}, 10*time.Second, 20*time.Millisecond)
	stats := server.Stats(t)
	assert.Equal(t, "0", stats["delete_hits"])
	assert.Equal(t, "0", stats["delete_misses"])
	assert.Equal(t, "0", stats["cas_badval"])
}

func TestSubsecondBackstop(t *testing.T) {
	server := memcachedtest.Start(t)
	db, other := openSubsecond(t, server.Addr()), openSubsecond(t, server.Addr())
	require.NoError(t, db.Set(t.Context(), "k", []byte("v"), 900*time.Millisecond))
	require.NoError(t, db.Close())
	_, err := other.Get(t.Context(), "k")
	require.NoError(t, err, "closing the driver is not the end of the value")
	assert.Less(t, life(t, other, "k", time.Now()), 5*time.Second)
}

func TestManySubsecondTTLs(t *testing.T) {
	server := memcachedtest.Start(t, "-m", "512")
	db := openSubsecond(t, server.Addr())
	const n = 100_000
	pairs := make(map[string][]byte, n)
	for i := range n {
		pairs[fmt.Sprintf("key-%d", i)] = []byte("v")
	}
	goroutines := runtime.NumGoroutine()
	require.NoError(t, db.MSet(t.Context(), pairs, 999*time.Millisecond))
	assert.Less(t, runtime.NumGoroutine(), goroutines+10, "no goroutine per key")
	assert.Eventually(t, func() bool { return server.Stats(t)["curr_items"] == "0" }, 20*time.Second, 20*time.Millisecond)
	assert.Equal(t, fmt.Sprint(n), server.Stats(t)["total_items"])
}

func TestCloseEndsRemoval(t *testing.T) {
	server := memcachedtest.Start(t)
	db := openSubsecond(t, server.Addr())
	require.NoError(t, db.Set(t.Context(), "k", []byte("v"), 10*time.Millisecond))
	server.Stop()
	defer server.Cont()
	time.Sleep(50 * time.Millisecond) // the removal waits for the server
	closed := make(chan error, 1)
	go func() { closed <- db.Close() }()
	select {
	case err := <-closed:
		assert.NoError(t, err)
	case <-time.After(2 * time.Second):
		t.Error("Close waits for the server")
	}
}

// An Expire counts also where the value had a TTL under a second before.
func TestSubsecondExpireReplaces(t *testing.T) {
	t.Parallel()
	db := openSubsecond(t, memcachedtest.Start(t).Addr())
	ctx := t.Context()
	require.NoError(t, db.Set(ctx, "longer", []byte("v"), 100*time.Millisecond))
	require.NoError(t, db.Expire(ctx, "longer", 900*time.Millisecond))
	require.NoError(t, db.Set(ctx, "shorter", []byte("v"), 900*time.Millisecond))
	start := time.Now()
	require.NoError(t, db.Expire(ctx, "shorter", 100*time.Millisecond))
	assert.Less(t, life(t, db, "shorter", start), 800*time.Millisecond)
	if time.Since(start) < 600*time.Millisecond {
		_, err := db.Get(ctx, "longer")
		assert.NoError(t, err)
	}
}

// A server without CAS numbers cannot be told which value to remove: none is.
func TestSubsecondWithoutCAS(t *testing.T) {
	t.Parallel()
	db := openSubsecond(t, memcachedtest.Start(t, "-C").Addr())
	ctx := t.Context()
	require.NoError(t, db.Set(ctx, "k", []byte("v"), 50*time.Millisecond))
	require.NoError(t, db.Set(ctx, "k", []byte("w"), time.Hour))
	time.Sleep(200 * time.Millisecond)
	_, err := db.Get(ctx, "k")
	assert.NoError(t, err, "a value with an hour to live was removed")
}
