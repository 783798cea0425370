package memcacheddriver_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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

// startTwemproxy starts a twemproxy in front of servers and returns its address.
// Without the binary the test fails.
func startTwemproxy(t *testing.T, servers ...*memcachedtest.Server) string {
	t.Helper()
	bin, err := exec.LookPath("nutcracker")
	if err != nil {
		bin, err = exec.LookPath("/usr/sbin/nutcracker") // where a user's PATH does not look
	}
	if err != nil {
		t.Fatal("this test needs twemproxy: `apt-get install nutcracker`, or `make test`, which installs it")
	}
	port := func() string {
		return fmt.Sprint(12000 + rand.IntN(20000)) // below what outgoing connections get
	}
	for range 10 {
		dir := t.TempDir()
		addr := "127.0.0.1:" + port()
		conf := fmt.Sprintf("pool:\n  listen: %s\n  hash: crc32a\n  distribution: modula\n  auto_eject_hosts: false\n  timeout: 5000\n  servers:\n", addr)
		for _, s := range servers {
			conf += fmt.Sprintf("   - %s:1\n", s.Addr())
		}
		path := filepath.Join(dir, "nutcracker.yml")
		require.NoError(t, os.WriteFile(path, []byte(conf), 0o600))
		log := filepath.Join(dir, "log")
		// The shell ends it when this process does, however it does: the pipe that
		// it reads closes then.
		cmd := exec.Command("/bin/sh", "-c", `"$@" & read -r _; kill -9 $!; wait`, "sh",
			bin, "-c", path, "-o", log, "-a", "127.0.0.1", "-s", port())
		stdin, err := cmd.StdinPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		stop := func() {
			stdin.Close()
			_ = cmd.Wait()
		}
		if reaches(t, addr, servers[0]) {
			t.Cleanup(stop)
			return addr
		}
		stop()
		said, _ := os.ReadFile(log)
		t.Logf("twemproxy did not start on %s: %s", addr, said)
	}
	t.Fatal("twemproxy does not start")
	return ""
}

// reaches reports whether what listens at addr passes on to server, and is not
// somebody else's.
func reaches(t *testing.T, addr string, server *memcachedtest.Server) bool {
	t.Helper()
	proxied, direct := memcache.New(addr), memcache.New(server.Addr())
	defer proxied.Close()
	defer direct.Close()
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			continue
		}
		c.Close()
		for i := range 64 { // one of them is this server's
			key := fmt.Sprint("reaches-", i)
			if proxied.Set(&memcache.Item{Key: key, Value: []byte(addr)}) != nil {
				break
			}
			if it, err := direct.Get(key); err == nil && string(it.Value) == addr {
				return true
			}
		}
	}
	return false
}

