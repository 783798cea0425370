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
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// Keys are where plain gomemcache looks for them, on all three servers.
func testSpread(t *testing.T, addrs []string) {
	client := func(addrs ...string) *memcache.Client {
		c := memcache.New(addrs...)
		c.Timeout = 10 * time.Second
		t.Cleanup(func() { c.Close() })
		return c
	}
	db := drivertest.Open(t, strings.Join(addrs, ","))
	keys := drivertest.KeysOf(t, addrs, 3)
	all := slices.Concat(keys...)
	for _, key := range all {
		require.NoError(t, db.Set(t.Context(), key, []byte(key), 0))
	}
	for i, addr := range addrs {
		one := client(addr)
		for j := range keys {
			items, err := one.GetMulti(keys[j])
			require.NoError(t, err)
			if i == j {
				assert.Len(t, items, 3)
			} else {
				assert.Empty(t, items, "a key of server %d is on server %d", j, i)
			}
		}
	}
	items, err := client(addrs...).GetMulti(all)
	require.NoError(t, err)
	assert.Len(t, items, 9)
}

func testOneDown(t *testing.T, nodes []node) {
	ctx := t.Context()
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.addr())
	}
	db := drivertest.Open(t, strings.Join(addrs, ","))
	keys := drivertest.KeysOf(t, addrs, 2)
	all := slices.Concat(keys...)
	require.NoError(t, db.MSet(ctx, drivertest.Pairs(all), 0))
	nodes[1].stop(t)

	requireDown := func(err error, op string, keys ...string) {
		t.Helper()
		e := drivertest.RequireOpError(t, err)
		assert.Equal(t, op, e.Op)
		assert.Equal(t, addrs[1], e.Server)
		assert.ElementsMatch(t, keys, e.Keys)
		assert.ErrorContains(t, err, addrs[1])
		assert.NotErrorIs(t, err, kv.ErrNotFound, "a server that is down is no miss")
	}
	requireDown(db.Ping(ctx), "ping")
	got, err := db.MGet(ctx, all)
	requireDown(err, "mget", keys[1]...)
	assert.Equal(t, 4, drivertest.AssertValues(t, all, got))
	_, err = db.Get(ctx, keys[1][0])
	requireDown(err, "get", keys[1][0])
	_, err = db.Get(ctx, keys[0][0])
	assert.NoError(t, err)
}

// The page's "no persistence": a restart empties the server, and costs no call.
func testNoPersistence(t *testing.T, n node) {
	ctx := t.Context()
	before := drivertest.OpenStore(t, n.addr())
	key := drivertest.Key()
	require.NoError(t, before.Set(ctx, key, "v"))
	addr := n.addr()
	n.stop(t)
	err := before.Get(ctx, key, new(string))
	assert.False(t, err == nil || errors.Is(err, kv.ErrNotFound), "a server that is down is no miss: %v", err)
	n.start(t)
	store := before
	if n.addr() != addr {
		store = drivertest.OpenStore(t, n.addr())
	}
	memcachedtest.Eventually(t, func() bool { err = store.Get(ctx, key, new(string)); return errors.Is(err, kv.ErrNotFound) }, "the key is gone")
	assert.True(t, err == kv.ErrNotFound, "%v", err)
	require.NoError(t, store.Set(ctx, key, "v"))
}
