package memcacheddriver_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func values() map[string][]byte {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	large := make([]byte, 900<<10)
	for i := range large {
		large[i] = byte(rand.Uint32())
	}
	return map[string][]byte{
		"nil": nil, "empty": {}, "one byte": {'x'}, "zero": {0},
		"CR LF": []byte("\r\n"), "END": []byte("END\r\n"), "ends in CR": []byte("a\r"),
		"VALUE": []byte("VALUE k 0 3\r\nabc\r\nEND\r\n"), "every byte": all,
		"at the copy limit": large[:8<<10], "just over": large[:8<<10+1], "large": large,
	}
}

func TestValuesRoundTrip(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := openShared(t)
	set := map[string]func(key string, value []byte) error{
		"Set": func(key string, value []byte) error { return db.Set(ctx, key, value, 0) },
		"SetNX": func(key string, value []byte) error {
			_, err := db.SetNX(ctx, key, value, 0)
			return err
		},
		"SetXX": func(key string, value []byte) error {
			if err := db.Set(ctx, key, []byte("old"), 0); err != nil {
				return err
			}
			_, err := db.SetXX(ctx, key, value, 0)
			return err
		},
		"MSet": func(key string, value []byte) error {
			return db.MSet(ctx, map[string][]byte{key: value, newKey(): value}, 0)
		},
		"CompareAndSwap": func(key string, value []byte) error {
			if err := db.Set(ctx, key, []byte("old"), 0); err != nil {
				return err
			}
			return db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { return value, nil })
		},
	}
	for name, value := range values() {
		for by, set := range set {
			key := newKey()
			require.NoError(t, set(key, value), "%s by %s", name, by)
			want := append([]byte{}, value...) // never nil: that would be a miss to Grove

			got, err := db.Get(ctx, key)
			require.NoError(t, err)
			require.True(t, got != nil && bytes.Equal(want, got), "%s by %s: Get returned %d bytes (nil: %t)", name, by, len(got), got == nil)

			all, err := db.MGet(ctx, []string{key, newKey()})
			require.NoError(t, err)
			require.True(t, all[0] != nil && bytes.Equal(want, all[0]), "%s by %s: MGet returned %d bytes (nil: %t)", name, by, len(all[0]), all[0] == nil)
			require.Nil(t, all[1])

			n, err := db.Exists(ctx, key)
			require.NoError(t, err)
			require.EqualValues(t, 1, n)

			current := []byte("not called")
			require.NoError(t, db.CompareAndSwap(ctx, key, func(c []byte) ([]byte, error) { current = c; return nil, nil }))
			require.True(t, current != nil && bytes.Equal(want, current), "%s by %s: CompareAndSwap read %d bytes (nil: %t)", name, by, len(current), current == nil)
		}
	}
}

func TestAValueIsTheCallersAgain(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := openShared(t)
	a, b := newKey(), newKey()
	value := []byte("before")
	require.NoError(t, db.Set(ctx, a, value, 0))
	require.NoError(t, db.MSet(ctx, map[string][]byte{b: value, newKey(): value}, 0))
	copy(value, "behind")
	for _, key := range []string{a, b} {
		got, err := db.Get(ctx, key)
		require.NoError(t, err)
		assert.Equal(t, "before", string(got))
		copy(got, "behind") // a result is the caller's, too
	}
	got, err := db.MGet(ctx, []string{a, b, a})
	require.NoError(t, err)
	copy(got[0], "behind")
	assert.Equal(t, "before", string(got[2]), "two results share their bytes")
}

func TestValueTooLarge(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	addr := memcachedtest.Addr(t)
	db := openDB(t, addr)
	large := bytes.Repeat([]byte("secret-value-"), 100_000) // over 1 MB
	for name, set := range map[string]func(key string) error{
		"set": func(key string) error { return db.Set(ctx, key, large, 0) },
		"setnx": func(key string) error {
			_, err := db.Delete(ctx, key)
			require.NoError(t, err)
			_, err = db.SetNX(ctx, key, large, 0)
			return err
		},
		"setxx": func(key string) error { _, err := db.SetXX(ctx, key, large, 0); return err },
		"mset": func(key string) error {
			return db.MSet(ctx, map[string][]byte{key: large, newKey(): []byte("small")}, 0)
		},
		"cas": func(key string) error {
			return db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { return large, nil })
		},
	} {
		key := newKey()
		require.NoError(t, db.Set(ctx, key, []byte("old"), 0))
		err := set(key)
		require.ErrorIs(t, err, memcacheddriver.ErrValueTooLarge, name)
		op := requireOpError(t, err)
		assert.Equal(t, name, op.Op)
		assert.Equal(t, addr, op.Server)
		assert.Equal(t, []string{key}, op.Keys)
		assert.NotContains(t, err.Error(), "secret-value")
		assert.Less(t, len(err.Error()), 300)

		// The refusal leaves nothing in the way of the next call.
		require.NoError(t, db.Set(ctx, key, []byte("small"), 0), name)
		got, err := db.Get(ctx, key)
		require.NoError(t, err)
		assert.Equal(t, "small", string(got))
	}
}
