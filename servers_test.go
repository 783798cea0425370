package memcacheddriver_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestPing(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	servers, addrs := startServers(t, 3)
	db := openDB(t, strings.Join(addrs, ","))
	require.NoError(t, db.Ping(ctx))
	servers[0].Kill()
	servers[2].Kill()
	err := db.Ping(ctx)
	require.Error(t, err)
	var down []string
	for _, e := range opErrors(err) {
		assert.Equal(t, "ping", e.Op)
		down = append(down, e.Server)
	}
	assert.ElementsMatch(t, []string{addrs[0], addrs[2]}, down)
	assert.Contains(t, err.Error(), addrs[0])
	assert.Contains(t, err.Error(), addrs[2])
	assert.NotContains(t, err.Error(), addrs[1])
}

// Each server answers only when all have been asked.
func TestPingAsksAllServersAtOnce(t *testing.T) {
	t.Parallel()
	var asked sync.WaitGroup
	asked.Add(3)
	var addrs []string
	for range 3 {
		addrs = append(addrs, startScripted(t, func(c net.Conn) {
			answer(c, func(string) string {
				asked.Done()
				asked.Wait()
				return "VERSION 1.6.0\r\n"
			})
		}))
	}
	db := openDB(t, strings.Join(addrs, ","), memcacheddriver.WithTimeout(20*time.Second))
	require.NoError(t, db.Ping(t.Context()))
}

func TestPingOfWhatIsNoMemcached(t *testing.T) {
	t.Parallel()
	addr := startScripted(t, func(c net.Conn) {
		answer(c, func(string) string { return "HTTP/1.1 400 Bad Request\r\n" })
	})
	db := openDB(t, addr)
	require.ErrorIs(t, db.Ping(t.Context()), memcacheddriver.ErrProtocol)
}

// Plain gomemcache clients with the same list find each other's data, also with
// a server listed twice.
func TestKeysMapAsInGomemcache(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, addrs := startServers(t, 3)
	for name, list := range map[string][]string{
		"three servers": addrs,
		"one twice":     {addrs[0], addrs[1], addrs[0], addrs[2]},
		"another order": {addrs[2], addrs[0], addrs[1]},
	} {
		plain := memcache.New(list...)
		plain.Timeout = 10 * time.Second
		db := openDB(t, strings.Join(list, ", "))

		keys := newKeys(100)
		pairs := make(map[string][]byte)
		for i, key := range keys {
			switch i % 3 {
			case 0:
				require.NoError(t, db.Set(ctx, key, []byte(key), 0))
			case 1:
				require.NoError(t, plain.Set(&memcache.Item{Key: key, Value: []byte(key)}))
			case 2:
				pairs[key] = []byte(key)
			}
		}
		require.NoError(t, db.MSet(ctx, pairs, 0))

		batch, err := db.MGet(ctx, keys)
		require.NoError(t, err)
		for i, key := range keys {
			assert.Equal(t, key, string(batch[i]), "%s: MGet", name)
			got, err := db.Get(ctx, key)
			require.NoError(t, err, "%s: %s is not where gomemcache puts it", name, key)
			assert.Equal(t, key, string(got))
			item, err := plain.Get(key)
			require.NoError(t, err, "%s: gomemcache does not find %s", name, key)
			assert.Equal(t, key, string(item.Value))
			item, err = db.Client().Get(key)
			require.NoError(t, err, "%s: the driver's client does not find %s", name, key)
			assert.Equal(t, key, string(item.Value))
		}
		n, err := db.Exists(ctx, keys...)
		require.NoError(t, err)
		assert.EqualValues(t, 100, n)

		// What one deletes is gone for the other.
		n, err = db.Delete(ctx, keys...)
		require.NoError(t, err)
		assert.EqualValues(t, 100, n)
		items, err := plain.GetMulti(keys)
		require.NoError(t, err)
		assert.Empty(t, items)
		require.NoError(t, plain.Close())
	}
}

