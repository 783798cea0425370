package memcacheddriver_test

import (
	"fmt"
	"testing"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/kvtest"
)

func TestUnwrapReturnsTheStoresDriver(t *testing.T) {
	t.Parallel()
	db := drivertest.OpenShared(t)
	for range 2 { // a driver may have several stores
		store, err := kv.Open(db)
		require.NoError(t, err)
		assert.Same(t, db, memcacheddriver.Unwrap(store))
	}
}

func TestUnwrapOfAnotherDriverPanicsWithItsName(t *testing.T) {
	t.Parallel()
	store := kvtest.SetupStore(t)
	for name, unwrap := range map[string]func(){
		"Unwrap":       func() { memcacheddriver.Unwrap(store) },
		"UnwrapClient": func() { memcacheddriver.UnwrapClient(store) },
	} {
		func() {
			defer func() {
				text := fmt.Sprint(recover())
				assert.Contains(t, text, "memcacheddriver", name)
				assert.Contains(t, text, `"mock"`, "%s: the driver that was found", name)
				assert.Contains(t, text, "*kvtest.MockDriver", name)
			}()
			unwrap()
			t.Errorf("%s of another driver's store did not panic", name)
		}()
	}
}

func TestUnwrapClientIsAGomemcacheClient(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := drivertest.OpenStore(t, memcachedtest.Addr(t))
	client := memcacheddriver.UnwrapClient(store)

	views := drivertest.Key()
	require.NoError(t, store.Set(ctx, views, 41))
	n, err := client.Increment(views, 1)
	require.NoError(t, err)
	assert.EqualValues(t, 42, n)
	var got int
	require.NoError(t, store.Get(ctx, views, &got))
	assert.Equal(t, 42, got)

	lines := drivertest.Key()
	require.NoError(t, client.Set(&memcache.Item{Key: lines, Value: []byte("one\n")}))
	require.NoError(t, client.Append(&memcache.Item{Key: lines, Value: []byte("two\n")}))
	raw, err := store.GetRaw(ctx, lines)
	require.NoError(t, err)
	assert.Equal(t, "one\ntwo\n", string(raw))

	// gomemcache's errors are its own.
	absent := drivertest.Key()
	_, err = client.Get(absent)
	assert.Equal(t, memcache.ErrCacheMiss, err)
	_, err = client.Increment(absent, 1)
	assert.Equal(t, memcache.ErrCacheMiss, err)
	assert.Equal(t, memcache.ErrNotStored, client.Append(&memcache.Item{Key: absent, Value: []byte("x")}))
	assert.Equal(t, memcache.ErrNotStored, client.Replace(&memcache.Item{Key: absent, Value: []byte("x")}))
	require.NoError(t, client.Add(&memcache.Item{Key: absent, Value: []byte("x")}))
	assert.Equal(t, memcache.ErrNotStored, client.Add(&memcache.Item{Key: absent, Value: []byte("x")}))
	item, err := client.GetAndTouch(absent, 60)
	require.NoError(t, err)
	require.NoError(t, client.Set(&memcache.Item{Key: absent, Value: []byte("y")}))
	item.Value = []byte("z")
	assert.Equal(t, memcache.ErrCASConflict, client.CompareAndSwap(item))
	items, err := client.GetMulti([]string{absent, lines, drivertest.Key()})
	require.NoError(t, err)
	assert.Len(t, items, 2)
	require.NoError(t, client.Touch(absent, 60))
	require.NoError(t, client.Delete(absent))
	assert.Equal(t, memcache.ErrCacheMiss, client.Delete(absent))
	assert.Equal(t, memcache.ErrMalformedKey, client.Delete("a b"))
	require.NoError(t, client.Ping())
}

func TestOpenStoreOpensADriverThatItOwns(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store, err := memcacheddriver.OpenStore(ctx, "mc1:x")
	assert.Nil(t, store)
	assert.ErrorIs(t, err, memcacheddriver.ErrInvalidDSN)

	server := memcachedtest.Start(t)
	count := drivertest.Connections(t, server)
	store = drivertest.OpenStore(t, server.Addr()+"?timeout=5s")
	key := drivertest.Key()
	require.NoError(t, store.Set(ctx, key, "value"))
	raw, err := store.GetRaw(ctx, key)
	require.NoError(t, err)
	assert.Equal(t, `"value"`, string(raw), "the codec is JSON, as kv.Open's")

	// Closing the store closes the driver, and what comes later names no connection
	// error.
	db, client := memcacheddriver.Unwrap(store), memcacheddriver.UnwrapClient(store)
	require.NoError(t, store.Close())
	assert.ErrorIs(t, db.Ping(ctx), memcacheddriver.ErrNotOpen)
	assert.Equal(t, kv.ErrStoreClosed, store.Get(ctx, key, new(string)))
	_, err = client.Get(key)
	require.ErrorIs(t, err, memcacheddriver.ErrNotOpen)
	assert.NotContains(t, err.Error(), "use of closed")
	memcachedtest.Eventually(t, func() bool { return count() == 0 }, "the server has lost all connections")
}
