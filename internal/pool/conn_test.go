package pool_test

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// nativeCalls are calls of the client without a context.
var nativeCalls = []drivertest.Call{
	{Name: "native Get", Run: func(_ context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.Client().Get(key)
		return err
	}},
	{Name: "native Set", Run: func(_ context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return db.Client().Set(&memcache.Item{Key: key})
	}},
	{Name: "native GetMulti", Run: func(_ context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.Client().GetMulti([]string{key, drivertest.Other})
		return err
	}},
	{Name: "GetMulti in Do", Run: func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return db.Do(ctx, func(c *memcache.Client) error {
			_, err := c.GetMulti([]string{key, drivertest.Other})
			return err
		})
	}},
}

// requireTimeout checks that a call ends by the named timeout of d, and that it
// says so and counts once.
func requireTimeout(t *testing.T, db *memcacheddriver.MemcachedDB, name string, d time.Duration, call func() error) {
	t.Helper()
	before := drivertest.Stat(t, db)
	start := time.Now()
	err := call()
	took := time.Since(start)
	require.ErrorContains(t, err, name+" timeout of "+d.String())
	require.ErrorContains(t, err, before.Addr)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NotErrorIs(t, err, context.DeadlineExceeded, "that would be the caller's")
	var timeout net.Error
	require.ErrorAs(t, err, &timeout)
	require.True(t, timeout.Timeout())
	require.GreaterOrEqual(t, took, d)
	require.Less(t, took, drivertest.Never/4)
	require.Equal(t, before.Timeouts+1, drivertest.Stat(t, db).Timeouts)
	drivertest.RequireIdle(t, db)
}

// openTimeouts opens a driver with all three timeouts, for which no server is
// ever down.
func openTimeouts(t *testing.T, addr string, dial, read, write time.Duration, opts ...driver.Option) *memcacheddriver.MemcachedDB {
	t.Helper()
	return drivertest.Open(t, addr, append(opts, driver.WithDialTimeout(dial), driver.WithReadTimeout(read),
		driver.WithWriteTimeout(write), memcacheddriver.WithServerFailureLimit(0, 0), memcacheddriver.WithTTLQuery())...)
}

// Each timeout is its own: the others cannot be waited for.
func TestDialTimeoutIsForAllOfTheDial(t *testing.T) {
	t.Parallel()
	const d = 60 * time.Millisecond
	fake := func(script memcachedtest.Script) func(*testing.T) string {
		return func(t *testing.T) string { return memcachedtest.StartFake(t, script).Addr() }
	}
	for name, where := range map[string]struct {
		addr func(t *testing.T) string
		opts []driver.Option
	}{
		"connecting":     {func(t *testing.T) string { return memcachedtest.BlackHole(t) }, nil},
		"TLS":            {fake(memcachedtest.Script{"*": memcachedtest.Hang}), []driver.Option{driver.WithTLSConfig(&tls.Config{})}},
		"authentication": {fake(memcachedtest.Script{"*": memcachedtest.Hang}), []driver.Option{memcacheddriver.WithCredentials("u", "p")}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := openTimeouts(t, where.addr(t), d, drivertest.Never, drivertest.Never, where.opts...)
			requireTimeout(t, db, "dial", d, func() error { _, err := db.Get(t.Context(), "k"); return err })
			requireTimeout(t, db, "dial", d, func() error { _, err := db.Client().Get("k"); return err })
			require.EqualValues(t, 2, drivertest.Stat(t, db).DialErrors)
		})
	}
}

func TestReadTimeoutEndsEveryCall(t *testing.T) {
	t.Parallel()
	const d = 500 * time.Millisecond // much more than the dial's question takes
	addr := memcachedtest.StartFake(t, hangsAfterDial).Addr()
	for _, call := range append(nativeCalls, drivertest.Calls...) {
		t.Run(call.Name, func(t *testing.T) {
			t.Parallel()
			db := openTimeouts(t, addr, drivertest.Never, d, drivertest.Never)
			requireTimeout(t, db, "read", d, func() error { return call.Run(t.Context(), db, "k") })
			require.Zero(t, drivertest.Stat(t, db).DialErrors, "the call did not get to its request")
		})
	}
}

func TestWriteTimeoutEndsALargeValue(t *testing.T) {
	t.Parallel()
	const d = 300 * time.Millisecond
	server := memcachedtest.StartFake(t, memcachedtest.Script{"mn": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
		c.Say("MN\r\n")
		c.Wait(nil) // reading nothing
	}})
	huge := make([]byte, 64<<20) // more than the buffers hold
	db := openTimeouts(t, server.Addr(), drivertest.Never, drivertest.Never, d)
	for _, call := range []func() error{
		func() error { return db.Set(t.Context(), "k", huge, 0) },
		func() error { return db.Client().Set(&memcache.Item{Key: "k", Value: huge}) },
		func() error { return db.MSet(t.Context(), map[string][]byte{"a": huge, "b": huge}, 0) },
	} {
		requireTimeout(t, db, "write", d, call)
	}
	require.Zero(t, drivertest.Stat(t, db).DialErrors)
}

