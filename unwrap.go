package memcacheddriver

import (
	"context"
	"fmt"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
)

// OpenStore opens a driver and a store on it in one call. Options of the store,
// such as a codec, go through [WithStoreOptions]. It dials nothing, as
// [MemcachedDB.Open], and has its errors. Closing the store closes the driver.
func OpenStore(ctx context.Context, dsn string, opts ...driver.Option) (*kv.Store, error) {
	db := New()
	c, err := newConfig(dsn, opts)
	if err == nil {
		err = db.open(c)
	}
	if err != nil {
		return nil, &OpError{Op: "open", Err: err}
	}
	return kv.Open(db, c.store...)
}

// Unwrap returns the driver of a store, for CompareAndSwap, Do and Stats. It
// panics if the store is on another driver, one that wraps this included.
func Unwrap(store *kv.Store) *MemcachedDB {
	db, ok := store.Driver().(*MemcachedDB)
	if !ok {
		panic(fmt.Sprintf("memcacheddriver: Unwrap: the store is on driver %q (%T), not on memcacheddriver; OpenStore makes one that is", store.Driver().Name(), store.Driver()))
	}
	return db
}

// UnwrapClient returns the gomemcache client of a store on this driver, for
// Increment, Append and all else that the driver has no method for; see
// [MemcachedDB.Client]. It panics if the store is on another driver.
func UnwrapClient(store *kv.Store) *memcache.Client {
	return Unwrap(store).Client()
}
