package drivertest

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// StartServers starts n servers of the test's own.
func StartServers(t testing.TB, n int) (servers []*memcachedtest.Server, addrs []string) {
	t.Helper()
	for range n {
		s := memcachedtest.Start(t)
		servers = append(servers, s)
		addrs = append(addrs, s.Addr())
	}
	return servers, addrs
}

// MetaAndClassic runs a test on the shared server, and on it without the meta
// protocol.
func MetaAndClassic(t *testing.T, test func(t *testing.T, addr string)) {
	t.Helper()
	t.Run("meta", func(t *testing.T) { test(t, memcachedtest.Addr(t)) })
	t.Run("classic", func(t *testing.T) { test(t, memcachedtest.StartClassic(t, memcachedtest.Addr(t))) })
}

// AskServer sends a command to the server at a host:port, over a connection of
// its own, and returns the first line of the reply.
func AskServer(t testing.TB, addr, command string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(c, command+"\r\n")
	require.NoError(t, err)
	line, err := bufio.NewReader(c).ReadString('\n')
	require.NoError(t, err)
	return strings.TrimRight(line, "\r\n")
}

// ServerTTL returns the seconds that the server says key has left, -1 for no
// expiry; ok is false if it is not there.
func ServerTTL(t testing.TB, addr, key string) (seconds int64, ok bool) {
	t.Helper()
	line := AskServer(t, addr, "mg "+key+" t")
	if line == "EN" {
		return 0, false
	}
	_, err := fmt.Sscanf(line, "HD t%d", &seconds)
	require.NoError(t, err, "%q", line)
	return seconds, true
}

// Connections returns a function that counts a server's connections beyond those
// that it has now, when nothing may be connecting to it.
func Connections(t testing.TB, s *memcachedtest.Server) (count func() int) {
	t.Helper()
	all := func() int {
		n, err := strconv.Atoi(s.Stats(t)["curr_connections"])
		require.NoError(t, err)
		return n
	}
	before := all()
	for range 5 { // it may take a moment to count the end of one
		time.Sleep(4 * time.Millisecond)
		before = min(before, all())
	}
	return func() int { return all() - before }
}
