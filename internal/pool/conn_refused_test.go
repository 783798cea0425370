package pool_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// A server that is full and evicts nothing refuses every new value.
func TestARefusedSetKeepsItsConnection(t *testing.T) {
	t.Parallel()
	for name, start := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, opts := start(t, "-m", "1", "-M", "-I", "512k")
			db := drivertest.OpenAsked(t, server.Addr(), opts...)
			refused, value := 0, make([]byte, 100_000)
			for i := range 200 {
				if err := db.Set(t.Context(), fmt.Sprint("large", i), value, 0); err != nil {
					require.ErrorContains(t, err, "SERVER_ERROR out of memory")
					refused++
				}
				if err := db.Client().Set(&memcache.Item{Key: fmt.Sprint("native", i), Value: value}); err != nil {
					refused++
				}
			}
			require.Greater(t, refused, 200)
			require.EqualValues(t, 1, drivertest.Dials(db))
		})
	}
}

func TestAnIncrementOfTextKeepsItsConnection(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"TCP", "TLS"} {
		server, opts := ways[name](t)
		db := drivertest.OpenAsked(t, server.Addr(), opts...)
		require.NoError(t, db.Set(t.Context(), "text", []byte("text"), 0))
		for i := range 20 {
			value := fmt.Sprint(i)
			require.NoError(t, db.Set(t.Context(), "k", []byte(value), 0))
			_, err := db.Client().Increment("text", 1)
			require.ErrorContains(t, err, "non-numeric", name)
			item, err := db.Client().Get("k")
			require.NoError(t, err)
			require.Equal(t, value, string(item.Value))
			require.Error(t, db.Do(t.Context(), func(c *memcache.Client) error {
				_, err := c.Increment("text", 1)
				item, getErr := c.Get("k")
				require.NoError(t, getErr)
				require.Equal(t, value, string(item.Value))
				return err
			}))
		}
		require.EqualValues(t, 1, drivertest.Dials(db), name)
		drivertest.RequireIdle(t, db)
	}
}

// moreCalls are gomemcache's with an error line of their own.
var moreCalls = []drivertest.Call{
	{Name: "native Delete", Run: func(_ context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return db.Client().Delete(key)
	}},
	{Name: "native Touch", Run: func(_ context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return db.Client().Touch(key, 1)
	}},
	{Name: "native GetAndTouch", Run: func(_ context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.Client().GetAndTouch(key, 1)
		return err
	}},
	{Name: "native Ping", Run: func(_ context.Context, db *memcacheddriver.MemcachedDB, _ string) error {
		return db.Client().Ping()
	}},
	{Name: "native FlushAll", Run: func(_ context.Context, db *memcacheddriver.MemcachedDB, _ string) error {
		return db.Client().FlushAll()
	}},
	{Name: "native CompareAndSwap", Run: func(_ context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return db.Client().CompareAndSwap(&memcache.Item{Key: key})
	}},
}

// dialsAfter makes a call that is answered by reply and returns how often the
// driver has dialled when the next calls have their own replies.
func dialsAfter(t *testing.T, call drivertest.Call, reply string) uint64 {
	t.Helper()
	server := memcachedtest.StartFake(t, nil)
	db := drivertest.OpenAsked(t, server.Addr(), memcacheddriver.WithTTLQuery())
	server.SetScript(memcachedtest.Script{"mn": (*memcachedtest.FakeConn).Default, "*": memcachedtest.Say(reply)})
	require.Error(t, call.Run(t.Context(), db, "k"), call.Name)
	server.SetScript(memcachedtest.Script{"gets": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		c.Say(memcachedtest.Value(cmd.Args[0], string(drivertest.Value(cmd.Args[0]))) + "END\r\n")
	}})
	for _, key := range drivertest.Keys(3) {
		value, err := db.Get(t.Context(), key)
		require.NoError(t, err, call.Name)
		require.Equal(t, string(drivertest.Value(key)), string(value), call.Name)
	}
	assert.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
	return drivertest.Dials(db)
}

// An error line leaves the connection in step, unless what is left of the request
// may be taken for commands, or of the reply for the next one.
func TestAnErrorLineKeepsTheConnection(t *testing.T) {
	t.Parallel()
	storage := map[string]bool{
		"Set": true, "Set under a second": true, "SetNX": true, "SetNX under a second": true, "SetXX": true,
		"SetXX under a second": true, "MSet of one": true, "MSet": true, "MSet under a second": true,
		"native Set": true, "native CompareAndSwap": true,
	}
	// Several commands: where one fails, nobody waits for the others' replies.
	several := map[string]bool{"Exists of two": true}
	never := func(string) bool { return false }
	oneLine := func(name string) bool { return !storage[name] && !several[name] && name != "Delete of two" }
	for reply, kept := range map[string]func(name string) bool{
		"SERVER_ERROR Host is down\r\n":            func(name string) bool { return !several[name] },
		"ERROR\r\n":                                oneLine,
		"CLIENT_ERROR bad command line format\r\n": oneLine,
		"CLIENT_ERROR unauthenticated\r\n":         never, // a new one will authenticate
		"ERROR Too many open connections\r\n":      never,
		"SERVER_ERROR x\r\nERROR\r\n":              never,
		"ERROR\r\nERROR\r\n":                       never,
		"rubbish\r\n":                              never,
		"VERSION of another\r\nEND\r\n":            never,
	} {
		t.Run(strings.TrimSpace(reply), func(t *testing.T) {
			t.Parallel()
			for _, call := range slices.Concat(drivertest.Calls, nativeCalls, moreCalls) {
				if (call.Name == "Ping" || call.Name == "native Ping") && strings.HasPrefix(reply, "VERSION") {
					continue
				}
				want := uint64(2)
				if kept(call.Name) {
					want = 1
				}
				assert.Equal(t, want, dialsAfter(t, call, reply), call.Name)
			}
		})
	}
}