// repeat says text again and again, until the client has had enough or its test
// has failed.
func repeat(c *memcachedtest.FakeConn, text string, pause time.Duration) {
	for end := time.Now().Add(drivertest.Never / 2); c.Say(text) && time.Now().Before(end); {
		time.Sleep(pause)
	}
}

// drip answers with text and then with a byte now and then.
func drip(text string) memcachedtest.Handler {
	return func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
		c.Say(text)
		repeat(c, "S", 15*time.Millisecond)
	}
}

// retrieves are the calls that a server without the meta protocol is asked by
// get or gets.
var retrieves = map[string]bool{"Get": true, "Exists": true, "MGet": true, "native GetMulti": true, "GetMulti in Do": true}

func TestTimeoutIsNotProlongedByBytes(t *testing.T) {
	t.Parallel()
	const d = 300 * time.Millisecond // much more than a pause of drip's
	for what, rest := range map[string]string{"a value": " 0 100000 1\r\n", "a line": ""} {
		value := func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			drip("VALUE "+cmd.Args[0]+rest)(c, cmd)
		}
		var dialled sync.Map // connections whose dial has its version
		server := memcachedtest.StartFake(t, memcachedtest.Script{
			"get": value, "gets": value, "*": drip("S"), "mn": (*memcachedtest.FakeConn).Default,
			"version": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
				if _, ping := dialled.LoadOrStore(c.N, true); ping {
					drip("S")(c, cmd)
				}
				c.Default(cmd)
			},
		})
		for _, call := range append(nativeCalls, drivertest.Calls...) {
			if what == "a line" && !retrieves[call.Name] {
				continue // the others wait for a line anyway
			}
			t.Run(call.Name+", "+what, func(t *testing.T) {
				t.Parallel()
				db := openTimeouts(t, server.Addr(), drivertest.Never, d, drivertest.Never)
				requireTimeout(t, db, "read", d, func() error { return call.Run(t.Context(), db, "k") })
			})
		}
	}
}

// A server that is slow but keeps answering does not time out, as long as each
// value comes in time.
func TestTimeoutIsForEachValueOfGetMulti(t *testing.T) {
	t.Parallel()
	const (
		keys  = 14
		pause = 100 * time.Millisecond
		d     = time.Second // less than all values take, much more than one
	)
	values := func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		for _, key := range cmd.Args {
			time.Sleep(pause)
			c.Say(memcachedtest.Value(key, "v"))
		}
		c.Say("END\r\n")
	}
	server := memcachedtest.StartFake(t, memcachedtest.Script{"get": values, "gets": values})
	db := openTimeouts(t, server.Addr(), drivertest.Never, d, drivertest.Never)
	names := drivertest.Keys(keys)
	for name, call := range map[string]func(ctx context.Context) (map[string]*memcache.Item, error){
		"native": func(context.Context) (map[string]*memcache.Item, error) { return db.Client().GetMulti(names) },
		"in Do": func(ctx context.Context) (items map[string]*memcache.Item, err error) {
			err = db.Do(ctx, func(c *memcache.Client) error {
				items, err = c.GetMulti(names)
				return err
			})
			return items, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			items, err := call(t.Context())
			require.NoError(t, err)
			require.Len(t, items, keys)
			require.Greater(t, time.Since(start), d)
		})
	}
}

// Values without end, each complete: more than were asked for are no progress.
func TestTimeoutOfRepliesWithoutEnd(t *testing.T) {
	t.Parallel()
	values := func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		repeat(c, "VALUE "+cmd.Args[0]+" 0 1 1\r\nv\r\n", 20*time.Millisecond)
	}
	server := memcachedtest.StartFake(t, memcachedtest.Script{
		"version": memcachedtest.Say("VERSION 1.4.0\r\n"), "mn": memcachedtest.Say("ERROR\r\n"), "get": values, "gets": values,
	})
	for _, call := range append(nativeCalls, drivertest.Calls...) {
		if !retrieves[call.Name] {
			continue
		}
		t.Run(call.Name, func(t *testing.T) {
			t.Parallel()
			db := drivertest.Open(t, server.Addr(), memcacheddriver.WithTimeout(500*time.Millisecond))
			start := time.Now()
			require.Error(t, call.Run(t.Context(), db, "k"))
			require.Less(t, time.Since(start), drivertest.Never/4)
		})
	}
}

// A server that stands still costs a call one read timeout: on an old connection,
// and, as it answered before, in the dial of a new one.
func TestTimeoutOfAStoppedServer(t *testing.T) {
	t.Parallel()
	const d = 500 * time.Millisecond
	server := memcachedtest.Start(t)
	db := openTimeouts(t, server.Addr(), drivertest.Never, d, drivertest.Never)
	require.NoError(t, db.Set(t.Context(), "k", []byte("v"), 0))
	server.Stop()
	requireTimeout(t, db, "read", d, func() error { _, err := db.Get(t.Context(), "k"); return err })
	require.Zero(t, drivertest.Stat(t, db).DialErrors)
	requireTimeout(t, db, "read", d, func() error { _, err := db.MGet(t.Context(), []string{"k", "l"}); return err })
	require.EqualValues(t, 1, drivertest.Stat(t, db).DialErrors)
	server.Cont()
	for range 5 {
		value, err := db.Get(t.Context(), "k")
		require.NoError(t, err)
		require.Equal(t, "v", string(value))
	}
}
