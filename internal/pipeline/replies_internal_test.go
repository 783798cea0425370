package pipeline

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// TestBadReplies: whatever a server says instead of a reply, the call ends with
// an error, counts nothing behind it, and the connection is not used again.
func TestBadReplies(t *testing.T) {
	keys := []string{"a", "b", "c"}
	items := []Item{{"a", []byte("1")}, {"b", []byte("2")}, {"c", []byte("3")}}
	type call struct {
		name string
		good string // the first reply, a right one
		run  func(c *pool.Conn) (answered int, err error)
	}
	calls := []call{
		{"get", value("a", "1"), func(c *pool.Conn) (n int, err error) {
			err = Get(c, keys, func(i int, v []byte) {
				if n++; i != 0 || string(v) != "1" {
					t.Errorf("found %s = %q", keys[i], v)
				}
			})
			return n, err
		}},
		{"count", value("a", "1"), func(c *pool.Conn) (n int, err error) {
			err = Count(c, keys, func(i int) {
				if i == 0 { // the others may be half there
					n++
				}
			})
			return n, err
		}},
		{"set", "STORED\r\n", func(c *pool.Conn) (int, error) {
			return Set(c, items, 0, func(i, _ int, err error) { t.Errorf("refused %d: %v", i, err) })
		}},
		{"delete", "DELETED\r\n", func(c *pool.Conn) (int, error) {
			n, answered, err := Delete(c, keys, func(i int, err error) { t.Errorf("refused %d: %v", i, err) })
			assert.EqualValues(t, 1, n)
			return answered, err
		}},
		{"exists", "HD\r\n", func(c *pool.Conn) (n int, err error) {
			err = Exists(c, keys, func(i int) {
				if n++; i != 0 {
					t.Errorf("found %s", keys[i])
				}
			})
			return n, err
		}},
		{"meta set", "HD c7\r\n", func(c *pool.Conn) (int, error) {
			out, err := StoreAll(c, []Store{{Item: items[0]}, {Item: items[1]}, {Item: items[2]}})
			for _, o := range out {
				assert.Equal(t, Outcome{Code: "HD", CAS: 7}, o)
			}
			return len(out), err
		}},
	}
	for reply, want := range map[string]error{
		"":                            io.ErrUnexpectedEOF,
		"S":                           io.ErrUnexpectedEOF,
		"STORED":                      io.ErrUnexpectedEOF,
		"STORED\r":                    io.ErrUnexpectedEOF,
		"VALUE b 0 5":                 io.ErrUnexpectedEOF,
		"\r\n":                        protocol.ErrUnexpected,
		"garbage\r\n":                 protocol.ErrUnexpected,
		"HTTP/1.1 400 Bad Request\n":  protocol.ErrUnexpected,
		"-ERR unknown command\r\n":    protocol.ErrUnexpected,
		"STORED\n":                    protocol.ErrUnexpected,
		strings.Repeat("x", 64<<10):   protocol.ErrUnexpected,
		"VALUE b 0 99999999999\r\nxx": protocol.ErrUnexpected,
		"ERROR\r\n":                   &protocol.ReplyError{Line: "ERROR"},
		"CLIENT_ERROR bad\r\n":        &protocol.ReplyError{Line: "CLIENT_ERROR bad"},
	} {
		for _, c := range calls {
			t.Run(fmt.Sprintf("%s/%.12q", c.name, reply), func(t *testing.T) {
				p := listen(t, says(c.good+reply))
				var answered int
				err := use(t, p, func(pc *pool.Conn) (err error) {
					answered, err = c.run(pc)
					return err
				})
				var wantReply, gotReply *protocol.ReplyError
				if errors.As(want, &wantReply) {
					if assert.ErrorAs(t, err, &gotReply) {
						assert.Equal(t, wantReply, gotReply)
					}
				} else {
					assert.ErrorIs(t, err, want)
				}
				assert.Equal(t, 1, answered)
				assert.Zero(t, idle(p), "the connection was kept")
			})
		}
	}
	// A value that is cut, or longer than announced.
	for reply, want := range map[string]error{
		"VALUE b 0 5\r\n":               io.ErrUnexpectedEOF,
		"VALUE b 0 5\r\nhel":            io.ErrUnexpectedEOF,
		"VALUE b 0 5\r\nhello":          io.ErrUnexpectedEOF,
		"VALUE b 0 5\r\nhello\r":        io.ErrUnexpectedEOF,
		"VALUE b 0 5\r\nhello wor\r\n":  protocol.ErrUnexpected,
		"VALUE b 0 5\r\nhel\r\nEND\r\n": protocol.ErrUnexpected,
		"VALUE b 0 1000000000\r\nhello": io.ErrUnexpectedEOF,
	} {
		for _, c := range calls[:2] {
			t.Run(fmt.Sprintf("%s/%q", c.name, reply), func(t *testing.T) {
				p := listen(t, says(c.good+reply))
				err := use(t, p, func(pc *pool.Conn) error {
					n, err := c.run(pc)
					assert.Equal(t, 1, n)
					return err
				})
				assert.ErrorIs(t, err, want)
				assert.Zero(t, idle(p), "the connection was kept")
			})
		}
	}
}

