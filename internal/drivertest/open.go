// Package drivertest is what the tests of the driver share that see it from
// outside: drivers that must leave nothing behind, every call that talks to a
// server as a list, keys and values, and what can be asked of a server. The
// servers are memcachedtest's.
package drivertest

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// Open opens a driver that is closed when the test ends, by when every call must
// have given its connections back.
func Open(t testing.TB, dsn string, opts ...driver.Option) *memcacheddriver.MemcachedDB {
	t.Helper()
	db := memcacheddriver.New()
	require.NoError(t, db.Open(t.Context(), dsn, opts...))
	t.Cleanup(func() { assert.NoError(t, db.Close()) })
	t.Cleanup(func() {
		// Only the removal of a value with a TTL under a second may be under way.
		memcachedtest.Eventually(t, func() bool { return inUse(db) == 0 }, "connections were given back")
	})
	return db
}

// OpenAsked is [Open] with a connection to each server that has answered on it
// whether it speaks meta. Without, a busy machine may take too long for the
// answer, and the driver connects once more and does without meta.
func OpenAsked(t testing.TB, dsn string, opts ...driver.Option) *memcacheddriver.MemcachedDB {
	t.Helper()
	for range 20 {
		db := Open(t, dsn, opts...)
		require.NoError(t, db.Ping(t.Context()))
		if Dials(db) == uint64(len(db.Stats())) {
			return db
		}
	}
	t.Fatalf("drivertest: a server of %s does not say whether it speaks meta", dsn)
	return nil
}

// OpenShared is [Open] on the server that the tests of the package share.
func OpenShared(t testing.TB, opts ...driver.Option) *memcacheddriver.MemcachedDB {
	t.Helper()
	return Open(t, memcachedtest.Addr(t), opts...)
}

// OpenStore opens a store that is closed when the test ends, unless the test has
// closed it.
func OpenStore(t testing.TB, dsn string, opts ...driver.Option) *kv.Store {
	t.Helper()
	store, err := memcacheddriver.OpenStore(t.Context(), dsn, opts...)
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := store.Close(); err != kv.ErrStoreClosed {
			assert.NoError(t, err)
		}
	})
	return store
}
