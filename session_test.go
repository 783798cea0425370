package memcacheddriver_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
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

func TestADriverThatIsNotOpenRefusesEveryCall(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, nil)
	closed := drivertest.Open(t, f.Addr())
	require.NoError(t, closed.Ping(t.Context()))
	kept := closed.Client()
	_, err := kept.Get("k")
	require.Equal(t, memcache.ErrCacheMiss, err)
	require.NoError(t, closed.Close())
	before := f.Received()

	refused := func(c *memcache.Client, state string) {
		t.Helper()
		_, err := c.Get("k")
		assert.ErrorIs(t, err, memcacheddriver.ErrNotOpen, state)
		assert.ErrorIs(t, c.Set(&memcache.Item{Key: "k"}), memcacheddriver.ErrNotOpen, state)
		assert.ErrorIs(t, c.Ping(), memcacheddriver.ErrNotOpen, state)
	}
	for state, db := range map[string]*memcacheddriver.MemcachedDB{"never opened": memcacheddriver.New(), "closed": closed} {
		for _, call := range drivertest.Calls {
			assert.ErrorIs(t, call.Run(t.Context(), db, "k"), memcacheddriver.ErrNotOpen, "%s, %s", state, call.Name)
		}
		assert.ErrorIs(t, db.Do(t.Context(), func(*memcache.Client) error { t.Error("called"); return nil }), memcacheddriver.ErrNotOpen, state)
		refused(db.Client(), state)
		_, err = db.MGet(t.Context(), nil)
		assert.ErrorIs(t, err, memcacheddriver.ErrNotOpen, "%s: MGet of nothing", state)
		assert.Nil(t, db.Stats(), state)
		assert.NoError(t, db.Close(), state)
		assert.Equal(t, "memcached", db.Info().Name, state)
	}
	refused(kept, "a client of before")
	assert.Equal(t, before, f.Received())

	require.NoError(t, closed.Open(t.Context(), f.Addr()))
	require.NoError(t, closed.Ping(t.Context()), "it can be opened again")
	refused(kept, "a client of before, of a driver that was opened again")
}

func TestOpenAndClose(t *testing.T) {
	t.Parallel()
	addr := memcachedtest.Addr(t)
	db := memcacheddriver.New()
	require.Error(t, db.Open(t.Context(), ""))
	require.NoError(t, db.Open(t.Context(), addr), "a failed Open left the driver open")
	require.ErrorIs(t, db.Open(t.Context(), addr), memcacheddriver.ErrAlreadyOpen)
	require.NoError(t, db.Ping(t.Context()), "the second Open broke the first")
	require.NoError(t, db.Close())
	require.NoError(t, db.Close())
	require.NoError(t, db.Open(t.Context(), addr), "a closed driver can be opened again")
	require.NoError(t, db.Ping(t.Context()))
	require.NoError(t, db.Close())
}

// A service starts while its caches are down, and while their names are not
// known.
func TestOpenDialsNothing(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, nil)
	db := drivertest.Open(t, f.Addr())
	assert.Zero(t, drivertest.Dials(db))
	require.NoError(t, db.Ping(t.Context()))
	assert.Equal(t, 1, f.Accepted(), "Ping needs one connection, and Open none")

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	down := memcacheddriver.New()
	require.NoError(t, down.Open(ended, "no-such-host.invalid,127.0.0.1:1,/no/such/socket"))
	require.NoError(t, down.Close())
}

// No call fails otherwise than by being closed, and no connection is left.
func TestOpenCloseAndCallsAtOnce(t *testing.T) {
	t.Parallel()
	plain := memcachedtest.Start(t)
	secure, config := memcachedtest.StartTLS(t)
	for name, c := range map[string]struct {
		server *memcachedtest.Server
		opts   []driver.Option
	}{"plain": {plain, nil}, "TLS": {secure, []driver.Option{driver.WithTLSConfig(config)}}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			count := drivertest.Connections(t, c.server)
			db := memcacheddriver.New()
			key := drivertest.Key()
			var served atomic.Int64
			open := func() {
				err := db.Open(t.Context(), c.server.Addr(), append(c.opts, memcacheddriver.WithTTLQuery())...)
				if !errors.Is(err, memcacheddriver.ErrAlreadyOpen) {
					assert.NoError(t, err)
				}
			}

			stop := make(chan struct{})
			var callers sync.WaitGroup
			calls := append([]drivertest.Call{{Name: "native", Run: func(_ context.Context, db *memcacheddriver.MemcachedDB, key string) error {
				return db.Client().Set(&memcache.Item{Key: key, Value: []byte("1")})
			}}}, drivertest.Calls...)
			for _, call := range calls {
				callers.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						err := call.Run(t.Context(), db, key)
						switch {
						case err == nil:
							served.Add(1)
						case errors.Is(err, memcacheddriver.ErrNotOpen):
							time.Sleep(50 * time.Microsecond)
						case !errors.Is(err, kv.ErrConflict):
							t.Errorf("%s: %v", call.Name, err)
							return
						}
						db.Stats()
					}
				})
			}
			var openers sync.WaitGroup
			for range 2 {
				openers.Go(func() {
					for i := range 40 {
						open()
						time.Sleep(time.Duration(i%4) * time.Millisecond)
						assert.NoError(t, db.Close())
					}
				})
			}
			openers.Wait()
			// However slow the machine, calls get through while nobody closes.
			open()
			before := served.Load()
			memcachedtest.Eventually(t, func() bool { return served.Load() > before }, "a call is served")
			close(stop)
			callers.Wait()
			require.NoError(t, db.Close())
			memcachedtest.Eventually(t, func() bool { return count() == 0 }, "the server has lost all connections")
		})
	}
}