// One dead server of three fails its own keys alone, and by name.
func TestOneServerOfThreeIsDown(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	servers, addrs := startServers(t, 3)
	db := openDB(t, strings.Join(addrs, ","), memcacheddriver.WithTTLQuery())
	keys := keysOf(t, addrs, 1)
	servers[1].Kill()
	for name, call := range calls {
		if strings.Contains(name, "of two") || name == "mget" || name == "mset" {
			continue // those have a second key, see the batch tests
		}
		for _, i := range []int{0, 2} {
			require.NoError(t, db.Set(ctx, keys[i][0], []byte("1"), 0))
			assert.NoError(t, call(ctx, db, keys[i][0]), name)
		}
		err := call(ctx, db, keys[1][0])
		require.Error(t, err, name)
		op := requireOpError(t, err)
		assert.Equal(t, addrs[1], op.Server, name)
		assert.Equal(t, keys[1], op.Keys, name)
		assert.NotErrorIs(t, err, kv.ErrNotFound, "%s: a server that is down is no miss", name)
		assert.NotErrorIs(t, err, context.DeadlineExceeded, name)
	}
	_, err := db.Get(ctx, keys[1][0])
	assert.ErrorIs(t, err, memcacheddriver.ErrServerDown)

	servers[1].Restart()
	eventually(t, func() bool { return db.Set(ctx, keys[1][0], nil, 0) == nil }, "the server is back, but not for the driver")
}

// A cache that was restarted costs no call.
func TestServerRestart(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server := memcachedtest.Start(t)
	db := openDB(t, server.Addr())
	for range 3 {
		require.NoError(t, db.Set(ctx, "a", []byte("1"), 0))
		require.NoError(t, db.MSet(ctx, map[string][]byte{"b": nil, "c": nil}, 0))
		server.Restart()
		_, err := db.Get(ctx, "a")
		require.True(t, err == kv.ErrNotFound, "%v", err)
		n, err := db.Exists(ctx, "a", "b", "c")
		require.NoError(t, err)
		assert.Zero(t, n)
	}
}

func TestUnixSocket(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server := memcachedtest.StartUnix(t)
	for _, dsn := range []string{server.Addr(), "unix://" + server.Addr(), "memcached://" + server.Addr() + "?timeout=5s"} {
		db := openDB(t, dsn)
		key := newKey()
		require.NoError(t, db.Set(ctx, key, []byte(dsn), 0), dsn)
		got, err := db.MGet(ctx, []string{key, key})
		require.NoError(t, err, dsn)
		assert.Equal(t, [][]byte{[]byte(dsn), []byte(dsn)}, got)
		assert.Equal(t, server.Addr(), db.Stats()[0].Addr)
	}
}

// A host name is looked up at each dial, not at Open.
func TestHostName(t *testing.T) {
	t.Parallel()
	_, port, err := net.SplitHostPort(memcachedtest.Start(t).Addr())
	require.NoError(t, err)
	db := openDB(t, "localhost:"+port)
	require.NoError(t, db.Ping(t.Context()))
	assert.Equal(t, "localhost:"+port, db.Stats()[0].Addr)
}

// The driver's timeouts are not the caller's deadline.
func TestATimeoutIsNotTheCallersDeadline(t *testing.T) {
	t.Parallel()
	addr := startScripted(t, silence)
	db := openDB(t, addr, memcacheddriver.WithTimeout(20*time.Millisecond), memcacheddriver.WithServerFailureLimit(0, 0))
	for name, call := range calls {
		if name == "ttl" {
			continue // not supported without WithTTLQuery
		}
		err := call(t.Context(), db, "key")
		require.Error(t, err, name)
		assert.NotErrorIs(t, err, context.DeadlineExceeded, name)
		var timeout net.Error
		assert.True(t, errors.As(err, &timeout) && timeout.Timeout(), "%s: %v", name, err)
		assert.Equal(t, addr, requireOpError(t, err).Server)
	}
}
