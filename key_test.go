package memcacheddriver_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

func TestInvalidKeys(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := openShared(t, memcacheddriver.WithTTLQuery())
	invalid := map[string]string{
		"251 bytes":            strings.Repeat("k", 251),
		"251 bytes of UTF-8":   strings.Repeat("é", 125) + "k",
		"64 KB":                strings.Repeat("k", 64<<10),
		"space":                "a b",
		"space in front":       " a",
		"space behind":         "a ",
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
		for by, call := range calls {
			err := call(ctx, db, key)
			if !assert.ErrorIs(t, err, memcacheddriver.ErrInvalidKey, "%s of a key with %s", by, name) {
				continue
			}
			assert.ErrorIs(t, err, memcache.ErrMalformedKey)
			op := requireOpError(t, err)
			assert.Equal(t, []string{key}, op.Keys)
			assert.Empty(t, op.Server, "no server is to blame")
			assert.NotContains(t, err.Error(), "\n", "the key is not quoted")
		}
	}
	for by, call := range calls {
		err := call(ctx, db, "")
		assert.ErrorIs(t, err, kv.ErrKeyEmpty, by)
		assert.NotErrorIs(t, err, memcacheddriver.ErrInvalidKey, by)
	}
	assert.Zero(t, db.Stats()[0].Dials, "something was sent")
}

func TestValidKeys(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := openShared(t, memcacheddriver.WithTTLQuery())
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
		many, err := db.MGet(ctx, []string{newKey(), key})
		require.NoError(t, err, name)
		assert.Equal(t, [][]byte{nil, []byte(name)}, many)
		for by, call := range calls {
			require.NoError(t, db.Set(ctx, key, []byte(name), 0), name)
			assert.NoError(t, call(ctx, db, key), "%s of %s", by, name)
		}
		_, err = db.Delete(ctx, key)
		require.NoError(t, err)
	}
}

// A batch with one bad key does nothing at all.
func TestABatchIsCheckedFirst(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := openShared(t)
	good := newKey()

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

// The largest keys of both lengths that a batch may mix.
func TestABatchOfLongKeys(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := openShared(t)
	pairs := make(map[string][]byte)
	var keys []string
	for i := range 100 {
		key := newKey()
		if i%2 == 0 {
			key += strings.Repeat("x", 250-len(key))
		}
		keys = append(keys, key)
		pairs[key] = []byte(key)
	}
	require.NoError(t, db.MSet(ctx, pairs, 0))
	got, err := db.MGet(ctx, keys)
	require.NoError(t, err)
	for i := range keys {
		assert.Equal(t, keys[i], string(got[i]))
	}
}