// A store closes its driver, and what comes later names no connection error.
func TestCloseOfTheStoreClosesTheDriver(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	count := drivertest.Connections(t, server)
	store := drivertest.OpenStore(t, server.Addr())
	require.NoError(t, store.Set(t.Context(), "k", "v"))
	client := memcacheddriver.UnwrapClient(store)
	require.NoError(t, store.Close())
	_, err := client.Get("k")
	require.ErrorIs(t, err, memcacheddriver.ErrNotOpen)
	require.NotContains(t, err.Error(), "use of closed")
	memcachedtest.Eventually(t, func() bool { return count() == 0 }, "the server has lost all connections")
}

func TestCredentialsInTheClearAreWarnedOf(t *testing.T) {
	t.Parallel()
	const password = "s3cret"
	for _, c := range []struct {
		dsn  string
		warn []string // servers
	}{
		{"cache.example", []string{"cache.example:11211"}},
		{"localhost,a.example,127.0.0.1,b.example:1", []string{"a.example:11211", "b.example:1"}},
		{"10.1.2.3", []string{"10.1.2.3:11211"}},
		{"localhost,127.0.0.7,[::1],/run/memcached.sock", nil},
		{"cache.example?tls=true", nil},
	} {
		l := drivertest.NewLog()
		drivertest.Open(t, c.dsn, memcacheddriver.WithCredentials("ann", password), driver.WithLogger(l))
		require.Len(t, l.Lines(), len(c.warn), c.dsn)
		for _, server := range c.warn {
			require.Len(t, l.Lines("warn", "clear", server), 1, c.dsn)
		}
		require.Empty(t, l.Lines(password))

		l = drivertest.NewLog()
		drivertest.Open(t, c.dsn, driver.WithLogger(l))
		require.Empty(t, l.Lines(), "no credentials, no warning")
	}
}

// Plain gomemcache clients with the same list find each other's data, also with
// a server listed twice.
func TestKeysMapAsInGomemcache(t *testing.T) {
	t.Parallel()
	_, addrs := drivertest.StartServers(t, 3)
	for name, list := range map[string][]string{
		"three servers": addrs,
		"one twice":     {addrs[0], addrs[1], addrs[0], addrs[2]},
		"another order": {addrs[2], addrs[0], addrs[1]},
	} {
		plain := memcache.New(list...)
		plain.Timeout = 10 * time.Second
		db := drivertest.Open(t, strings.Join(list, ", "))

		keys := drivertest.Keys(100)
		var batch []string
		for i, key := range keys {
			switch i % 3 {
			case 0:
				require.NoError(t, db.Set(t.Context(), key, drivertest.Value(key), 0))
			case 1:
				require.NoError(t, plain.Set(&memcache.Item{Key: key, Value: drivertest.Value(key)}))
			case 2:
				batch = append(batch, key)
			}
		}
		require.NoError(t, db.MSet(t.Context(), drivertest.Pairs(batch), 0))

		values, err := db.MGet(t.Context(), keys)
		require.NoError(t, err)
		assert.Equal(t, 100, drivertest.AssertValues(t, keys, values), "%s: MGet", name)
		for _, key := range keys {
			want := drivertest.Value(key)
			got, err := db.Get(t.Context(), key)
			require.NoError(t, err, "%s: %s is not where gomemcache puts it", name, key)
			assert.Equal(t, want, got)
			item, err := plain.Get(key)
			require.NoError(t, err, "%s: gomemcache does not find %s", name, key)
			assert.Equal(t, want, item.Value)
			item, err = db.Client().Get(key)
			require.NoError(t, err, "%s: the driver's client does not find %s", name, key)
			assert.Equal(t, want, item.Value)
		}
		n, err := db.Exists(t.Context(), keys...)
		require.NoError(t, err)
		assert.EqualValues(t, 100, n)

		// What one deletes is gone for the other.
		n, err = db.Delete(t.Context(), keys...)
		require.NoError(t, err)
		assert.EqualValues(t, 100, n)
		items, err := plain.GetMulti(keys)
		require.NoError(t, err)
		assert.Empty(t, items)
		require.NoError(t, plain.Close())
	}
}

// One dead server of three fails its own keys alone, and by name.
func TestAServerThatIsDownFailsItsOwnKeysAlone(t *testing.T) {
	t.Parallel()
	servers, addrs := drivertest.StartServers(t, 3)
	db := drivertest.Open(t, strings.Join(addrs, ","), memcacheddriver.WithTTLQuery())
	keys := drivertest.KeysOf(t, addrs, 1)
	servers[1].Kill()
	for _, call := range drivertest.Calls {
		if call.Keys != 1 {
			continue
		}
		for _, i := range []int{0, 2} {
			require.NoError(t, db.Set(t.Context(), keys[i][0], []byte("1"), 0))
			assert.NoError(t, call.Run(t.Context(), db, keys[i][0]), call.Name)
		}
		err := call.Run(t.Context(), db, keys[1][0])
		require.Error(t, err, call.Name)
		op := drivertest.RequireOpError(t, err)
		assert.Equal(t, addrs[1], op.Server, call.Name)
		assert.Equal(t, keys[1], op.Keys, call.Name)
		assert.NotErrorIs(t, err, kv.ErrNotFound, "%s: a server that is down is no miss", call.Name)
		assert.NotErrorIs(t, err, context.DeadlineExceeded, call.Name)
	}
	require.Equal(t, memcacheddriver.ServerDown, db.Stats()[1].State)

	servers[1].Restart()
	memcachedtest.Eventually(t, func() bool { return db.Set(t.Context(), keys[1][0], nil, 0) == nil }, "the driver notices that it is back")
}
