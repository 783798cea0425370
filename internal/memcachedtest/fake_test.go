package memcachedtest_test

import (
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// silent requires that nothing comes for a while.
func silent(t *testing.T, c net.Conn) {
	t.Helper()
	require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Millisecond)))
	n, err := c.Read(make([]byte, 1))
	require.Zero(t, n)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

// Each command names another key: the fake keeps nothing, a real server does.
func TestFakeAnswersAsAnEmptyMemcached(t *testing.T) {
	t.Parallel()
	real := dial(t, memcachedtest.Start(t).Addr())
	fake := dial(t, memcachedtest.StartFake(t, nil).Addr())
	cas := regexp.MustCompile(`\bc\d+`)
	for _, command := range []string{
		"get a", "gets a b", "gat 0 a b", "gats 0 a",
		"set s1 0 0 4\r\ndata", "set s2 0 0 0\r\n", "add s3 0 0 1\r\n1",
		"replace r1 0 0 1\r\n1", "append r2 0 0 1\r\n1", "prepend r3 0 0 1\r\n1", "cas r4 0 0 1 7\r\n1",
		"delete a", "touch a 1", "incr a 1", "decr a 1",
		"flush_all", "verbosity 0", "bogus", "",
		"mn",
		"mg a", "mg a v t c f", "mg a k O123 v", "mg a q",
		"md a", "md a k Oxy", "md a C7",
		"ma a", "ma a Oxy k",
		"ms m1 4 T0\r\ndata", "ms m2 4 T0 q\r\ndata", "ms m3 4 c T2\r\ndata", "ms m4 4 Oxy k c\r\ndata", "ms m5 0\r\n",
		"ms m6 1 ME\r\n1", "ms m7 1 MR\r\n1", "ms m8 1 MA\r\n1", "ms m9 1 MP k\r\n1", "ms n1 1 C7\r\n1",
		"ms n2 1 MR q\r\n1", "ms n3 1 C7 q Oxy\r\n1",
	} {
		want := cas.ReplaceAllString(exchange(t, real, command+"\r\n"), "c1")
		assert.Equal(t, want, exchange(t, fake, command+"\r\n"), command)
	}
	assert.Regexp(t, `^STAT pid 1\r\nSTAT time \d+\r\nEND\r\n$`, exchange(t, fake, "stats\r\n"))
	_, err := io.WriteString(fake, "quit\r\n")
	require.NoError(t, err)
	gone(t, fake)
}

func TestFakeFollowsItsScript(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var seen []memcachedtest.Command
	f := memcachedtest.StartFake(t, memcachedtest.Script{
		"get": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			for _, key := range cmd.Keys() {
				c.Say(memcachedtest.Value(key, "of "+key))
			}
			c.Default(cmd)
		},
		"set": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, cmd)
			c.Say("NOT_STORED\r\n")
		},
		"touch":   memcachedtest.Say("TOUCHED\r\n"),
		"version": (*memcachedtest.FakeConn).Default,
		"*":       memcachedtest.Say("SERVER_ERROR scripted\r\n"),
	})
	c := dial(t, f.Addr())
	assert.Equal(t, "VALUE a 0 4\r\nof a\r\nVALUE b 0 4\r\nof b\r\nEND\r\nTOUCHED\r\nSERVER_ERROR scripted\r\n",
		exchange(t, c, "get a b\r\ntouch a 0\r\ndelete a\r\n"))
	assert.Equal(t, "NOT_STORED\r\n", exchange(t, c, "set k 1 2 8\r\nget\r\nx\r\n\r\n"))
	assert.Equal(t, []memcachedtest.Command{{
		Line: "set k 1 2 8", Name: "set", Args: []string{"k", "1", "2", "8"}, Data: []byte("get\r\nx\r\n"),
	}}, seen)

	f.SetScript(memcachedtest.Script{"get": memcachedtest.HangUp})
	assert.Equal(t, "NOT_FOUND\r\n", exchange(t, c, "delete a\r\n"), "the default again")
	_, err := io.WriteString(c, "get a\r\n")
	require.NoError(t, err)
	gone(t, c)

	assert.Equal(t, 2, f.Count("get"))
	assert.Equal(t, 0, f.Count("gets"))
	assert.Equal(t, 9, f.Count("*"))
	assert.Equal(t, 1, f.Accepted())
	assert.Contains(t, f.Received(), "delete a\r\nversion\r\nset k 1 2 8\r\nget\r\nx\r\n\r\nversion\r\n")
}

