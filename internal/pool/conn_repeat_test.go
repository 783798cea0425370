package pool_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// readsOnly are the calls that are sent again.
var readsOnly = map[string]bool{
	"Get": true, "MGet of one": true, "MGet": true, "Exists": true, "Exists of two": true, "TTL": true,
	"native Get": true, "native GetMulti": true, "GetMulti in Do": true,
}

// first runs h for the commands of the first connection, but for those of its
// dial, and answers all others as an empty memcached does.
func first(h memcachedtest.Handler) memcachedtest.Script {
	return memcachedtest.AfterDial(func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		if c.N == 1 {
			h(c, cmd)
			return
		}
		c.Default(cmd)
	})
}

// openUsed opens a driver with an idle connection that was used, for which one
// failure is the end of its server.
func openUsed(t *testing.T, addr string) *memcacheddriver.MemcachedDB {
	t.Helper()
	return drivertest.OpenAsked(t, addr, memcacheddriver.WithTTLQuery(), memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
}

// The server reads the request on a connection that had an earlier one, and hangs
// up: that it had closed it before cannot be told from that.
func TestAReadIsSentAgain(t *testing.T) {
	t.Parallel()
	for _, call := range slices.Concat(drivertest.Calls, nativeCalls, moreCalls) {
		if call.Name == "Ping" || call.Name == "native Ping" {
			continue // version is what the dial asks
		}
		server := memcachedtest.StartFake(t, first(memcachedtest.HangUp))
		db := openUsed(t, server.Addr())
		err := call.Run(t.Context(), db, "k")
		s := drivertest.Stat(t, db)
		if !readsOnly[call.Name] {
			assert.ErrorContains(t, err, "the server closed the connection", call.Name)
			assert.EqualValues(t, 1, s.Dials, call.Name)
			assert.Equal(t, memcacheddriver.ServerDown, s.State, call.Name)
			continue
		}
		if err != memcache.ErrCacheMiss {
			assert.NoError(t, err, call.Name)
		}
		assert.EqualValues(t, 2, s.Dials, call.Name)
		assert.EqualValues(t, 1, s.StaleConns, call.Name)
		assert.Equal(t, memcacheddriver.ServerUp, s.State, call.Name)
		assert.Equal(t, 1, s.Idle, call.Name)
	}
}

func TestAReadIsSentTwiceAtMost(t *testing.T) {
	t.Parallel()
	for _, call := range slices.Concat(drivertest.Calls, nativeCalls) {
		if !readsOnly[call.Name] {
			continue
		}
		server := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.HangUp))
		db := openUsed(t, server.Addr())
		require.ErrorContains(t, call.Run(t.Context(), db, "k"), "the server closed the connection", call.Name)
		s := drivertest.Stat(t, db)
		assert.EqualValues(t, 2, s.Dials, call.Name)
		assert.Equal(t, 2, server.Count("*")-server.Count("version")-server.Count("mn"), call.Name)
		assert.Equal(t, memcacheddriver.ServerDown, s.State, "%s: the second failure counts", call.Name)
	}
}

// A reply that has begun, a connection that is new, a server that is silent.
func TestAReadIsNotSentAgain(t *testing.T) {
	t.Parallel()
	half := func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
		c.Say("V")
		c.Close()
	}
	for _, call := range slices.Concat(drivertest.Calls, nativeCalls) {
		if !readsOnly[call.Name] {
			continue
		}
		db := openUsed(t, memcachedtest.StartFake(t, first(half)).Addr())
		require.Error(t, call.Run(t.Context(), db, "k"), "half a reply: %s", call.Name)
		assert.EqualValues(t, 1, drivertest.Dials(db), "half a reply: %s", call.Name)

		db = drivertest.Open(t, memcachedtest.StartFake(t, first(memcachedtest.HangUp)).Addr(), memcacheddriver.WithTTLQuery())
		require.Error(t, call.Run(t.Context(), db, "k"), "new: %s", call.Name)
		assert.EqualValues(t, 1, drivertest.Dials(db), "new: %s", call.Name)
	}
	db := openUsed(t, memcachedtest.StartFake(t, first(memcachedtest.HangUp)).Addr())
	_, err := db.Client().GetMulti(strings.Fields(strings.Repeat(strings.Repeat("k", 200)+" ", 21)))
	require.Error(t, err, "a request too long to keep")
	require.EqualValues(t, 1, drivertest.Dials(db))

	server := memcachedtest.StartFake(t, first(memcachedtest.Hang))
	db = drivertest.OpenAsked(t, server.Addr(), memcacheddriver.WithTimeout(100*time.Millisecond))
	_, err = db.Get(t.Context(), "k")
	require.ErrorContains(t, err, "read timeout")
	require.Equal(t, 1, server.Count("gets"))
}

func TestAReadWhoseContextEndsIsNotSentAgain(t *testing.T) {
	t.Parallel()
	for _, call := range slices.Concat(drivertest.Calls, nativeCalls) {
		if !readsOnly[call.Name] || strings.HasPrefix(call.Name, "native") {
			continue
		}
		ctx, cancel := context.WithCancel(t.Context())
		server := memcachedtest.StartFake(t, first(func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
			cancel()
			c.Close()
		}))
		db := openUsed(t, server.Addr())
		require.ErrorIs(t, call.Run(ctx, db, "k"), context.Canceled, call.Name)
		assert.EqualValues(t, 1, drivertest.Dials(db), call.Name)
	}
}

