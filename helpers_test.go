package memcacheddriver_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
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
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// openDB opens a driver that is closed when the test ends, by when every call
// must have given its connections back.
func openDB(t testing.TB, dsn string, opts ...driver.Option) *memcacheddriver.MemcachedDB {
	t.Helper()
	db := memcacheddriver.New()
	require.NoError(t, db.Open(t.Context(), dsn, opts...))
	t.Cleanup(func() {
		// Only the removal of a value with a TTL under a second may be under way.
		assert.Eventually(t, func() bool {
			for _, st := range db.Stats() {
				if st.InUse > 0 {
					return false
				}
			}
			return true
		}, 5*time.Second, time.Millisecond, "connections were not given back")
		assert.NoError(t, db.Close())
	})
	return db
}

// openShared opens a driver on the server that the tests share.
func openShared(t testing.TB, opts ...driver.Option) *memcacheddriver.MemcachedDB {
	t.Helper()
	return openDB(t, memcachedtest.Addr(t), opts...)
}

// openStore opens a store that is closed when the test ends.
func openStore(t testing.TB, dsn string, opts ...driver.Option) *kv.Store {
	t.Helper()
	store, err := memcacheddriver.OpenStore(t.Context(), dsn, opts...)
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := store.Close(); err != kv.ErrStoreClosed {
			assert.NoError(t, err)
		}
	})
	return store
}

var (
	runID   = strconv.FormatInt(time.Now().UnixNano(), 36)
	lastKey atomic.Int64
)

// newKey returns a key that no other test uses, in no other run either.
func newKey() string {
	return "test-" + runID + "-" + strconv.FormatInt(lastKey.Add(1), 10)
}

// newKeys returns n of them.
func newKeys(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = newKey()
	}
	return keys
}

// startServers starts n servers of the test's own.
func startServers(t testing.TB, n int) (servers []*memcachedtest.Server, addrs []string) {
	t.Helper()
	for range n {
		s := memcachedtest.Start(t)
		servers = append(servers, s)
		addrs = append(addrs, s.Addr())
	}
	return servers, addrs
}

// keysOf returns, for each place in addrs, n new keys that plain gomemcache
// sends there.
func keysOf(t testing.TB, addrs []string, n int) [][]string {
	t.Helper()
	var list memcache.ServerList
	require.NoError(t, list.SetServers(addrs...))
	keys := make([][]string, len(addrs))
	for missing := len(addrs); missing > 0; {
		key := newKey()
		addr, err := list.PickServer(key)
		require.NoError(t, err)
		for i := range addrs {
			if addrs[i] == addr.String() && len(keys[i]) < n {
				if keys[i] = append(keys[i], key); len(keys[i]) == n {
					missing--
				}
				break
			}
		}
	}
	return keys
}

// concat joins lists of keys.
func concat(lists [][]string) (all []string) {
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

// startScripted accepts connections on loopback until the test ends and hands each to
// serve, for what a real server cannot be made to say.
func startScripted(t testing.TB, serve func(net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var mu sync.Mutex
	var conns []net.Conn
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			all.Go(func() {
				defer c.Close()
				serve(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return l.Addr().String()
}

// answer serves a connection by answering each line with what reply returns;
// "" ends the connection.
func answer(c net.Conn, reply func(line string) string) {
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		out := reply(strings.TrimRight(line, "\r\n"))
		if out == "" {
			return
		}
		if _, err := io.WriteString(c, out); err != nil {
			return
		}
	}
}

// silence reads and never answers.
func silence(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

// startClassic puts something in front of a server that knows no meta commands,
// as memcached before 1.6.
func startClassic(t testing.TB, addr string) string {
	t.Helper()
	return startScripted(t, func(c net.Conn) {
		server, err := net.Dial("tcp", addr)
		if err != nil {
			t.Error(err)
			return
		}
		var back sync.WaitGroup
		back.Go(func() { _, _ = io.Copy(c, server) })
		defer back.Wait()
		defer server.Close()
		r := bufio.NewReader(c)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			fields := strings.Fields(line)
			data := 0
			switch fields[0] {
			case "version":
				if _, err := io.WriteString(c, "VERSION 1.5.22\r\n"); err != nil {
					return
				}
				continue
			case "mn", "mg", "ms", "md", "ma", "me":
				// Only ever sent alone by a client that has not met the answer yet.
				if _, err := io.WriteString(c, "ERROR\r\n"); err != nil {
					return
				}
				continue
			case "set", "add", "replace", "append", "prepend", "cas":
				if data, err = strconv.Atoi(fields[4]); err != nil {
					t.Errorf("%q: %v", line, err)
					return
				}
				data += len("\r\n")
			}
			if _, err := io.WriteString(server, line); err != nil {
				return
			}
			if _, err := io.CopyN(server, r, int64(data)); err != nil {
				return
			}
		}
	})
}

// metaAndClassic runs a test on the shared server, and on it without the meta
// protocol.
func metaAndClassic(t *testing.T, test func(t *testing.T, addr string)) {
	t.Run("meta", func(t *testing.T) { test(t, memcachedtest.Addr(t)) })
	t.Run("classic", func(t *testing.T) { test(t, startClassic(t, memcachedtest.Addr(t))) })
}

// eventually waits for cond, which nothing else makes wait.
func eventually(t testing.TB, cond func() bool, what string, args ...any) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not so: "+what, args...)
		}
	}
}

// askServer sends a command to a server over a connection of its own and returns the
// first line of the reply.
func askServer(t testing.TB, addr, command string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = io.WriteString(c, command+"\r\n")
	require.NoError(t, err)
	line, err := bufio.NewReader(c).ReadString('\n')
	require.NoError(t, err)
	return strings.TrimRight(line, "\r\n")
}

// serverTTL returns the seconds that the server says key has left, -1 for no
// expiry; ok is false if it is not there.
func serverTTL(t testing.TB, addr, key string) (seconds int64, ok bool) {
	t.Helper()
	line := askServer(t, addr, "mg "+key+" t")
	if line == "EN" {
		return 0, false
	}
	_, err := fmt.Sscanf(line, "HD t%d", &seconds)
	require.NoError(t, err, "%q", line)
	return seconds, true
}

// opErrors returns all OpErrors of an error, those of a batch too.
func opErrors(err error) (all []*memcacheddriver.OpError) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			all = append(all, opErrors(e)...)
		}
		return all
	}
	var op *memcacheddriver.OpError
	if errors.As(err, &op) {
		all = append(all, op)
	}
	return all
}

// requireOpError returns err's only OpError.
func requireOpError(t testing.TB, err error) *memcacheddriver.OpError {
	t.Helper()
	all := opErrors(err)
	require.Len(t, all, 1, "%v", err)
	return all[0]
}

// sharedAddr is the address of the server that the tests share.
func sharedAddr(t testing.TB) string {
	t.Helper()
	return memcachedtest.Addr(t)
}
