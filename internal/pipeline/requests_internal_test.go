package pipeline

import (
	"bytes"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// TestRequests are what protocol.txt says, byte by byte, after the question for
// meta, which every connection begins with. After a | comes what is sent when the
// replies before one are read.
func TestRequests(t *testing.T) {
	const (
		meta     = "VERSION 1.6.18\r\nMN\r\n"
		old      = "VERSION 1.5.22\r\nERROR\r\n"
		question = "version\r\nmn\r\n"
	)
	large := bytes.Repeat([]byte("L"), copyLimit+1)
	sets := []Set{
		{Item: Item{"a", []byte("1")}, Expiration: Expiration{Meta: 60, Classic: 61}},
		{Item: Item{"b", nil}, Flags: 5, CAS: 9},
		{Item: Item{"c", []byte("3")}, Expiration: Expiration{Meta: -1, Classic: -1}, Mode: ModeAdd},
		{Item: Item{"d", []byte("4")}, Mode: ModeReplace},
	}
	setAll := func(cas uint64) func(c *pool.Conn) error {
		return func(c *pool.Conn) error {
			var results []SetResult
			err := SetAll(c, sets, func(_ int, r SetResult) { results = append(results, r) })
			assert.Equal(t, []SetResult{{Status: StatusStored, CAS: cas}, {Status: StatusExists}, {Status: StatusNotStored}, {Status: StatusStored, CAS: cas}}, results)
			return err
		}
	}
	for _, c := range []struct {
		server, want, replies string
		run                   func(*pool.Conn) error
	}{
		{old, "set a 0 60 1\r\n1\r\nset b 0 60 0\r\n\r\nset c 0 60 8193\r\n" + string(large) + "\r\n", "STORED\r\nSTORED\r\nSTORED\r\n", func(c *pool.Conn) error {
			_, err := MSet(c, []Item{{"a", []byte("1")}, {"b", nil}, {"c", large}}, 60, nil)
			return err
		}},
		{old, "set a 0 -1 2\r\n\r\n\r\n", "STORED\r\n", func(c *pool.Conn) error {
			_, err := MSet(c, []Item{{"a", []byte("\r\n")}}, -1, nil)
			return err
		}},
		{meta, "ms a 1 T60 q\r\n1\r\nms b 0 T60 q\r\n\r\nmn\r\n", "MN\r\n", func(c *pool.Conn) error {
			_, err := MSet(c, []Item{{"a", []byte("1")}, {"b", nil}}, 60, nil)
			return err
		}},
		{meta, "get a b\r\n", "END\r\n", func(c *pool.Conn) error { return Get(c, []string{"a", "b"}, nil) }},
		{meta, "delete a\r\ndelete b\r\n", "DELETED\r\nNOT_FOUND\r\n", func(c *pool.Conn) error {
			n, _, err := Delete(c, []string{"a", "b"}, nil)
			assert.EqualValues(t, 1, n)
			return err
		}},
		{meta, "mg a c t u\r\nmg b c t u\r\nmg c c t u\r\nmg d c t u\r\nmg e c t u\r\nmg f c t u\r\n|md a C3\r\nmd b C4\r\nmd c C5\r\n",
			"HD c3 t2\r\nHD c4 t0\r\nHD c5 t1\r\nEN\r\nHD c8 t1\r\nHD c8 t3\r\n|HD\r\nNF\r\nEX\r\n", func(c *pool.Conn) error {
				return DeleteCAS(c, []KeyCAS{{"a", 3}, {"b", 4}, {"c", 5}, {"d", 6}, {"e", 7}, {"f", 8}}, 2)
			}},
		{meta, "mg a c t u\r\n", "HD c3 t-1\r\n", func(c *pool.Conn) error { return DeleteCAS(c, []KeyCAS{{"a", 3}}, 2) }},
		{meta, "mg a t u\r\ncas a 5 60 2 9\r\n\r\n\r\n", "HD t7\r\nSTORED\r\n", func(c *pool.Conn) error {
			left, r, err := Swap(c, Set{Item: Item{"a", []byte("\r\n")}, Flags: 5, Expiration: Expiration{Classic: 60}, CAS: 9})
			assert.EqualValues(t, 7, left)
			assert.Equal(t, SetResult{Status: StatusStored}, r)
			return err
		}},
		{old, "cas a 0 0 1 9\r\nx\r\n", "EXISTS\r\n", func(c *pool.Conn) error {
			left, r, err := Swap(c, Set{Item: Item{"a", []byte("x")}, CAS: 9})
			assert.EqualValues(t, -1, left)
			assert.Equal(t, SetResult{Status: StatusExists}, r)
			return err
		}},
		{old, "", "", func(c *pool.Conn) error {
			assert.Equal(t, ErrNoMeta, DeleteCAS(c, []KeyCAS{{"a", 3}}, 2))
			return nil
		}},
		{meta, "mg a s\r\nmg b s\r\n", "EN\r\nHD\r\n", func(c *pool.Conn) error {
			n, err := Exists(c, []string{"a", "b"})
			assert.EqualValues(t, 1, n)
			return err
		}},
		{old, "get a b\r\n", "VALUE b 0 1\r\nx\r\nEND\r\n", func(c *pool.Conn) error {
			n, err := Exists(c, []string{"a", "b"})
			assert.EqualValues(t, 1, n)
			return err
		}},
		{meta, "version\r\n", "VERSION 1.6.18\r\n", func(c *pool.Conn) error {
			v, err := Version(c)
			assert.Equal(t, "1.6.18", v)
			return err
		}},
		{meta, "mg a t c f v\r\n", "VA 2 f4 c3 t9\r\n\r\n\r\n", func(c *pool.Conn) error {
			f, err := Fetch(c, "a")
			assert.Equal(t, &Found{[]byte("\r\n"), 4, 3, 9}, f)
			return err
		}},
		{old, "gets a\r\n", "VALUE a 4 2 3\r\n\r\n\r\nEND\r\n", func(c *pool.Conn) error {
			f, err := Fetch(c, "a")
			assert.Equal(t, &Found{[]byte("\r\n"), 4, 3, -1}, f)
			return err
		}},
		{meta, "mg a t u\r\n", "HD t-1\r\n", func(c *pool.Conn) error {
			ttl, err := TTL(c, "a")
			assert.EqualValues(t, -1, ttl)
			return err
		}},
		{old, "", "", func(c *pool.Conn) error {
			_, err := TTL(c, "a")
			assert.Equal(t, ErrNoMeta, err)
			return nil
		}},
		{meta, "mg a c T2\r\n", "HD c8\r\n", func(c *pool.Conn) error {
			cas, ok, err := Touch(c, "a", Expiration{Meta: 2, Classic: 1})
			assert.True(t, ok)
			assert.EqualValues(t, 8, cas)
			return err
		}},
		{old, "touch a 1\r\n", "TOUCHED\r\n", func(c *pool.Conn) error {
			cas, ok, err := Touch(c, "a", Expiration{Meta: 2, Classic: 1})
			assert.True(t, ok)
			assert.Zero(t, cas)
			return err
		}},
		{old, "", "", func(c *pool.Conn) error {
			_, _, err := ExpiresAt(c, "a")
			assert.Equal(t, ErrNoMeta, err)
			return nil
		}},
		{meta, "ms a 1 T60 c\r\n1\r\nms b 0 T0 F5 C9 c\r\n\r\nms c 1 T-1 ME c\r\n3\r\nms d 1 T0 MR c\r\n4\r\n", "HD c1\r\nEX\r\nNS\r\nHD c1\r\n", setAll(1)},
		{old, "set a 0 61 1\r\n1\r\ncas b 5 0 0 9\r\n\r\nadd c 0 -1 1\r\n3\r\nreplace d 0 0 1\r\n4\r\n", "STORED\r\nEXISTS\r\nNOT_STORED\r\nSTORED\r\n", setAll(0)},
	} {
		got := make(chan string, 3)
		p := open(t, memcachedtest.Listen(t, func(nc net.Conn) {
			replies := strings.Split(c.server+"|"+c.replies, "|")
			for i, want := range strings.Split(question+"|"+c.want, "|") {
				request := make([]byte, len(want))
				_, _ = io.ReadFull(nc, request)
				got <- string(request)
				_, _ = io.WriteString(nc, replies[i])
			}
			_, _ = io.Copy(io.Discard, nc)
		}))
		require.NoError(t, use(t, p, c.run), "%.40q", c.want)
		for want := range strings.SplitSeq(question+"|"+c.want, "|") {
			assert.Equal(t, want, <-got)
		}
		assert.Equal(t, 1, idle(p), "%.40q: the connection was not kept", c.want)
	}
}
