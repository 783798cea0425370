package memcacheddriver_test

import (
	"bytes"
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

func TestCompareAndSwap(t *testing.T) {
	t.Parallel()
	metaAndClassic(t, func(t *testing.T, addr string) {
		ctx := t.Context()
		db := openDB(t, addr)
		key := newKey()
		require.NoError(t, db.Set(ctx, key, []byte("1"), 0))
		called := 0
		require.NoError(t, db.CompareAndSwap(ctx, key, func(current []byte) ([]byte, error) {
			called++
			assert.Equal(t, "1", string(current))
			current[0] = 'x' // it is update's
			return []byte("2"), nil
		}))
		assert.Equal(t, 1, called)
		got, err := db.Get(ctx, key)
		require.NoError(t, err)
		assert.Equal(t, "2", string(got))

		// The argument may be what is returned; nil is a value of no bytes.
		require.NoError(t, db.CompareAndSwap(ctx, key, func(current []byte) ([]byte, error) { return append(current, '3'), nil }))
		got, err = db.Get(ctx, key)
		require.NoError(t, err)
		assert.Equal(t, "23", string(got))
		require.NoError(t, db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { return nil, nil }))
		got, err = db.Get(ctx, key)
		require.NoError(t, err)
		assert.Equal(t, []byte{}, got)
	})
}

func TestCompareAndSwapConflict(t *testing.T) {
	t.Parallel()
	metaAndClassic(t, func(t *testing.T, addr string) {
		ctx := t.Context()
		db, other := openDB(t, addr), openDB(t, addr)
		for name, meanwhile := range map[string]func(key string) error{
			"set":       func(key string) error { return other.Set(ctx, key, []byte("other's"), 0) },
			"same":      func(key string) error { return other.Set(ctx, key, []byte("1"), 0) }, // written is changed
			"by itself": func(key string) error { return db.Set(ctx, key, []byte("other's"), 0) },
			"swap": func(key string) error {
				return db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { return []byte("other's"), nil })
			},
			"deleted and set": func(key string) error {
				if _, err := other.Delete(ctx, key); err != nil {
					return err
				}
				return other.Set(ctx, key, []byte("other's"), 0)
			},
		} {
			key := newKey()
			require.NoError(t, db.Set(ctx, key, []byte("1"), 0))
			err := db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) {
				require.NoError(t, meanwhile(key))
				return []byte("mine"), nil
			})
			require.ErrorIs(t, err, kv.ErrConflict, name)
			op := requireOpError(t, err)
			assert.Equal(t, "cas", op.Op)
			assert.Equal(t, addr, op.Server)
			assert.Equal(t, []string{key}, op.Keys)
			got, err := db.Get(ctx, key)
			require.NoError(t, err)
			assert.NotEqual(t, "mine", string(got), "%s: the loser wrote", name)
		}
	})
}

func TestCompareAndSwapOfWhatIsNotThere(t *testing.T) {
	t.Parallel()
	metaAndClassic(t, func(t *testing.T, addr string) {
		ctx := t.Context()
		db := openDB(t, addr)
		absent, deleted := newKey(), newKey()
		err := db.CompareAndSwap(ctx, absent, func([]byte) ([]byte, error) { t.Error("called"); return nil, nil })
		assert.True(t, err == kv.ErrNotFound, "%v", err)

		require.NoError(t, db.Set(ctx, deleted, []byte("1"), 0))
		err = db.CompareAndSwap(ctx, deleted, func([]byte) ([]byte, error) {
			n, err := db.Delete(ctx, deleted)
			require.NoError(t, err)
			require.EqualValues(t, 1, n)
			return []byte("2"), nil
		})
		assert.True(t, err == kv.ErrNotFound, "gone meanwhile: %v", err)
		n, err := db.Exists(ctx, absent, deleted)
		require.NoError(t, err)
		assert.Zero(t, n, "the swap brought a deleted key back")
	})
}

