package memcacheddriver_test

import (
	"io"
	"strconv"
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
		require.Equal(t, stats, drivertest.ConnStats(db))
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

// What calls count is tested with what they trace.
func TestStatsCountTheGetsAndSetsOfGomemcache(t *testing.T) {
	t.Parallel()
	db := drivertest.OpenShared(t)
	key, other := drivertest.Key(), drivertest.Key()
	item := func(key string) *memcache.Item { return &memcache.Item{Key: key, Value: []byte("1")} }
	for name, run := range map[string]func(func(*memcache.Client) error) error{
		"Client": func(fn func(*memcache.Client) error) error { return fn(db.Client()) },
		"Do":     func(fn func(*memcache.Client) error) error { return db.Do(t.Context(), fn) },
	} {
		before := drivertest.Stat(t, db)
		require.NoError(t, run(func(c *memcache.Client) error {
			require.NoError(t, c.Set(item(key)))
			require.Equal(t, memcache.ErrNotStored, c.Add(item(key)))
			require.Equal(t, memcache.ErrNotStored, c.Replace(item(other)))
			_, err := c.Get(key)
			require.NoError(t, err)
			_, err = c.Get(other)
			require.Equal(t, memcache.ErrCacheMiss, err)
			_, err = c.GetAndTouch(key, 60)
			require.NoError(t, err)
			found, err := c.GetMulti([]string{key, other, other + "2"})
			require.Len(t, found, 1)
			require.NoError(t, err)
			_, err = c.Increment(key, 1)
			require.NoError(t, err)
			return c.Delete(key)
		}), name)
		after := drivertest.Stat(t, db)
		assert.EqualValues(t, 1, after.Stores-before.Stores, name)
		assert.EqualValues(t, 3, after.Hits-before.Hits, name)
		assert.EqualValues(t, 3, after.Misses-before.Misses, name)
		assert.Equal(t, before.Errors, after.Errors, name)
	}
}

func TestStatsCountTheBytesThatTheServerCounts(t *testing.T) {
	t.Parallel()
	s := memcachedtest.Start(t)
	for _, shared := range []bool{false, true} {
		db := drivertest.OpenAsked(t, s.Addr(), memcacheddriver.WithTTLQuery())
		memcacheddriver.ShareAll(db, shared)
		before, own := bytesOf(t, s), drivertest.Stat(t, db)
		for _, call := range drivertest.Calls {
			require.NoError(t, call.Run(t.Context(), db, "k"), call.Name)
		}
		require.NoError(t, db.Set(t.Context(), "large", make([]byte, 300<<10), 0))
		_, err := db.MGet(t.Context(), []string{"large", "k"})
		require.NoError(t, err)
		_, err = db.Get(t.Context(), "large")
		require.NoError(t, err)
		near := func(a, b uint64) bool { return max(a, b)-min(a, b) < 200 }
		memcachedtest.Eventually(t, func() bool { // when the last TTL under a second is over, too
			after, stat := bytesOf(t, s), drivertest.Stat(t, db)
			again := bytesOf(t, s) // tells what asking takes
			dials := stat.Dials - own.Dials
			asked := stat.BytesWritten - own.BytesWritten + dials*uint64(len("version\r\nmn\r\n"))
			answered := stat.BytesRead - own.BytesRead + dials*uint64(len("VERSION 1.6.18\r\nMN\r\n"))
			return near(asked+again[0]-after[0], after[0]-before[0]) && near(answered+again[1]-after[1], after[1]-before[1])
		}, "the server has read and written the same")
	}
}

// bytesOf returns how many bytes a server has read and written.
func bytesOf(t *testing.T, s *memcachedtest.Server) (bytes [2]uint64) {
	t.Helper()
	for i, name := range []string{"bytes_read", "bytes_written"} {
		n, err := strconv.ParseUint(s.Stats(t)[name], 10, 64)
		require.NoError(t, err)
		bytes[i] = n
	}
	return bytes
}