func TestFakeKnowsTheKeysOfACommand(t *testing.T) {
	t.Parallel()
	seen := make(chan []string, 1)
	f := memcachedtest.StartFake(t, memcachedtest.Script{
		"*": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) { seen <- cmd.Keys() },
	})
	c := dial(t, f.Addr())
	for line, want := range map[string][]string{
		"get a b": {"a", "b"}, "gat 0 a b": {"a", "b"}, "gat": nil, "delete a": {"a"}, "mg a v": {"a"},
		"set a 0 0 0\r\n": {"a"}, "ms a 0\r\n": {"a"}, "stats items": nil, "version": nil, "": nil, "delete": nil,
	} {
		_, err := io.WriteString(c, line+"\r\n")
		require.NoError(t, err)
		assert.ElementsMatch(t, want, <-seen, line)
	}
}

func TestFakeAnswersNothingAfterClosing(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"delete": memcachedtest.HangUp})
	c := dial(t, f.Addr())
	_, err := io.WriteString(c, "delete a\r\ndelete b\r\n")
	require.NoError(t, err)
	gone(t, c)
	assert.Equal(t, 1, f.Count("delete"))
}

func TestFakeWaits(t *testing.T) {
	t.Parallel()
	gate, ended := make(chan struct{}), make(chan bool, 2)
	f := memcachedtest.StartFake(t, memcachedtest.Script{
		"get": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			if c.N == 1 {
				ended <- c.Wait(gate)
			} else {
				ended <- c.Wait(nil)
			}
			c.Default(cmd)
		},
		"delete": memcachedtest.Hang,
	})
	first := dial(t, f.Addr())
	_, err := io.WriteString(first, "get a\r\n")
	require.NoError(t, err)
	memcachedtest.Eventually(t, func() bool { return f.Count("get") == 1 }, "the first waits")
	silent(t, first)
	second := dial(t, f.Addr())
	_, err = io.WriteString(second, "get a\r\n")
	require.NoError(t, err)
	hung := dial(t, f.Addr())
	_, err = io.WriteString(hung, "delete a\r\nversion\r\n")
	require.NoError(t, err)
	memcachedtest.Eventually(t, func() bool { return f.Count("get") == 2 && f.Count("version") == 1 }, "all wait")
	silent(t, hung)

	close(gate)
	assert.True(t, <-ended)
	assert.Equal(t, "END\r\n", exchange(t, first, ""))

	f.Close()
	assert.False(t, <-ended, "the server was closed")
	for _, c := range []net.Conn{first, second, hung} {
		gone(t, c)
	}
	if c, err := net.Dial("tcp", f.Addr()); err == nil {
		c.Close()
		t.Error("a closed server accepts connections")
	}

	again := memcachedtest.StartFakeOn(t, f.Addr(), nil)
	assert.Equal(t, "END\r\n", exchange(t, dial(t, f.Addr()), "get a\r\n"))
	assert.Equal(t, 1, again.Accepted())
}

func TestFakeEndsWithItsTest(t *testing.T) {
	t.Parallel()
	var f *memcachedtest.Fake
	var conns []net.Conn
	t.Run("running", func(t *testing.T) {
		f = memcachedtest.StartFake(t, memcachedtest.Script{
			"get":    memcachedtest.Hang,
			"delete": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) { c.Wait(nil) },
			"touch": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
				for c.Say("more than the client reads") {
				}
			},
		})
		for _, command := range []string{"get a", "delete a", "touch a", "half a"} {
			c, err := net.Dial("tcp", f.Addr())
			require.NoError(t, err)
			conns = append(conns, c)
			_, err = io.WriteString(c, strings.TrimPrefix(command+"\r\n", "half a\r\n"))
			require.NoError(t, err)
		}
		memcachedtest.Eventually(t, func() bool { return f.Count("*") == 3 && f.Accepted() == 4 }, "all are served")
	})
	for _, c := range conns {
		gone(t, c)
		c.Close()
	}
}

func TestFakeOverTLS(t *testing.T) {
	t.Parallel()
	f, config := memcachedtest.StartFakeTLS(t, memcachedtest.Script{"get": memcachedtest.Say("secret\r\n")})
	c, err := tls.Dial("tcp", f.Addr(), config)
	require.NoError(t, err)
	defer c.Close()
	assert.Equal(t, "secret\r\n", exchange(t, c, "get a\r\n"))
	assert.Equal(t, "get a\r\nversion\r\n", f.Received())
}

func TestFakeOnAUnixSocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "fake")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	f := memcachedtest.StartFakeOn(t, filepath.Join(dir, "s"), nil)
	assert.Equal(t, "END\r\n", exchange(t, dial(t, f.Addr()), "get a\r\n"))
}