// Replies that some other command has.
func TestAForeignReplyClosesTheConnection(t *testing.T) {
	t.Parallel()
	for _, call := range slices.Concat(nativeCalls, moreCalls) {
		for _, reply := range []string{"HD\r\n", "TOUCHED\r\n", "DELETED\r\n", "OK\r\n", "STORED\r\n", "END\r\n", "7\r\n", "VERSION 1.6.18\r\n"} {
			if own := map[string]string{
				"native Get": "END", "native GetMulti": "END", "GetMulti in Do": "END", "native GetAndTouch": "END",
				"native Set": "STORED", "native CompareAndSwap": "STORED", "native Delete": "DELETED OK",
				"native Touch": "TOUCHED", "native FlushAll": "OK", "native Ping": "VERSION 1.6.18",
			}[call.Name]; strings.Contains(own, strings.TrimSpace(reply)) {
				continue
			}
			assert.EqualValues(t, 2, dialsAfter(t, call, reply), "%s, %s", call.Name, reply)
		}
	}
}

// An error line behind values, or to a request that a server may have split.
func TestAnErrorLineThatIsNotAllClosesTheConnection(t *testing.T) {
	t.Parallel()
	keys := strings.Fields(strings.Repeat(strings.Repeat("k", 200)+" ", 12))
	for i := range keys {
		keys[i] += fmt.Sprint(i)
	}
	multi := func(keys ...string) drivertest.Call {
		return drivertest.Call{Name: "GetMulti", Run: func(_ context.Context, db *memcacheddriver.MemcachedDB, _ string) error {
			_, err := db.Client().GetMulti(keys)
			return err
		}}
	}
	mget := func(keys ...string) drivertest.Call {
		return drivertest.Call{Name: "MGet", Run: func(ctx context.Context, db *memcacheddriver.MemcachedDB, _ string) error {
			_, err := db.MGet(ctx, keys)
			return err
		}}
	}
	for _, call := range []func(...string) drivertest.Call{multi, mget} {
		assert.EqualValues(t, 2, dialsAfter(t, call(keys...), "ERROR\r\n"))
		assert.EqualValues(t, 1, dialsAfter(t, call(keys...), "SERVER_ERROR x\r\n"))
		assert.EqualValues(t, 2, dialsAfter(t, call("a", "b"), "VALUE a 0 1 1\r\nv\r\nSERVER_ERROR x\r\n"))
	}
}

// The reply to the next command of a batch is still to come.
func TestAnErrorWithinABatchClosesTheConnection(t *testing.T) {
	t.Parallel()
	server := memcachedtest.StartFake(t, memcachedtest.Script{"mg": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
		c.Say("SERVER_ERROR x\r\n")
		c.Hang()
	}})
	db := drivertest.OpenAsked(t, server.Addr())
	_, err := db.Exists(t.Context(), "a", "b")
	require.ErrorContains(t, err, "SERVER_ERROR x")
	require.Zero(t, drivertest.Stat(t, db).Idle)
}

// The client of a Do that fn uses from several goroutines keeps one connection of
// its own to a server; the others go back to the pool.
func TestConnectionsTooManyForALaneAreKept(t *testing.T) {
	t.Parallel()
	const n = 5
	db := drivertest.Open(t, memcachedtest.StartFake(t, nil).Addr())
	drivertest.Fill(t, db, n)
	require.NoError(t, db.Do(t.Context(), func(c *memcache.Client) error {
		var all sync.WaitGroup
		for range n {
			all.Go(func() { assert.Equal(t, memcache.ErrCacheMiss, c.Delete("k")) })
		}
		all.Wait()
		return nil
	}))
	assert.EqualValues(t, n, drivertest.Dials(db))
	assert.Equal(t, n, drivertest.Stat(t, db).Idle)
}

// A server that closes the connection after it has refused one of a batch costs the
// next call only where its end comes after the look.
func TestASocketIsLookedAtAfterARefusalInABatch(t *testing.T) {
	t.Parallel()
	const rounds = 200
	refuse := func(well string) memcachedtest.Handler {
		return func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			if cmd.Args[0] == "k" {
				c.Say("SERVER_ERROR x\r\n")
				c.Close()
			} else {
				c.Say(well)
			}
		}
	}
	server := memcachedtest.StartFake(t, memcachedtest.Script{"ms": refuse("HD\r\n"), "delete": refuse("DELETED\r\n")})
	for _, call := range drivertest.Calls {
		if call.Name != "Set under a second" && call.Name != "Delete of two" {
			continue
		}
		db := drivertest.Open(t, server.Addr(), memcacheddriver.WithServerFailureLimit(0, 0))
		failed := 0
		for range rounds {
			require.Error(t, call.Run(t.Context(), db, "k"), call.Name)
			if db.Set(t.Context(), "other", nil, 0) != nil {
				failed++
			}
		}
		assert.Less(t, failed, rounds/2, call.Name)
	}
}
