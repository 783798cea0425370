package pool_test

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestIdleConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	const calls = 12 // at the same time
	server := memcachedtest.Start(t)
	count := drivertest.Connections(t, server)
	for name, c := range map[string]struct {
		query string
		opts  []driver.Option
		want  int
	}{
		"the default":             {"", nil, 10},
		"WithMaxIdleConns":        {"", []driver.Option{memcacheddriver.WithMaxIdleConns(3)}, 3},
		"WithPoolSize":            {"", []driver.Option{driver.WithPoolSize(4)}, 4},
		"the last one":            {"", []driver.Option{driver.WithPoolSize(4), memcacheddriver.WithMaxIdleConns(2)}, 2},
		"max_idle_conns":          {"?max_idle_conns=5", nil, 5},
		"pool_size":               {"?pool_size=6", nil, 6},
		"an option beats the DSN": {"?max_idle_conns=5", []driver.Option{memcacheddriver.WithMaxIdleConns(1)}, 1},
		"0 is the default":        {"?max_idle_conns=0", nil, 10},
		"0 beats the DSN":         {"?max_idle_conns=5", []driver.Option{memcacheddriver.WithMaxIdleConns(0)}, 10},
		"more than are used":      {"?max_idle_conns=64", nil, calls},
	} {
		db := drivertest.Open(t, server.Addr()+c.query, c.opts...)
		drivertest.Hold(t, db, calls)()
		s := drivertest.Stat(t, db)
		assert.Equal(t, c.want, s.Idle, name)
		assert.Zero(t, s.InUse, name)
		assert.EqualValues(t, calls, s.Dials, "%s: it limits no call", name)
		memcachedtest.Eventually(t, func() bool { return count() == c.want }, "%s: the server has as many", name)
		require.NoError(t, db.Close())
		memcachedtest.Eventually(t, func() bool { return count() == 0 }, "%s: none is left", name)
	}
}

// Calls of every kind at the same time, on three servers.
func TestIdleConnectionsAreBoundedAtAllTimes(t *testing.T) {
	t.Parallel()
	const most = 3
	servers, addrs := drivertest.StartServers(t, 3)
	var counts []func() int
	for _, s := range servers {
		counts = append(counts, drivertest.Connections(t, s))
	}
	db := drivertest.Open(t, strings.Join(addrs, ","), memcacheddriver.WithMaxIdleConns(most))
	client, keys := db.Client(), slices.Concat(drivertest.KeysOf(t, addrs, 3)...)
	var calls sync.WaitGroup
	for i := range 32 {
		calls.Go(func() {
			for n := range 30 {
				key := keys[(i+n)%len(keys)]
				var err error
				switch (i + n) % 6 {
				case 0:
					err = db.Set(t.Context(), key, nil, 0)
				case 1:
					err = client.Set(&memcache.Item{Key: key})
				case 2:
					_, err = client.GetMulti(keys)
				case 3:
					_, err = db.MGet(t.Context(), keys)
				case 4:
					err = db.MSet(t.Context(), drivertest.Pairs(keys), 0)
				case 5:
					err = db.Do(t.Context(), func(c *memcache.Client) error {
						_, err := c.GetMulti(keys)
						return err
					})
				}
				assert.NoError(t, err)
				for _, s := range db.Stats() {
					if s.Idle > most || s.Idle < 0 || s.InUse < 0 {
						t.Errorf("of at most %d: %+v", most, s)
					}
				}
			}
		})
	}
	calls.Wait()
	drivertest.RequireIdle(t, db)
	for i, s := range db.Stats() {
		assert.Positive(t, s.Idle)
		memcachedtest.Eventually(t, func() bool { return counts[i]() == s.Idle }, "%s has as many connections as are idle", s.Addr)
	}
}

func TestIdleConnectionsExpire(t *testing.T) {
	t.Parallel()
	const limit = 50 * time.Millisecond
	for name, c := range map[string]struct {
		query string
		opts  []driver.Option
	}{
		"option":                  {"", []driver.Option{memcacheddriver.WithConnMaxIdleTime(limit)}},
		"DSN":                     {"?conn_max_idle_time=50ms", nil},
		"an option beats the DSN": {"?conn_max_idle_time=1h", []driver.Option{memcacheddriver.WithConnMaxIdleTime(limit)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := memcachedtest.Start(t)
			count := drivertest.Connections(t, server)
			db := drivertest.Open(t, server.Addr()+c.query, c.opts...)
			none := func(what string) {
				t.Helper()
				memcachedtest.Eventually(t, func() bool { return drivertest.Stat(t, db).Idle == 0 && count() == 0 }, what)
				drivertest.RequireIdle(t, db)
			}
			for range 2 { // the sweep comes again
				start := time.Now()
				drivertest.Hold(t, db, 8)()
				none("they are closed")
				assert.GreaterOrEqual(t, time.Since(start), limit, "too early")
			}
			_, err := db.Client().Get("k")
			require.Equal(t, memcache.ErrCacheMiss, err)
			none("that of the native client is closed")
		})
	}
	t.Run("not by default", func(t *testing.T) {
		t.Parallel()
		db := drivertest.Open(t, memcachedtest.StartFake(t, nil).Addr())
		drivertest.Fill(t, db, 5)
		time.Sleep(6 * limit)
		require.Equal(t, 5, drivertest.Stat(t, db).Idle)
	})
}

// One that is needed again and again is not closed, while its neighbours are.
func TestIdleTimeStartsWithEachUse(t *testing.T) {
	t.Parallel()
	const limit = 600 * time.Millisecond
	db := drivertest.Open(t, memcachedtest.StartFake(t, nil).Addr(), memcacheddriver.WithConnMaxIdleTime(limit))
	drivertest.Hold(t, db, 5)()
	used, paused := time.Now(), time.Duration(0)
	for end := time.Now().Add(4 * limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		_, err := db.Get(t.Context(), "k")
		require.Equal(t, kv.ErrNotFound, err)
		paused = max(paused, time.Since(used))
		used = time.Now()
	}
	s := drivertest.Stat(t, db)
	paused = max(paused, time.Since(used))
	require.LessOrEqual(t, s.Idle, 1, "its neighbours are closed")
	if paused < limit/2 { // else the machine was too busy to tell
		require.EqualValues(t, 5, s.Dials)
		require.Equal(t, 1, s.Idle)
	}
}
