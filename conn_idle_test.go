package memcacheddriver_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// connCount returns how many connections a server has, the one that asks aside.
func connCount(t testing.TB, s *memcachedtest.Server) int {
	t.Helper()
	n, err := strconv.Atoi(s.Stats(t)["curr_connections"])
	require.NoError(t, err)
	return n
}

// connBaseline is connCount without a driver, once the server has noticed the
// end of whoever asked it before.
func connBaseline(t testing.TB, s *memcachedtest.Server) int {
	t.Helper()
	lowest := connCount(t, s)
	for range 5 {
		time.Sleep(4 * time.Millisecond)
		lowest = min(lowest, connCount(t, s))
	}
	return lowest
}

func TestIdleConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		max  int
		opts []driver.Option
		dsn  string
	}{
		"default":          {10, nil, ""},
		"WithMaxIdleConns": {3, []driver.Option{memcacheddriver.WithMaxIdleConns(3)}, ""},
		"WithPoolSize":     {4, []driver.Option{driver.WithPoolSize(4)}, ""},
		"DSN":              {2, nil, "?max_idle_conns=2"},
	} {
		t.Run(name, func(t *testing.T) {
			var servers []*memcachedtest.Server
			var addrs []string
			var before []int
			for range 3 {
				s := memcachedtest.Start(t)
				servers = append(servers, s)
				addrs = append(addrs, s.Addr())
				before = append(before, connBaseline(t, s))
			}
			db := connOpen(t, strings.Join(addrs, ",")+c.dsn, c.opts...)
			client := db.Client()
			keys := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
			pairs := make(map[string][]byte)
			for _, k := range keys {
				pairs[k] = []byte(k)
			}
			var calls sync.WaitGroup
			for i := range 64 {
				calls.Go(func() {
					for n := range 15 {
						key := keys[(i+n)%len(keys)]
						var err error
						switch (i + n) % 6 {
						case 0:
							err = db.Set(context.Background(), key, []byte(key), 0)
						case 1:
							err = client.Set(&memcache.Item{Key: key, Value: []byte(key)})
						case 2:
							_, err = client.GetMulti(keys)
						case 3:
							_, err = db.MGet(context.Background(), keys)
						case 4:
							err = db.MSet(context.Background(), pairs, 0)
						case 5:
							err = db.Do(context.Background(), func(c *memcache.Client) error {
								_, err := c.GetMulti(keys)
								return err
							})
						}
						if err != nil {
							t.Error(err)
						}
						for _, s := range db.Stats() {
							if s.Idle > c.max || s.Idle < 0 || s.InUse < 0 {
								t.Errorf("of at most %d: %+v", c.max, s)
							}
						}
					}
				})
			}
			calls.Wait()
			connRequireIdle(t, db)
			for i, s := range servers {
				idle := db.Stats()[i].Idle
				require.Positive(t, idle)
				connPoll(t, fmt.Sprintf("%s has as many connections as are idle", s.Addr()), func() bool {
					return connCount(t, s)-before[i] == idle
				})
			}
		})
	}
}

func TestIdleConnectionsExpire(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(addr string) *memcacheddriver.MemcachedDB{
		"option": func(addr string) *memcacheddriver.MemcachedDB {
			return connOpen(t, addr, memcacheddriver.WithConnMaxIdleTime(100*time.Millisecond))
		},
		"DSN": func(addr string) *memcacheddriver.MemcachedDB {
			return connOpen(t, addr+"?conn_max_idle_time=100ms")
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := memcachedtest.Start(t)
			before := connBaseline(t, server)
			db := open(server.Addr())
			for range 2 { // the sweep comes again
				connFill(t, db, 8)
				connPoll(t, "they are closed", func() bool { return connStats(t, db).Idle == 0 })
				connPoll(t, "the server sees it", func() bool { return connCount(t, server) == before })
				connRequireIdle(t, db)
			}
			// And those that the native client left.
			_, err := db.Client().Get("k")
			require.Equal(t, memcache.ErrCacheMiss, err)
			connPoll(t, "it is closed", func() bool { return connStats(t, db).Idle == 0 })
		})
	}
	t.Run("not by default", func(t *testing.T) {
		db := connOpen(t, memcachedtest.Start(t).Addr())
		connFill(t, db, 5)
		time.Sleep(300 * time.Millisecond)
		require.Equal(t, 5, connStats(t, db).Idle)
	})
}