func TestCompareAndSwapUpdateFails(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := openShared(t)
	key := newKey()
	require.NoError(t, db.Set(ctx, key, []byte("1"), 0))
	own := errors.New("update's own")
	err := db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { return []byte("2"), own })
	assert.ErrorIs(t, err, own)
	assert.Equal(t, []string{key}, requireOpError(t, err).Keys)
	assert.Contains(t, err.Error(), "update's own")

	// Even where it is one that the driver has a meaning for.
	err = db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { return nil, memcache.ErrCASConflict })
	assert.ErrorIs(t, err, memcache.ErrCASConflict)
	assert.NotErrorIs(t, err, kv.ErrConflict)

	assert.PanicsWithValue(t, "update's own", func() {
		_ = db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { panic("update's own") })
	})
	got, err := db.Get(ctx, key)
	require.NoError(t, err)
	assert.Equal(t, "1", string(got), "a failed update was written")
}

func TestCompareAndSwapKeepsFlags(t *testing.T) {
	t.Parallel()
	metaAndClassic(t, func(t *testing.T, addr string) {
		db := openDB(t, addr)
		for _, flags := range []uint32{0, 1, 42, 1<<32 - 1} {
			key := newKey()
			require.NoError(t, db.Client().Set(&memcache.Item{Key: key, Value: []byte("1"), Flags: flags}))
			require.NoError(t, db.CompareAndSwap(t.Context(), key, func([]byte) ([]byte, error) { return []byte("2"), nil }))
			item, err := db.Client().Get(key)
			require.NoError(t, err)
			assert.Equal(t, "2", string(item.Value))
			assert.Equal(t, flags, item.Flags)
		}
	})
}

func TestCASTTL(t *testing.T) {
	t.Parallel()
	metaAndClassic(t, func(t *testing.T, addr string) {
		ctx := t.Context()
		db := openDB(t, addr)
		swap := func(key string, opts ...memcacheddriver.CASOption) {
			t.Helper()
			require.NoError(t, db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { return []byte("2"), nil }, opts...))
		}
		ttl := func(key string) int64 {
			t.Helper()
			seconds, ok := serverTTL(t, addrOf(t, addr), key)
			require.True(t, ok, "the key is gone")
			return seconds
		}
		for _, before := range []time.Duration{0, time.Minute, 90 * 24 * time.Hour} {
			key := newKey()
			require.NoError(t, db.Set(ctx, key, []byte("1"), before))
			swap(key, memcacheddriver.CASTTL(time.Hour))
			assert.InDelta(t, 3600, ttl(key), 10)
			swap(key, memcacheddriver.CASTTL(time.Hour), memcacheddriver.CASTTL(100*24*time.Hour)) // the last one counts
			assert.InDelta(t, 100*24*3600, ttl(key), 10)
			swap(key, memcacheddriver.CASTTL(0))
			assert.EqualValues(t, -1, ttl(key))
			swap(key, memcacheddriver.CASTTL(-time.Second))
			_, err := db.Get(ctx, key)
			assert.True(t, err == kv.ErrNotFound, "a swap with a negative TTL left the key: %v", err)
		}
	})
}

// addrOf returns the server that the tests share, whatever stands in front of
// it.
func addrOf(t *testing.T, addr string) string {
	t.Helper()
	if strings.HasSuffix(t.Name(), "/classic") {
		return sharedAddr(t)
	}
	return addr
}

