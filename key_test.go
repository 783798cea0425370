package memcacheddriver_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// keyCalls are the calls whose keys the driver checks.
func keyCalls() []drivertest.Call {
	return slices.DeleteFunc(slices.Clone(drivertest.Calls), func(c drivertest.Call) bool { return c.Keys == 0 })
}

func TestInvalidKeysAreRefused(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := drivertest.OpenShared(t, memcacheddriver.WithTTLQuery())
	invalid := map[string]string{
		"251 bytes":            strings.Repeat("k", 251),
		"251 bytes of UTF-8":   strings.Repeat("é", 125) + "k",
		"64 KB":                strings.Repeat("k", 64<<10),
		"space":                "a b",
		"space in front":       " a",
		"space after":          "a ",
		"tab":                  "a\tb",
		"line feed":            "a\nb",
		"carriage return":      "a\rb",
		"zero":                 "a\x00b",
		"delete":               "a\x7fb",
		"an injected command":  "a\r\nflush_all\r\n",
		"an injected set":      "a 0 0 1\r\nx\r\nset b",
		"only a space":         " ",
		"a key and a new line": "a\r\n",
	}
	for b := range byte(0x21) {
		invalid[fmt.Sprintf("byte %#x", b)] = "a" + string(rune(b)) + "b"
	}
	for name, key := range invalid {
		for _, call := range keyCalls() {
			err := call.Run(ctx, db, key)
			if !assert.ErrorIs(t, err, memcacheddriver.ErrInvalidKey, "%s of a key with %s", call.Name, name) {
				continue
			}
			assert.ErrorIs(t, err, memcache.ErrMalformedKey)
			op := drivertest.RequireOpError(t, err)
			assert.Equal(t, []string{key}, op.Keys)
			assert.Empty(t, op.Server, "no server is to blame")
			assert.NotContains(t, err.Error(), "\n", "the key is not quoted")
		}
	}
	for _, call := range keyCalls() {
		err := call.Run(ctx, db, "")
		assert.ErrorIs(t, err, kv.ErrKeyEmpty, call.Name)
		assert.NotErrorIs(t, err, memcacheddriver.ErrInvalidKey, call.Name)
	}
	assert.Zero(t, drivertest.Dials(db), "something was sent")
}

func TestValidKeysWork(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := drivertest.Open(t, memcachedtest.Start(t).Addr(), memcacheddriver.WithTTLQuery())
	var all strings.Builder
	for b := 0x21; b < 0x100; b++ {
		if b != 0x7f {
			all.WriteByte(byte(b))
		}
	}
	for name, key := range map[string]string{
		"one byte":             "k",
		"250 bytes":            strings.Repeat("k", 250),
		"250 bytes of UTF-8":   strings.Repeat("é", 125),
		"every byte":           all.String(),
		"not UTF-8":            "\xff\xfe",
		"quotes":               `"a'b\`,
		"a command":            "get",
		"a reply":              "END",
		"what looks like meta": "k(b)",
		"no-break space":       "a\u00a0b",
		"C1 control":           "a\u0085b",
	} {
		require.NoError(t, db.Set(ctx, key, []byte(name), 0), name)
		got, err := db.Get(ctx, key)
		require.NoError(t, err, name)
		assert.Equal(t, name, string(got))
		many, err := db.MGet(ctx, []string{drivertest.Key(), key})
		require.NoError(t, err, name)
		assert.Equal(t, [][]byte{nil, []byte(name)}, many)
		for _, call := range keyCalls() {
			require.NoError(t, db.Set(ctx, key, []byte(name), 0), name)
			assert.NoError(t, call.Run(ctx, db, key), "%s of %s", call.Name, name)
		}
	}
}

// A batch with one bad key does nothing at all.
func TestABatchIsCheckedFirst(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := drivertest.OpenShared(t)
	good := drivertest.Key()

	err := db.MSet(ctx, map[string][]byte{good: []byte("new"), "bad key": nil}, 0)
	require.ErrorIs(t, err, memcacheddriver.ErrInvalidKey)
	_, err = db.Get(ctx, good)
	require.ErrorIs(t, err, kv.ErrNotFound, "MSet stored the other key")

	require.NoError(t, db.Set(ctx, good, []byte("old"), 0))
	n, err := db.Delete(ctx, good, "bad key")
	require.ErrorIs(t, err, memcacheddriver.ErrInvalidKey)
	assert.Zero(t, n)
	n, err = db.Exists(ctx, good, good, "")
	require.ErrorIs(t, err, kv.ErrKeyEmpty)
	assert.Zero(t, n)
	_, err = db.MGet(ctx, []string{good, "bad key"})
	require.ErrorIs(t, err, memcacheddriver.ErrInvalidKey)
	_, err = db.Get(ctx, good)
	require.NoError(t, err, "Delete removed the other key")
}

func TestABatchMayMixLongAndShortKeys(t *testing.T) {
	t.Parallel()
	db, keys := drivertest.OpenShared(t), drivertest.Keys(100)
	for i := range keys {
		if i%2 == 0 {
			keys[i] += strings.Repeat("x", 250-len(keys[i]))
		}
	}
	require.NoError(t, db.MSet(t.Context(), drivertest.Pairs(keys), 0))
	got, err := db.MGet(t.Context(), keys)
	require.NoError(t, err)
	assert.Equal(t, len(keys), drivertest.AssertValues(t, keys, got))
}
