package pipeline

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// TestRequests are what protocol.txt says, byte by byte.
func TestRequests(t *testing.T) {
	large := bytes.Repeat([]byte("L"), copyLimit+1)
	got := make(chan []byte, 1)
	for _, c := range []struct {
		want, replies string
		run           func(*pool.Conn) error
	}{
		{"set a 0 60 1\r\n1\r\nset b 0 60 0\r\n\r\nset c 0 60 8193\r\n" + string(large) + "\r\n", "STORED\r\nSTORED\r\nSTORED\r\n", func(c *pool.Conn) error {
			_, err := Set(c, []Item{{"a", []byte("1")}, {"b", nil}, {"c", large}}, 60, nil)
			return err
		}},
		{"set a 0 -1 2\r\n\r\n\r\n", "STORED\r\n", func(c *pool.Conn) error {
			_, err := Set(c, []Item{{"a", []byte("\r\n")}}, -1, nil)
			return err
		}},
		{"get a b\r\n", "END\r\n", func(c *pool.Conn) error { return Get(c, []string{"a", "b"}, nil) }},
		{"delete a\r\ndelete b\r\n", "DELETED\r\nNOT_FOUND\r\n", func(c *pool.Conn) error {
			n, _, err := Delete(c, []string{"a", "b"}, nil)
			assert.EqualValues(t, 1, n)
			return err
		}},
		{"mg a\r\nmg b\r\n", "EN\r\nEN\r\n", func(c *pool.Conn) error { return Exists(c, []string{"a", "b"}, nil) }},
		{"version\r\n", "VERSION 1.6.18\r\n", func(c *pool.Conn) error {
			v, err := Version(c)
			assert.Equal(t, "1.6.18", v)
			return err
		}},
		{"mg a t c f v\r\n", "VA 2 f4 c3 t9\r\n\r\n\r\n", func(c *pool.Conn) error {
			f, err := Fetch(c, "a")
			assert.Equal(t, &Found{[]byte("\r\n"), 4, 3, 9}, f)
			return err
		}},
		{"mg a t u\r\n", "HD t-1\r\n", func(c *pool.Conn) error {
			ttl, ok, err := TTL(c, "a")
			assert.True(t, ok)
			assert.EqualValues(t, -1, ttl)
			return err
		}},
		{"ms a 1 c T60\r\n1\r\nms b 0 c T0 F5 C9 MR\r\n\r\nms c 1 c T-1 ME\r\n3\r\n", "HD c1\r\nEX\r\nNS\r\n", func(c *pool.Conn) error {
			out, err := StoreAll(c, []Store{
				{Item: Item{"a", []byte("1")}, Expiration: 60, Mode: ModeSet},
				{Item: Item{"b", nil}, Flags: 5, CAS: 9, Mode: ModeReplace},
				{Item: Item{"c", []byte("3")}, Expiration: -1, Mode: ModeAdd},
			})
			assert.Equal(t, []Outcome{{Code: "HD", CAS: 1}, {Code: "EX"}, {Code: "NS"}}, out)
			return err
		}},
	} {
		p := listen(t, func(_ int, r *bufio.Reader, nc net.Conn) {
			request := make([]byte, len(c.want))
			_, _ = io.ReadFull(r, request)
			got <- request
			_, _ = io.WriteString(nc, c.replies)
			_, _ = io.Copy(io.Discard, r)
		})
		require.NoError(t, use(t, p, c.run), "%.40q", c.want)
		assert.Equal(t, c.want, string(<-got))
		assert.Equal(t, 1, idle(p), "%.40q: the connection was not kept", c.want)
	}
}

// TestWindow: no more is sent ahead of the replies than what they need in the
// smallest socket buffers, or two sides that both only write wait for each other
// for ever. The server answers nothing until the client falls silent.
func TestWindow(t *testing.T) {
	const buffers, longest = 64 << 10, 42 // bytes, the latter of a reply of one line
	const n = 2 * buffers / longest
	p := listen(t, func(_ int, r *bufio.Reader, c net.Conn) {
		ahead := 0
		for ahead < n {
			c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			if _, err := r.Peek(1); errors.Is(err, os.ErrDeadlineExceeded) && ahead > 0 {
				break
			}
			if _, err := next(r); err != nil {
				return
			}
			ahead++
		}
		c.SetReadDeadline(time.Time{})
		if ahead*longest > buffers {
			t.Errorf("%d commands ahead", ahead)
		}
		_, _ = io.WriteString(c, strings.Repeat("DELETED\r\n", ahead))
		for i := ahead; i < n; i++ {
			if _, err := next(r); err != nil {
				return
			}
			if _, err := io.WriteString(c, "DELETED\r\n"); err != nil {
				return
			}
		}
		_, _ = io.Copy(io.Discard, r)
	})
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprint("key-", i)
	}
	require.NoError(t, use(t, p, func(c *pool.Conn) error {
		deleted, answered, err := Delete(c, keys, nil)
		assert.EqualValues(t, n, deleted)
		assert.Equal(t, n, answered)
		return err
	}))
}