// TestTwemproxy in front of two servers: every call works, what needs the meta
// protocol apart.
func TestTwemproxy(t *testing.T) {
	t.Parallel()
	servers := []*memcachedtest.Server{memcachedtest.Start(t), memcachedtest.Start(t)}
	addr := startTwemproxy(t, servers...)
	db := batchDB(t, addr, memcacheddriver.WithTTLQuery())
	ctx := t.Context()

	// direct finds a key on the server that the proxy put it on.
	direct := func(key string) (item *memcache.Item, ttl string) {
		t.Helper()
		for _, s := range servers {
			c := memcache.New(s.Addr())
			it, err := c.Get(key)
			c.Close()
			if err == nil {
				return it, metaTTL(t, s.Addr(), key)
			}
		}
		return nil, ""
	}

	t.Run("Ping", func(t *testing.T) { require.NoError(t, db.Ping(ctx)) })

	t.Run("single keys", func(t *testing.T) {
		_, err := db.Get(ctx, "absent")
		assert.True(t, err == kv.ErrNotFound, "%v", err)
		require.NoError(t, db.Set(ctx, "k", []byte("1\r\nEND\r\n"), time.Hour))
		value, err := db.Get(ctx, "k")
		require.NoError(t, err)
		assert.Equal(t, "1\r\nEND\r\n", string(value))
		require.NoError(t, db.Set(ctx, "empty", nil, 0))
		value, err = db.Get(ctx, "empty")
		require.NoError(t, err)
		assert.Equal(t, []byte{}, value)

		ok, err := db.SetNX(ctx, "k", []byte("2"), 0)
		require.NoError(t, err)
		assert.False(t, ok)
		ok, err = db.SetNX(ctx, "nx", []byte("2"), time.Hour)
		require.NoError(t, err)
		assert.True(t, ok)
		ok, err = db.SetXX(ctx, "xx", []byte("3"), 0)
		require.NoError(t, err)
		assert.False(t, ok)
		ok, err = db.SetXX(ctx, "nx", []byte("3"), 0)
		require.NoError(t, err)
		assert.True(t, ok)

		require.NoError(t, db.Expire(ctx, "k", time.Minute))
		_, ttl := direct("k")
		assert.Contains(t, []string{"60", "59", "58"}, ttl)
		assert.True(t, db.Expire(ctx, "absent", time.Minute) == kv.ErrNotFound)

		n, err := db.Delete(ctx, "k")
		require.NoError(t, err)
		assert.EqualValues(t, 1, n)
		n, err = db.Delete(ctx, "k")
		require.NoError(t, err)
		assert.Zero(t, n)

		err = db.Set(ctx, "nx", make([]byte, 2<<20), 0)
		assert.Error(t, err)
	})

	t.Run("batches", func(t *testing.T) {
		keys := batchKeys("batch", 1000)
		require.NoError(t, db.MSet(ctx, batchPairs(keys), time.Hour))
		asked := slices.Concat(keys, []string{"absent"}, keys[:10])
		values, err := db.MGet(ctx, asked)
		require.NoError(t, err)
		assert.Equal(t, len(keys)+10, checkBatchValues(t, asked, values))
		count, err := db.Exists(ctx, asked...)
		require.NoError(t, err)
		assert.EqualValues(t, len(keys)+10, count)
		for i, s := range servers {
			assert.NotEqual(t, "0", s.Stats(t)["curr_items"], "nothing on server %d", i)
		}
		deleted, err := db.Delete(ctx, asked...)
		require.NoError(t, err)
		assert.EqualValues(t, len(keys), deleted)
		count, err = db.Exists(ctx, keys...)
		require.NoError(t, err)
		assert.Zero(t, count)

		large := make(map[string][]byte)
		for i, key := range keys[:20] {
			large[key] = []byte(strings.Repeat(string(rune('a'+i)), 500<<10))
		}
		require.NoError(t, db.MSet(ctx, large, 0))
		values, err = db.MGet(ctx, keys[:20])
		require.NoError(t, err)
		for i, key := range keys[:20] {
			assert.True(t, string(large[key]) == string(values[i]), key)
		}
	})

	t.Run("CompareAndSwap", func(t *testing.T) {
		swap := func(key string, to string, opts ...memcacheddriver.CASOption) error {
			return db.CompareAndSwap(ctx, key, func(current []byte) ([]byte, error) {
				return append(current, to...), nil
			}, opts...)
		}
		err := swap("gone", "x")
		assert.True(t, err == kv.ErrNotFound, "%v", err)
		require.NoError(t, db.Do(ctx, func(c *memcache.Client) error {
			return c.Set(&memcache.Item{Key: "swapped", Value: []byte("1"), Flags: 77})
		}))
		require.NoError(t, swap("swapped", "2"))
		item, ttl := direct("swapped")
		require.NotNil(t, item)
		assert.Equal(t, "12", string(item.Value))
		assert.EqualValues(t, 77, item.Flags)
		assert.Equal(t, "-1", ttl)
		require.NoError(t, swap("swapped", "3", memcacheddriver.CASTTL(time.Hour)))
		item, ttl = direct("swapped")
		assert.Equal(t, "123", string(item.Value))
		assert.Contains(t, []string{"3600", "3599", "3598"}, ttl)
		require.NoError(t, swap("swapped", "4"))
		_, ttl = direct("swapped")
		assert.Equal(t, "-1", ttl, "without the meta protocol a swap makes a value immortal, as documented")

		err = db.CompareAndSwap(ctx, "swapped", func([]byte) ([]byte, error) {
			return []byte("lost"), db.Set(ctx, "swapped", []byte("other"), 0)
		})
		assert.ErrorIs(t, err, kv.ErrConflict)
		err = db.CompareAndSwap(ctx, "swapped", func([]byte) ([]byte, error) {
			_, err := db.Delete(ctx, "swapped")
			return []byte("lost"), err
		})
		assert.True(t, err == kv.ErrNotFound, "%v", err)
	})

	t.Run("TTL", func(t *testing.T) {
		require.NoError(t, db.Set(ctx, "k", []byte("v"), time.Hour))
		for range 3 {
			_, err := db.TTL(ctx, "k")
			assert.ErrorIs(t, err, kv.ErrNotSupported)
		}
	})

	t.Run("cancellation", func(t *testing.T) {
		servers[0].Stop()
		defer servers[0].Cont()
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		_, err := db.MGet(ctx, batchKeys("batch", 50))
		assert.ErrorIs(t, err, context.DeadlineExceeded)
	})

	assert.Equal(t, memcacheddriver.ServerUp, db.Stats()[0].State)
}