// TestBytesBehindTheReply: what nobody asked for is not the next call's reply.
func TestBytesBehindTheReply(t *testing.T) {
	p := listen(t, says("STORED\r\nSTORED\r\nSTORED\r\n"))
	require.NoError(t, use(t, p, func(c *pool.Conn) error {
		n, err := Set(c, []Item{{Key: "a"}, {Key: "b"}}, 0, func(int, int, error) { t.Error("refused") })
		assert.Equal(t, 2, n)
		return err
	}))
	assert.Zero(t, idle(p), "the connection was kept")
}

// TestRefusals spoil their own key only and leave the connection in step.
func TestRefusals(t *testing.T) {
	var conns atomic.Int32
	p := listen(t, func(n int, r *bufio.Reader, c net.Conn) {
		conns.Add(1)
		answers(func(cmd command) string {
			key := cmd.fields[1]
			switch {
			case strings.HasPrefix(key, "large"):
				return "SERVER_ERROR object too large for cache\r\n"
			case strings.HasPrefix(key, "down"):
				return "SERVER_ERROR Host is down\r\n"
			case cmd.fields[0] == "set":
				return "STORED\r\n"
			case cmd.fields[0] == "ms":
				return "HD c5\r\n"
			}
			return "DELETED\r\n"
		})(n, r, c)
	})
	keys := strings.Fields("a large1 b down1 large2 c")
	wantRefused := []int{1, 3, 4}
	isTooLarge := func(err error) bool {
		var reply *protocol.ReplyError
		return errors.As(err, &reply) && reply.TooLarge()
	}
	check := func(refused map[int]error) {
		t.Helper()
		var at []int
		for i, err := range refused {
			at = append(at, i)
			assert.Equal(t, strings.HasPrefix(keys[i], "large"), isTooLarge(err), "%s: %v", keys[i], err)
		}
		slices.Sort(at)
		assert.Equal(t, wantRefused, at)
	}
	var items []Item
	var stores []Store
	for _, key := range keys {
		items = append(items, Item{key, []byte(key)})
		stores = append(stores, Store{Item: items[len(items)-1]})
	}
	for range 3 {
		refused := map[int]error{}
		require.NoError(t, use(t, p, func(c *pool.Conn) error {
			n, err := Set(c, items, 0, func(i, _ int, err error) { refused[i] = err })
			assert.Equal(t, len(items), n)
			return err
		}))
		check(refused)

		refused = map[int]error{}
		require.NoError(t, use(t, p, func(c *pool.Conn) error {
			deleted, n, err := Delete(c, keys, func(i int, err error) { refused[i] = err })
			assert.Equal(t, len(keys), n)
			assert.EqualValues(t, len(keys)-len(wantRefused), deleted)
			return err
		}))
		check(refused)

		refused = map[int]error{}
		require.NoError(t, use(t, p, func(c *pool.Conn) error {
			out, err := StoreAll(c, stores)
			require.Len(t, out, len(stores))
			for i, o := range out {
				if o.Err != nil {
					assert.Empty(t, o.Code)
					refused[i] = o.Err
				} else {
					assert.Equal(t, Outcome{Code: "HD", CAS: 5}, o)
				}
			}
			return err
		}))
		check(refused)
	}
	assert.EqualValues(t, 1, conns.Load(), "a refusal cost the connection")
}