// An idle connection may be as stale as the one that failed.
func TestAReadIsSentAgainOnANewConnection(t *testing.T) {
	t.Parallel()
	const idle = 4
	hangUp := func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		if c.N <= idle {
			c.Close()
			return
		}
		c.Say(memcachedtest.Value(cmd.Args[0], string(drivertest.Value(cmd.Args[0]))) + "END\r\n")
	}
	for name, get := range map[string]func(*memcacheddriver.MemcachedDB) error{
		"Get": func(db *memcacheddriver.MemcachedDB) error { _, err := db.Get(t.Context(), "k"); return err },
		"MGet": func(db *memcacheddriver.MemcachedDB) error {
			_, err := db.MGet(t.Context(), []string{"k", "l"})
			return err
		},
	} {
		server := memcachedtest.StartFake(t, nil)
		db := drivertest.Open(t, server.Addr(), memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
		drivertest.Fill(t, db, idle)
		server.SetScript(memcachedtest.Script{"get": hangUp, "gets": hangUp})
		require.NoError(t, get(db), name)
		require.EqualValues(t, idle+1, drivertest.Dials(db), name)
	}
}

// With all connections in everyday use: it has waited for its turn, and keeps it.
func TestAReadThatIsSentAgainIsNotOvertaken(t *testing.T) {
	t.Parallel()
	var once sync.Once
	server := memcachedtest.StartFake(t, memcachedtest.Script{"get": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		if cmd.Args[0] == "again" {
			once.Do(func() { c.Close() })
		}
		time.Sleep(time.Millisecond) // on its way
		c.Default(cmd)
	}})
	db := drivertest.Open(t, server.Addr(), memcacheddriver.WithMaxOpenConns(2), driver.WithDialTimeout(time.Second))
	var served atomic.Int64
	var stop atomic.Bool
	var others sync.WaitGroup
	for range 10 {
		others.Go(func() {
			for !stop.Load() {
				assert.NoError(t, batch(t.Context(), db, "k"))
				served.Add(1)
			}
		})
	}
	memcachedtest.Eventually(t, func() bool { return served.Load() > 100 }, "all connections are in use")
	before := served.Load()
	assert.NoError(t, batch(t.Context(), db, "again"))
	assert.Less(t, served.Load()-before, int64(500))
	stop.Store(true)
	others.Wait()
}

func TestABatchIsSentAgainToOneServer(t *testing.T) {
	t.Parallel()
	a, b := memcachedtest.StartFake(t, first(memcachedtest.HangUp)), memcachedtest.StartFake(t, nil)
	addrs := []string{a.Addr(), b.Addr()}
	db := drivertest.OpenAsked(t, strings.Join(addrs, ","))
	keys := drivertest.KeysOf(t, addrs, 2)
	_, err := db.MGet(t.Context(), slices.Concat(keys...))
	require.NoError(t, err)
	require.Equal(t, 2, a.Count("get"))
	require.Equal(t, 1, b.Count("get"))
	require.EqualValues(t, 3, drivertest.Dials(db))
}

// A server that closes what was idle for 5 ms, and is asked about then.
func TestReadsOfAServerThatClosesIdleConnections(t *testing.T) {
	t.Parallel()
	const callers, gets = 8, 190
	server := memcachedtest.StartFake(t, memcachedtest.Script{"gets": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		c.Say(memcachedtest.Value(cmd.Args[0], string(drivertest.Value(cmd.Args[0]))) + "END\r\n")
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
	}})
	db := drivertest.Open(t, server.Addr(), memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for range gets {
				key := drivertest.Key()
				value, err := db.Get(t.Context(), key)
				if assert.NoError(t, err) {
					assert.Equal(t, string(drivertest.Value(key)), string(value))
				}
				time.Sleep(4*time.Millisecond + time.Duration(rand.IntN(int(2*time.Millisecond))))
			}
		})
	}
	all.Wait()
	require.Positive(t, drivertest.Stat(t, db).StaleConns)
}

// Others' calls have found the server down meanwhile: many reads that are to be sent
// again must not all dial.
func TestAReadIsNotSentAgainToAServerThatIsDown(t *testing.T) {
	t.Parallel()
	const reads = 7 // and the Set: more calls would share a socket
	closing, waiting := make(chan struct{}), make(chan struct{}, reads)
	server := memcachedtest.StartFake(t, nil)
	db := drivertest.Open(t, server.Addr(), memcacheddriver.WithMaxIdleConns(reads+1), memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
	drivertest.Fill(t, db, reads+1)
	server.SetScript(memcachedtest.Script{
		"gets": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
			waiting <- struct{}{}
			c.Wait(closing)
			c.Close()
		},
		"set": memcachedtest.HangUp,
	})
	var all sync.WaitGroup
	for range reads {
		all.Go(func() {
			_, err := db.Get(t.Context(), "k")
			assert.ErrorIs(t, err, memcacheddriver.ErrServerDown)
		})
	}
	for range reads {
		<-waiting
	}
	require.Error(t, db.Set(t.Context(), "k", nil, 0))
	dials := drivertest.Dials(db)
	close(closing)
	all.Wait()
	assert.Equal(t, dials, drivertest.Dials(db))
}
