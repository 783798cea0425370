package memcacheddriver_test

import (
	"io"
	"strings"
	"testing"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// What each counter counts is tested in internal/pool.
func TestStatsAreOfEachServer(t *testing.T) {
	t.Parallel()
	a, b := memcachedtest.StartFake(t, nil).Addr(), memcachedtest.StartFake(t, nil).Addr()
	db := drivertest.Open(t, strings.Join([]string{b, a, b}, ","))
	want := func(idle, inUse int, dials uint64) {
		t.Helper()
		var stats []memcacheddriver.ServerStats // in the order of the DSN, b once
		for _, addr := range []string{b, a} {
			stats = append(stats, memcacheddriver.ServerStats{
				Addr: addr, State: memcacheddriver.ServerUp, Idle: idle, InUse: inUse, Dials: dials,
			})
		}
		require.Equal(t, stats, db.Stats())
	}
	want(0, 0, 0)
	for range 2 {
		require.NoError(t, db.Ping(t.Context()))
		want(1, 0, 1)
	}
	require.NoError(t, db.Do(t.Context(), func(c *memcache.Client) error {
		for _, addr := range []string{a, b} {
			conn, err := c.DialContext(t.Context(), "tcp", addr)
			require.NoError(t, err)
			_, err = io.WriteString(conn, "version\r\n")
			require.NoError(t, err)
		}
		want(0, 1, 1)
		return nil
	}))
	want(0, 0, 1) // nobody read the replies

	require.NoError(t, db.Close())
	assert.Nil(t, db.Stats())
	require.NoError(t, db.Open(t.Context(), a))
	assert.Zero(t, drivertest.Stat(t, db).Dials, "the counters begin at Open")
}
