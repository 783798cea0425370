package memcacheddriver_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
)

// Keys are where plain gomemcache looks for them, on all three servers.
func testSpread(t *testing.T, addrs []string) {
	db := openDB(t, strings.Join(addrs, ","))
	plain := memcache.New(addrs...)
	plain.Timeout = 10 * time.Second
	defer plain.Close()
	keys := keysOf(t, addrs, 3)
	for _, key := range concat(keys) {
		require.NoError(t, db.Set(t.Context(), key, []byte(key), 0))
	}
	for i, addr := range addrs {
		one := memcache.New(addr)
		one.Timeout = 10 * time.Second
		for j := range keys {
			items, err := one.GetMulti(keys[j])
			require.NoError(t, err)
			if i == j {
				assert.Len(t, items, 3)
			} else {
				assert.Empty(t, items, "a key of server %d is on server %d", j, i)
			}
		}
		require.NoError(t, one.Close())
	}
	items, err := plain.GetMulti(concat(keys))
	require.NoError(t, err)
	assert.Len(t, items, 9)
}

func testOneDown(t *testing.T, nodes []node) {
	ctx := t.Context()
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.addr())
	}
	db := openDB(t, strings.Join(addrs, ","))
	keys := keysOf(t, addrs, 2)
	for _, key := range concat(keys) {
		require.NoError(t, db.Set(ctx, key, []byte(key), 0))
	}
	nodes[1].stop(t)

	err := db.Ping(ctx)
	require.Error(t, err)
	assert.Equal(t, addrs[1], requireOpError(t, err).Server)
	got, err := db.MGet(ctx, concat(keys))
	requireDead(t, err, "mget", addrs[1], keys[1])
	for i, key := range concat(keys) {
		if slices.Contains(keys[1], key) {
			assert.Nil(t, got[i])
		} else {
			assert.Equal(t, key, string(got[i]))
		}
	}
	_, err = db.Get(ctx, keys[1][0])
	requireDead(t, err, "get", addrs[1], keys[1][:1])
	_, err = db.Get(ctx, keys[0][0])
	assert.NoError(t, err)
}

// The page's "no persistence": a restart empties the server, and costs no call.
func testNoPersistence(t *testing.T, n node) {
	ctx := t.Context()
	before := openStore(t, n.addr())
	key := newKey()
	require.NoError(t, before.Set(ctx, key, "v"))
	addr := n.addr()
	n.stop(t)
	err := before.Get(ctx, key, new(string))
	assert.False(t, err == nil || errors.Is(err, kv.ErrNotFound), "a server that is down is no miss: %v", err)
	n.start(t)
	store := before
	if n.addr() != addr {
		store = openStore(t, n.addr())
	}
	eventually(t, func() bool { err = store.Get(ctx, key, new(string)); return errors.Is(err, kv.ErrNotFound) }, "the key is gone")
	assert.True(t, err == kv.ErrNotFound, "%v", err)
	require.NoError(t, store.Set(ctx, key, "v"))
}