// What is left of the life stays, as far as the server can tell it.
func TestCompareAndSwapKeepsTheTTL(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	addr := sharedAddr(t)
	db := openDB(t, addr)
	keep := func(c []byte) ([]byte, error) { return c, nil }
	for _, ttl := range []time.Duration{0, time.Minute, 60 * 24 * time.Hour} {
		key := newKey()
		require.NoError(t, db.Set(ctx, key, []byte("1"), ttl))
		before, ok := serverTTL(t, addr, key)
		require.True(t, ok)
		for range 10 {
			require.NoError(t, db.CompareAndSwap(ctx, key, keep))
		}
		after, ok := serverTTL(t, addr, key)
		require.True(t, ok)
		if ttl == 0 {
			assert.EqualValues(t, -1, after)
			continue
		}
		assert.LessOrEqual(t, after, before, "a swap made %v longer", ttl)
		assert.GreaterOrEqual(t, after, before-20)
	}

	// A key that is swapped without pause dies in its time all the same.
	hot := newKey()
	require.NoError(t, db.Set(ctx, hot, []byte("1"), 2*time.Second))
	eventually(t, func() bool {
		err := db.CompareAndSwap(ctx, hot, keep)
		if err != kv.ErrNotFound {
			require.NoError(t, err)
		}
		return err == kv.ErrNotFound
	}, "a key set for 2 s is gone")

	// Without the meta protocol nobody knows it: the value does not expire.
	classic := openDB(t, startClassic(t, addr))
	key := newKey()
	require.NoError(t, classic.Set(ctx, key, []byte("1"), time.Minute))
	require.NoError(t, classic.CompareAndSwap(ctx, key, func(c []byte) ([]byte, error) { return c, nil }))
	got, ok := serverTTL(t, addr, key)
	require.True(t, ok)
	assert.EqualValues(t, -1, got)
}

// No increment is lost and none counts twice.
func TestCompareAndSwapFromManyGoroutines(t *testing.T) {
	t.Parallel()
	metaAndClassic(t, func(t *testing.T, addr string) {
		const goroutines, each = 8, 20
		ctx := t.Context()
		db := openDB(t, addr)
		key := newKey()
		require.NoError(t, db.Set(ctx, key, []byte("0"), 0))
		var all sync.WaitGroup
		for range goroutines {
			all.Go(func() {
				for done := 0; done < each; {
					err := db.CompareAndSwap(ctx, key, func(current []byte) ([]byte, error) {
						n, err := strconv.Atoi(string(current))
						return strconv.AppendInt(nil, int64(n+1), 10), err
					})
					switch {
					case err == nil:
						done++
					case !errors.Is(err, kv.ErrConflict):
						t.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
		got, err := db.Get(ctx, key)
		require.NoError(t, err)
		assert.Equal(t, strconv.Itoa(goroutines*each), string(got))
	})
}

func TestCompareAndSwapTooLarge(t *testing.T) {
	t.Parallel()
	metaAndClassic(t, func(t *testing.T, addr string) {
		db := openDB(t, addr)
		key := newKey()
		require.NoError(t, db.Set(t.Context(), key, []byte("1"), 0))
		err := db.CompareAndSwap(t.Context(), key, func([]byte) ([]byte, error) { return bytes.Repeat([]byte("x"), 2<<20), nil })
		require.ErrorIs(t, err, memcacheddriver.ErrValueTooLarge)
		assert.Equal(t, addr, requireOpError(t, err).Server)
		require.NoError(t, db.Set(t.Context(), key, []byte("1"), 0))
	})
}

// The context may end while update thinks; nothing is written then.
func TestCompareAndSwapCancelledInUpdate(t *testing.T) {
	t.Parallel()
	db := openShared(t)
	key := newKey()
	require.NoError(t, db.Set(t.Context(), key, []byte("1"), 0))
	ctx, cancel := context.WithCancel(t.Context())
	err := db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { cancel(); return []byte("2"), nil })
	require.ErrorIs(t, err, context.Canceled)
	got, err := db.Get(t.Context(), key)
	require.NoError(t, err)
	assert.Equal(t, "1", string(got))
}

// update holds no connection, so that it may make calls of its own.
func TestUpdateHoldsNoConnection(t *testing.T) {
	t.Parallel()
	db := openShared(t, memcacheddriver.WithMaxIdleConns(1))
	key := newKey()
	require.NoError(t, db.Set(t.Context(), key, []byte("1"), 0))
	require.NoError(t, db.CompareAndSwap(t.Context(), key, func(c []byte) ([]byte, error) {
		assert.Zero(t, db.Stats()[0].InUse)
		_, err := db.Get(t.Context(), key)
		return c, err
	}))
	assert.EqualValues(t, 1, db.Stats()[0].Dials)
}
