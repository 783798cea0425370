package drivertest

import (
	"sync"
	"testing"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// Stat returns the statistics of a driver's only server.
func Stat(t testing.TB, db *memcacheddriver.MemcachedDB) memcacheddriver.ServerStats {
	t.Helper()
	stats := db.Stats()
	require.Len(t, stats, 1)
	return stats[0]
}

// Dials returns how often a driver has dialled, all servers together.
func Dials(db *memcacheddriver.MemcachedDB) (n uint64) {
	for _, s := range db.Stats() {
		n += s.Dials
	}
	return n
}

// RequireIdle fails the test if a connection is lost: every one must be back in
// the pool, that of a shared link in a moment.
func RequireIdle(t testing.TB, db *memcacheddriver.MemcachedDB) {
	t.Helper()
	memcachedtest.Eventually(t, func() bool { return inUse(db) == 0 }, "connections that no call uses are not counted as used")
}

func inUse(db *memcacheddriver.MemcachedDB) (n int) {
	for _, s := range db.Stats() {
		n += s.InUse
	}
	return n
}

// Fill leaves n idle connections on the driver's only server, which it asks for a
// key that is not there.
func Fill(t testing.TB, db *memcacheddriver.MemcachedDB, n int) {
	t.Helper()
	key := Key()
	var all, calls sync.WaitGroup
	all.Add(n)
	for range n {
		calls.Go(func() {
			err := db.Do(t.Context(), func(c *memcache.Client) error {
				_, err := c.Get(key)
				all.Done()
				all.Wait() // hold the connection until all have one
				return err
			})
			if err != memcache.ErrCacheMiss {
				t.Errorf("Fill: %v", err)
			}
		})
	}
	calls.Wait()
	require.Equal(t, n, Stat(t, db).Idle)
}
