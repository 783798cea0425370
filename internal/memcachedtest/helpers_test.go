package memcachedtest_test

import (
	"bufio"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func network(addr string) string {
	if strings.ContainsAny(addr, `/\`) {
		return "unix"
	}
	return "tcp"
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial(network(addr), addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// exchange sends all of text and returns what comes back up to the reply to a
// version command that ends it.
func exchange(t *testing.T, c net.Conn, text string) string {
	t.Helper()
	require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
	_, err := io.WriteString(c, text+"version\r\n")
	require.NoError(t, err)
	r := bufio.NewReader(c)
	for reply := ""; ; {
		line, err := r.ReadString('\n')
		require.NoError(t, err, "after %q", reply)
		if strings.HasPrefix(line, "VERSION") {
			return reply
		}
		reply += line
	}
}

// gone requires that the other side has closed the connection.
func gone(t *testing.T, c net.Conn) {
	t.Helper()
	require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
	_, err := io.Copy(io.Discard, c)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
}