// metaTTL asks a server for the seconds that a key has left.
func metaTTL(t *testing.T, addr, key string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer c.Close()
	_, err = fmt.Fprintf(c, "mg %s t\r\n", key)
	require.NoError(t, err)
	var ttl string
	require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err = fmt.Fscanf(c, "HD t%s\r\n", &ttl)
	require.NoError(t, err)
	return ttl
}

// TestTwemproxyBackendDown: the keys of a dead server behind a proxy fail, the
// others do not where the proxy answers key by key.
func TestTwemproxyBackendDown(t *testing.T) {
	t.Parallel()
	servers := []*memcachedtest.Server{memcachedtest.Start(t), memcachedtest.Start(t)}
	db := batchDB(t, startTwemproxy(t, servers...))
	ctx := t.Context()
	keys := batchKeys("k", 50)
	require.NoError(t, db.MSet(ctx, batchPairs(keys), 0))
	servers[1].Kill()

	err := db.MSet(ctx, batchPairs(keys), 0)
	var op *memcacheddriver.OpError
	require.ErrorAs(t, err, &op)
	alive := slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return slices.Contains(op.Keys, key) })
	require.NotEmpty(t, alive)
	values, err := db.MGet(ctx, alive)
	require.NoError(t, err)
	assert.Equal(t, len(alive), checkBatchValues(t, alive, values))
	values, err = db.MGet(ctx, keys)
	assert.Error(t, err, "misses instead of an error")
	checkBatchValues(t, keys, values)
	_, err = db.Exists(ctx, keys...)
	assert.Error(t, err, "misses instead of an error")

	servers[1].Restart()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err = db.MSet(ctx, batchPairs(keys), 0); err == nil || time.Now().After(deadline) {
			break
		}
	}
	require.NoError(t, err, "after the restart")
	values, err = db.MGet(ctx, keys)
	require.NoError(t, err)
	assert.Equal(t, len(keys), checkBatchValues(t, keys, values))
}

// TestTwemproxyMetBySurprise: the first calls of a driver, all at once and of
// those that would like to speak meta. A proxy that closes their connections is
// not down.
func TestTwemproxyMetBySurprise(t *testing.T) {
	t.Parallel()
	addr := startTwemproxy(t, memcachedtest.Start(t))
	for _, limit := range []int{1, 3} {
		t.Run(fmt.Sprint("failure limit ", limit), func(t *testing.T) {
			db := batchDB(t, addr, memcacheddriver.WithServerFailureLimit(limit, time.Minute))
			var all sync.WaitGroup
			start := make(chan struct{})
			errs := make(chan error, 32)
			for i := range cap(errs) {
				all.Go(func() {
					<-start
					if i%2 == 0 {
						_, err := db.Exists(t.Context(), "a", "b")
						errs <- err
						return
					}
					err := db.CompareAndSwap(t.Context(), "absent", func([]byte) ([]byte, error) { return nil, nil })
					if err == kv.ErrNotFound {
						err = nil
					}
					errs <- err
				})
			}
			close(start)
			all.Wait()
			close(errs)
			for err := range errs {
				if !assert.NoError(t, err) {
					break
				}
			}
			assert.Equal(t, memcacheddriver.ServerUp, db.Stats()[0].State)
		})
	}
}
