package pool_test

import (
	"fmt"
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

// rest is longer than the moment within which a connection is used again without
// a look at it.
const rest = 10 * time.Millisecond

// stale is how many idle connections a restart makes so.
const stale = 32

// ways are those in which a server is reached, with the options for it.
var ways = map[string]func(t *testing.T, args ...string) (*memcachedtest.Server, []driver.Option){
	"TCP": func(t *testing.T, args ...string) (*memcachedtest.Server, []driver.Option) {
		return memcachedtest.Start(t, args...), nil
	},
	"Unix": func(t *testing.T, args ...string) (*memcachedtest.Server, []driver.Option) {
		return memcachedtest.StartUnix(t, args...), nil
	},
	"TLS": func(t *testing.T, args ...string) (*memcachedtest.Server, []driver.Option) {
		s, config := memcachedtest.StartTLS(t, args...)
		return s, []driver.Option{driver.WithTLSConfig(config)}
	},
	"auth": func(t *testing.T, args ...string) (*memcachedtest.Server, []driver.Option) {
		return memcachedtest.StartAuth(t, "user", "password", args...),
			[]driver.Option{memcacheddriver.WithCredentials("user", "password")}
	},
}

func TestRestartCostsNoCall(t *testing.T) {
	t.Parallel()
	for name, start := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, opts := start(t)
			db := drivertest.Open(t, server.Addr(), append(opts, memcacheddriver.WithMaxIdleConns(stale), memcacheddriver.WithTTLQuery())...)
			for round := range 2 {
				drivertest.Fill(t, db, stale)
				before := drivertest.Stat(t, db)
				server.Restart()
				time.Sleep(rest)
				requireAllSucceed(t, db)
				drivertest.Fill(t, db, stale) // comes upon the last of the old ones
				after := drivertest.Stat(t, db)
				assert.EqualValues(t, stale, after.StaleConns-before.StaleConns, "round %d", round)
				assert.Zero(t, after.DialErrors)
				assert.Equal(t, memcacheddriver.ServerUp, after.State)
				drivertest.RequireIdle(t, db)
			}
		})
	}
}

func TestRestartCostsTheNativeClientNoCall(t *testing.T) {
	t.Parallel()
	for name, start := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, opts := start(t)
			db := drivertest.Open(t, server.Addr(), append(opts, memcacheddriver.WithMaxIdleConns(stale))...)
			client := db.Client()
			drivertest.Fill(t, db, stale)
			requireNativeAllSucceed(t, client) // its own connections have bound themselves to sockets
			drivertest.Fill(t, db, stale)
			server.Restart()
			time.Sleep(rest)
			requireNativeAllSucceed(t, client)
			drivertest.RequireIdle(t, db)
		})
	}
}

// The server closes what is idle, which memcached does on TCP only.
func TestServersIdleTimeoutCostsNoCall(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"TCP", "TLS"} {
		start := ways[name]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, opts := start(t, "-o", "idle_timeout=1")
			db := drivertest.Open(t, server.Addr(), append(opts, memcacheddriver.WithMaxIdleConns(stale), memcacheddriver.WithTTLQuery())...)
			drivertest.Fill(t, db, stale)
			memcachedtest.Eventually(t, func() bool { return server.Stats(t)["idle_kicks"] == fmt.Sprint(stale) },
				"the server closes idle connections")
			requireAllSucceed(t, db)
			drivertest.Fill(t, db, stale) // comes upon the last of the old ones
			s := drivertest.Stat(t, db)
			assert.EqualValues(t, stale, s.StaleConns)
			assert.Zero(t, s.DialErrors)
			drivertest.RequireIdle(t, db)
		})
	}
}

// The liveness check belongs to every request, not to the first of a lane.
func TestRestartWithinDoCostsNoCall(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	db := drivertest.Open(t, server.Addr())
	require.NoError(t, db.Do(t.Context(), func(c *memcache.Client) error {
		if err := c.Set(&memcache.Item{Key: "k", Value: []byte("v")}); err != nil {
			return err
		}
		server.Restart()
		time.Sleep(rest)
		return c.Add(&memcache.Item{Key: "k", Value: []byte("w")})
	}))
	drivertest.RequireIdle(t, db)
}

