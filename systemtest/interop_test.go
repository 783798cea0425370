package systemtest

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// TestInterop lets the driver read what others write, and them what it writes.
// Nobody finds a key on another server than its own.
//
// twemproxy (hash: md5, distribution: ketama) places keys as libmemcached does: by
// host:port, by the host alone on port 11211, and by weights. But a server with a
// name is placed by the name alone, so that it must have none, or the one that
// libmemcached would give it; and a Unix socket without a name is placed by
// "/path:", where libmemcached has "/path:0". Neither hash_tag nor
// auto_eject_hosts may be set.
func TestInterop(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(t *testing.T) []*interopServer{
		"equal weights": func(t *testing.T) []*interopServer { return startInterop(t, 1, 1, 1, 1) },
		"weights":       func(t *testing.T) []*interopServer { return startInterop(t, 1, 2, 3, 7) },
		"port 11211":    start11211,
		"Unix sockets": func(t *testing.T) (servers []*interopServer) { // pylibmc mixes them with nothing else
			for range 3 {
				s := memcachedtest.StartUnix(t)
				servers = append(servers, &interopServer{s, s.Addr(), 1})
			}
			return servers
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			servers := start(t)
			var written, lines []string
			for _, s := range servers {
				w := s.addr
				if s.weight > 1 {
					w += fmt.Sprint(":", s.weight)
				}
				written = append(written, w)
				line := fmt.Sprint(s.addr, ":", s.weight)
				if strings.HasPrefix(s.addr, "/") {
					line += " " + s.addr + ":0"
				}
				lines = append(lines, line)
			}
			db := drivertest.Open(t, strings.Join(written, ",")+"?distribution=ketama")

			t.Run("pylibmc", func(t *testing.T) {
				python := findPylibmc(t)
				run := func(command string, keys []string) {
					cmd := exec.CommandContext(t.Context(), python, append([]string{"testdata/interop.py", command}, written...)...)
					cmd.Stdin = strings.NewReader(strings.Join(keys, "\n"))
					out, err := cmd.CombinedOutput()
					require.NoError(t, err, "%s", out)
				}
				keys := drivertest.Keys(1000)
				run("set", keys)
				readAll(t, db, keys)
				keys = drivertest.Keys(1000)
				writeAll(t, db, keys)
				run("get", keys)
			})

			t.Run("twemproxy", func(t *testing.T) {
				proxy := drivertest.Open(t, drivertest.StartTwemproxyKetama(t, lines, servers[0].Server))
				keys := drivertest.Keys(1000)
				writeAll(t, proxy, keys)
				readAll(t, db, keys)
				keys = drivertest.Keys(1000)
				writeAll(t, db, keys)
				readAll(t, proxy, keys)
			})
		})
	}
}

type interopServer struct {
	*memcachedtest.Server
	addr   string // by which clients reach it
	weight int
}

func startInterop(t *testing.T, weights ...int) (servers []*interopServer) {
	for _, w := range weights {
		s := memcachedtest.Start(t)
		servers = append(servers, &interopServer{s, s.Addr(), w})
	}
	return servers
}

// start11211 starts servers whose names on the ring have no port, on loopback
// addresses that nobody else uses.
func start11211(t *testing.T) []*interopServer {
	if runtime.GOOS == "darwin" {
		t.Skip("macOS has no loopback address but 127.0.0.1")
	}
	prefix := fmt.Sprintf("127.%d.%d.", 1+rand.IntN(254), rand.IntN(256))
	servers := startInterop(t, 2, 1, 1, 3)
	for i, s := range servers {
		s.addr = memcachedtest.StartClassicOn(t, fmt.Sprint(prefix, i+1, ":11211"), s.addr)
	}
	return servers
}

func findPylibmc(t *testing.T) (python string) {
	if runtime.GOOS == "darwin" {
		t.Skip("Homebrew has no pylibmc")
	}
	// A Python of the user's own does not see the system's packages.
	for _, python := range []string{"python3", "/usr/bin/python3"} {
		if exec.CommandContext(t.Context(), python, "-c", "import pylibmc").Run() == nil {
			return python
		}
	}
	t.Fatal("this test needs pylibmc: `apt-get install python3-pylibmc`, or `make test`, which installs it")
	return ""
}

// writeAll gives each key its value, by Set or MSet.
func writeAll(t *testing.T, db *memcacheddriver.MemcachedDB, keys []string) {
	t.Helper()
	single, batch := keys[:len(keys)/2], keys[len(keys)/2:]
	for _, key := range single {
		require.NoError(t, db.Set(t.Context(), key, drivertest.Value(key), 0))
	}
	require.NoError(t, db.MSet(t.Context(), drivertest.Pairs(batch), 0))
}

// readAll reads all keys by Get, and by MGet.
func readAll(t *testing.T, db *memcacheddriver.MemcachedDB, keys []string) {
	t.Helper()
	for _, key := range keys {
		value, err := db.Get(t.Context(), key)
		require.NoError(t, err, key)
		require.Equal(t, string(drivertest.Value(key)), string(value))
	}
	values, err := db.MGet(t.Context(), keys)
	require.NoError(t, err)
	require.Equal(t, len(keys), drivertest.AssertValues(t, keys, values))
}
