package drivertest

import (
	"io"
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

// ConnStats returns what a driver's Stats say of connections and health, without their
// limits and what calls have counted.
func ConnStats(db *memcacheddriver.MemcachedDB) []memcacheddriver.ServerStats {
	stats := db.Stats()
	for i := range stats {
		s := &stats[i]
		s.MaxOpen, s.MaxIdle = 0, 0
		s.Hits, s.Misses, s.Stores, s.Errors, s.BytesRead, s.BytesWritten = 0, 0, 0, 0, 0, 0
	}
	return stats
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

// Fill leaves n idle connections on the driver's only server.
func Fill(t testing.TB, db *memcacheddriver.MemcachedDB, n int) {
	t.Helper()
	Hold(t, db, n)()
	require.Equal(t, n, Stat(t, db).Idle)
}

// Hold lets n calls use a connection each to the driver's only server at the same
// time, until the function that it returns is called: they ask for a key that is not
// there, and read the answer then.
func Hold(t testing.TB, db *memcacheddriver.MemcachedDB, n int) (release func()) {
	t.Helper()
	request := "get " + Key() + "\r\n"
	addr := Stat(t, db).Addr
	released := make(chan struct{})
	var asked, calls sync.WaitGroup
	asked.Add(n)
	for range n {
		calls.Go(func() {
			err := db.Do(t.Context(), func(c *memcache.Client) error {
				conn, err := c.DialContext(t.Context(), "tcp", addr)
				if err == nil {
					_, err = io.WriteString(conn, request)
				}
				asked.Done()
				<-released
				if err == nil {
					_, err = conn.Read(make([]byte, 64))
				}
				return err
			})
			if err != nil {
				t.Errorf("Hold: %v", err)
			}
		})
	}
	asked.Wait()
	return func() {
		close(released)
		calls.Wait()
	}
}
