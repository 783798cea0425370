package drivertest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// StartTwemproxy starts a twemproxy in front of servers and returns its address.
// It places keys as plain gomemcache does with the servers in the order of their names,
// as it sorts them. Without the binary the test fails.
func StartTwemproxy(t testing.TB, servers []*memcachedtest.Server) string {
	t.Helper()
	var lines []string
	for _, s := range servers {
		lines = append(lines, s.Addr()+":1")
	}
	return startTwemproxy(t, "crc32a", "modula", lines, servers[0])
}

// StartTwemproxyKetama is [StartTwemproxy] for a proxy that places keys as
// libmemcached's KETAMA_WEIGHTED does. The lines are those of its configuration,
// host:port:weight, or /path:weight and a name; first is the first one's server.
func StartTwemproxyKetama(t testing.TB, lines []string, first *memcachedtest.Server) string {
	t.Helper()
	return startTwemproxy(t, "md5", "ketama", lines, first)
}

func startTwemproxy(t testing.TB, hash, distribution string, lines []string, first *memcachedtest.Server) string {
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
		conf := fmt.Sprintf("pool:\n  listen: %s\n  hash: %s\n  distribution: %s\n  auto_eject_hosts: false\n  timeout: 5000\n  servers:\n", addr, hash, distribution)
		for _, line := range lines {
			conf += fmt.Sprintf("   - %s\n", line)
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
		if reaches(addr, first) {
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
func reaches(addr string, server *memcachedtest.Server) bool {
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