// requireAllSucceed runs calls of every kind from as many goroutines as there are
// stale connections, and checks each result exactly.
func requireAllSucceed(t *testing.T, db *memcacheddriver.MemcachedDB) {
	t.Helper()
	ctx := t.Context()
	var all sync.WaitGroup
	for i := range stale {
		all.Go(func() {
			k := func(n int) string { return fmt.Sprintf("k%d-%d", i, n) }
			check := func(what string, want, got any, err error) {
				if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("%s: %v, %v; want %v", what, got, err, want)
				}
			}
			steps := []func(){
				func() { ok, err := db.SetNX(ctx, k(0), []byte("0"), 0); check("SetNX", true, ok, err) },
				func() { check("Set", nil, nil, db.Set(ctx, k(1), []byte("1"), time.Hour)) },
				func() {
					check("MSet", nil, nil, db.MSet(ctx, map[string][]byte{k(2): []byte("2"), k(3): []byte("3")}, 0))
				},
				func() { n, err := db.Exists(ctx, k(8), k(9)); check("Exists", 0, n, err) },
				func() { n, err := db.Delete(ctx, k(8), k(9)); check("Delete", 0, n, err) },
				func() { check("Ping", nil, nil, db.Ping(ctx)) },
				func() {
					_, err := db.Get(ctx, k(9))
					check("Get of a miss", true, err == kv.ErrNotFound, nil)
				},
				func() {
					values, err := db.MGet(ctx, []string{k(8), k(9)})
					check("MGet of misses", [][]byte{nil, nil}, values, err)
				},
			}
			// Which call meets a stale connection first differs.
			for n := range steps {
				steps[(i+n)%len(steps)]()
			}
			ok, err := db.SetNX(ctx, k(0), []byte("0"), 0)
			check("SetNX again", false, ok, err)
			ok, err = db.SetXX(ctx, k(0), []byte("00"), 0)
			check("SetXX", true, ok, err)
			v, err := db.Get(ctx, k(0))
			check("Get", "00", string(v), err)
			check("CompareAndSwap", nil, nil, db.CompareAndSwap(ctx, k(1), func(b []byte) ([]byte, error) { return append(b, '+'), nil }))
			values, err := db.MGet(ctx, []string{k(1), k(9), k(3)})
			check("MGet", [][]byte{[]byte("1+"), nil, []byte("3")}, values, err)
			n, err := db.Exists(ctx, k(1), k(2), k(9))
			check("Exists", 2, n, err)
			check("Expire", nil, nil, db.Expire(ctx, k(2), 0))
			ttl, err := db.TTL(ctx, k(2))
			check("TTL", memcacheddriver.NoExpiry, ttl, err)
			n, err = db.Delete(ctx, k(0), k(1), k(2), k(9))
			check("Delete of four", 3, n, err)
			n, err = db.Delete(ctx, k(3))
			check("Delete of one", 1, n, err)
		})
	}
	all.Wait()
}

func requireNativeAllSucceed(t *testing.T, client *memcache.Client) {
	t.Helper()
	var all sync.WaitGroup
	for i := range stale {
		all.Go(func() {
			key := fmt.Sprint("native", i)
			check := func(what string, want, err error) {
				if err != want {
					t.Errorf("%s: %v, want %v", what, err, want)
				}
			}
			_, err := client.GetMulti([]string{key + "a", key + "b"})
			check("GetMulti", nil, err)
			check("Add", nil, client.Add(&memcache.Item{Key: key, Value: []byte("1")}))
			check("Add again", memcache.ErrNotStored, client.Add(&memcache.Item{Key: key, Value: []byte("1")}))
			n, err := client.Increment(key, 2)
			check("Increment", nil, err)
			item, err := client.Get(key)
			check("Get", nil, err)
			if err != nil {
				return
			}
			if n != 3 || string(item.Value) != "3" {
				t.Errorf("3 was expected: %d, %q", n, item.Value)
			}
			item.Value = []byte("swapped")
			check("CompareAndSwap", nil, client.CompareAndSwap(item))
			check("CompareAndSwap again", memcache.ErrCASConflict, client.CompareAndSwap(item))
			check("Append", nil, client.Append(&memcache.Item{Key: key, Value: []byte("!")}))
			item, err = client.GetAndTouch(key, 100)
			check("GetAndTouch", nil, err)
			if err == nil && string(item.Value) != "swapped!" {
				t.Errorf("GetAndTouch: %q", item.Value)
			}
			check("Touch", nil, client.Touch(key, 100))
			check("Ping", nil, client.Ping())
			check("Delete", nil, client.Delete(key))
			check("Delete again", memcache.ErrCacheMiss, client.Delete(key))
		})
	}
	all.Wait()
}
