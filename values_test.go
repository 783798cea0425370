package memcacheddriver_test

import (
	"bytes"
	"cmp"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
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
	ctx, db := t.Context(), drivertest.OpenShared(t)
	for name, value := range values() {
		for by, set := range setters {
			key := drivertest.Key()
			require.NoError(t, set(ctx, db, key, value, 0), "%s by %s", name, by)
			want := append([]byte{}, value...) // never nil: that would be a miss to Grove

			got, err := db.Get(ctx, key)
			require.NoError(t, err)
			require.True(t, got != nil && bytes.Equal(want, got), "%s by %s: Get returned %d bytes (nil: %t)", name, by, len(got), got == nil)

			all, err := db.MGet(ctx, []string{key, drivertest.Key()})
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
	ctx, db := t.Context(), drivertest.OpenShared(t)
	a, b := drivertest.Key(), drivertest.Key()
	value := []byte("before")
	require.NoError(t, db.Set(ctx, a, value, 0))
	require.NoError(t, db.MSet(ctx, map[string][]byte{b: value, drivertest.Key(): value}, 0))
	copy(value, "change")
	for _, key := range []string{a, b} {
		got, err := db.Get(ctx, key)
		require.NoError(t, err)
		assert.Equal(t, "before", string(got))
		copy(got, "change") // a result is the caller's, too
	}
	got, err := db.MGet(ctx, []string{a, b, a})
	require.NoError(t, err)
	copy(got[0], "change")
	assert.Equal(t, "before", string(got[2]), "two results share their bytes")
}

func TestAValueTooLargeIsRefused(t *testing.T) {
	t.Parallel()
	ctx, addr := t.Context(), memcachedtest.Addr(t)
	db := drivertest.Open(t, addr)
	large := bytes.Repeat([]byte("secret-value-"), 100_000) // over 1 MB
	ops := map[string]string{"SetNX": "setnx", "SetXX": "setxx", "MSet": "mset", "CompareAndSwap": "cas"}
	for by, set := range setters {
		for _, ttl := range []time.Duration{0, 500 * time.Millisecond} {
			key := drivertest.Key()
			err := set(ctx, db, key, large, ttl)
			require.ErrorIs(t, err, memcacheddriver.ErrValueTooLarge, by)
			op := drivertest.RequireOpError(t, err)
			assert.Equal(t, cmp.Or(ops[by], "set"), op.Op, by)
			assert.Equal(t, addr, op.Server)
			assert.Equal(t, []string{key}, op.Keys)
			assert.NotContains(t, err.Error(), "secret-value")
			assert.Less(t, len(err.Error()), 300)

			// The refusal leaves nothing in the way of the next call.
			require.NoError(t, db.Set(ctx, key, []byte("small"), 0), by)
			requireValue(t, db, key, "small")
		}
	}
}