// One that is needed again and again is not closed, while its neighbours are.
func TestIdleTimeStartsWithEachUse(t *testing.T) {
	t.Parallel()
	const limit = 600 * time.Millisecond
	db := connOpen(t, memcachedtest.Start(t).Addr(), memcacheddriver.WithConnMaxIdleTime(limit))
	connFill(t, db, 5)
	used := time.Now()
	paused := time.Duration(0)
	for end := time.Now().Add(4 * limit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		_, err := db.Get(context.Background(), "k")
		require.Equal(t, kv.ErrNotFound, err)
		paused = max(paused, time.Since(used))
		used = time.Now()
	}
	s := connStats(t, db)
	if paused < limit/2 { // else the machine was too busy to tell
		require.Equal(t, uint64(5), s.Dials)
	}
	require.Equal(t, 1, s.Idle)
}

// Stats tells each event, and only that one.
func TestStatsFigures(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	var want memcacheddriver.ServerStats
	server := memcachedtest.Start(t)
	db := connOpen(t, server.Addr(), memcacheddriver.WithTimeout(200*time.Millisecond), memcacheddriver.WithServerFailureLimit(3, time.Millisecond))
	want.Addr, want.State = server.Addr(), memcacheddriver.ServerUp
	check := func(event string) {
		t.Helper()
		require.Equal(t, want, connStats(t, db), event)
	}
	check("nothing yet")

	connFill(t, db, 4)
	want.Dials, want.Idle = 4, 4
	check("four calls at the same time")

	require.NoError(t, db.Do(ctx, func(c *memcache.Client) error {
		_, _ = c.Get("k")
		want.InUse, want.Idle = 1, 3
		check("in a call")
		return nil
	}))
	want.InUse, want.Idle = 0, 4
	check("behind it")

	server.Restart()
	time.Sleep(connRest)
	_, err := db.Get(ctx, "k")
	require.Equal(t, kv.ErrNotFound, err)
	want.StaleConns, want.Dials, want.Idle = 4, 5, 1
	check("a restart")

	server.Stop()
	cut, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	_, err = db.Get(cut, "k")
	cancel()
	require.ErrorIs(t, err, context.DeadlineExceeded)
	want.Cancelled, want.Idle = 1, 0
	check("a cancelled call")

	_, err = db.Get(ctx, "k")
	require.Error(t, err)
	want.Dials, want.Timeouts = 6, 1
	check("a timeout")
	server.Cont()
	require.NoError(t, db.Ping(ctx))
	want.Dials, want.Idle = 7, 1
	check("up again")

	server.Kill()
	time.Sleep(connRest)
	_, err = db.Get(ctx, "k")
	require.Error(t, err)
	want.StaleConns, want.Dials, want.DialErrors, want.Idle = 5, 8, 1, 0
	check("a dial error")
	for range 2 {
		_, _ = db.Get(ctx, "k")
	}
	want.Dials, want.DialErrors, want.State = 10, 3, memcacheddriver.ServerDown
	check("down")

	server.Restart()
	time.Sleep(10 * time.Millisecond)
	require.NoError(t, db.Ping(ctx))
	want.Dials, want.Idle, want.State = 11, 1, memcacheddriver.ServerUp
	check("back")

	require.NoError(t, db.Close())
	require.Nil(t, db.Stats())

	twice := connOpen(t, server.Addr()+","+server.Addr()+",127.0.0.1:1")
	stats := twice.Stats()
	require.Len(t, stats, 2, "a server that is listed twice is one")
	require.Equal(t, server.Addr(), stats[0].Addr)
	require.Equal(t, "127.0.0.1:1", stats[1].Addr)
}
