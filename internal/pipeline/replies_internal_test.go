package pipeline

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// TestBadReplies: whatever a server says instead of a reply, the call ends with
// an error, counts nothing after it, and the connection is not used again.
func TestBadReplies(t *testing.T) {
	keys := []string{"a", "b", "c"}
	items := []Item{{"a", []byte("1")}, {"b", []byte("2")}, {"c", []byte("3")}}
	type call struct {
		name    string
		classic bool
		good    string // the first reply, a right one
		run     func(c *pool.Conn) (answered int, err error)
	}
	calls := []call{
		{"get", false, memcachedtest.Value("a", "1"), func(c *pool.Conn) (n int, err error) {
			err = Get(c, keys, func(i int, v []byte) {
				if n++; i != 0 || string(v) != "1" {
					t.Errorf("found %s = %q", keys[i], v)
				}
			})
			return n, err
		}},
		{"mset", true, "STORED\r\n", func(c *pool.Conn) (int, error) {
			unanswered, err := MSet(c, items, 0, func(items []Item, err error) { t.Errorf("refused %v: %v", items, err) })
			return len(items) - len(unanswered), err
		}},
		{"delete", false, "DELETED\r\n", func(c *pool.Conn) (int, error) {
			n, answered, err := Delete(c, keys, func(i int, err error) { t.Errorf("refused %d: %v", i, err) })
			assert.EqualValues(t, 1, n)
			return answered, err
		}},
		{"exists", false, "HD\r\n", func(c *pool.Conn) (int, error) {
			n, err := Exists(c, keys)
			return int(n), err
		}},
		{"set all", false, "HD c7\r\n", func(c *pool.Conn) (n int, err error) {
			err = SetAll(c, []Set{{Item: items[0]}, {Item: items[1]}, {Item: items[2]}}, func(i int, r SetResult) {
				assert.Equal(t, n, i)
				assert.Equal(t, SetResult{Status: StatusStored, CAS: 7}, r)
				n++
			})
			return n, err
		}},
		{"set all", true, "STORED\r\n", func(c *pool.Conn) (n int, err error) {
			err = SetAll(c, []Set{{Item: items[0]}, {Item: items[1]}, {Item: items[2]}}, func(i int, r SetResult) {
				assert.Equal(t, n, i)
				assert.Equal(t, SetResult{Status: StatusStored}, r)
				n++
			})
			return n, err
		}},
	}
	serve := func(t *testing.T, c call, reply string) *pool.Pool {
		script := ends(c.good + reply)
		if c.classic {
			script = classic(script)
		}
		return fake(t, script)
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
				p := serve(t, c, reply)
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
		t.Run(fmt.Sprintf("get/%q", reply), func(t *testing.T) {
			p := serve(t, calls[0], reply)
			err := use(t, p, func(pc *pool.Conn) error {
				n, err := calls[0].run(pc)
				assert.Equal(t, 1, n)
				return err
			})
			assert.ErrorIs(t, err, want)
			assert.Zero(t, idle(p), "the connection was kept")
		})
		t.Run(fmt.Sprintf("exists/%q", reply), func(t *testing.T) {
			p := fake(t, classic(ends(memcachedtest.Value("a", "1")+reply)))
			assert.ErrorIs(t, use(t, p, func(pc *pool.Conn) error {
				_, err := Exists(pc, keys)
				return err
			}), want)
			assert.Zero(t, idle(p), "the connection was kept")
		})
	}
}

// TestBytesAfterTheReply: what nobody asked for is not the next call's reply.
func TestBytesAfterTheReply(t *testing.T) {
	p := fake(t, ends("DELETED\r\nDELETED\r\nDELETED\r\n"))
	require.NoError(t, use(t, p, func(c *pool.Conn) error {
		_, n, err := Delete(c, []string{"a", "b"}, func(int, error) { t.Error("refused") })
		assert.Equal(t, 2, n)
		return err
	}))
	assert.Zero(t, idle(p), "the connection was kept")
}

// TestRefusals spoil their own key only and leave the connection in step.
func TestRefusals(t *testing.T) {
	refuse := func(good string) memcachedtest.Handler {
		return func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			switch key := cmd.Args[0]; {
			case strings.HasPrefix(key, "large"):
				c.Say("SERVER_ERROR object too large for cache\r\n")
			case strings.HasPrefix(key, "down"):
				c.Say("SERVER_ERROR Host is down\r\n")
			default:
				c.Say(good)
			}
		}
	}
	script := memcachedtest.Script{"set": refuse("STORED\r\n"), "ms": refuse("HD c5\r\n"), "delete": refuse("DELETED\r\n")}
	keys := strings.Fields("a large1 b down1 large2 c")
	wantRefused := []int{1, 3, 4}
	isTooLarge := func(err error) bool {
		var reply *protocol.ReplyError
		return errors.As(err, &reply) && reply.TooLarge()
	}
	check := func(refused map[int]error) {
		t.Helper()
		for i, err := range refused {
			assert.Equal(t, strings.HasPrefix(keys[i], "large"), isTooLarge(err), "%s: %v", keys[i], err)
		}
		assert.Equal(t, wantRefused, slices.Sorted(maps.Keys(refused)))
	}
	var items []Item
	var sets []Set
	for _, key := range keys {
		// Too large for a quiet set, which does not say what it refused.
		items = append(items, Item{key, make([]byte, smallItem)})
		sets = append(sets, Set{Item: Item{key, []byte(key)}})
	}
	meta, old := fake(t, script), fake(t, classic(maps.Clone(script)))
	for range 3 {
		for _, p := range []*pool.Pool{meta, old} {
			refused := map[int]error{}
			require.NoError(t, use(t, p, func(c *pool.Conn) error {
				unanswered, err := MSet(c, items, 0, func(items []Item, err error) {
					require.Len(t, items, 1)
					refused[slices.Index(keys, items[0].Key)] = err
				})
				assert.Empty(t, unanswered)
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
			var cas uint64 // which only the meta protocol tells
			if p == meta {
				cas = 5
			}
			answered := 0
			require.NoError(t, use(t, p, func(c *pool.Conn) error {
				return SetAll(c, sets, func(i int, r SetResult) {
					if answered++; r.Err != nil {
						assert.Equal(t, StatusRefused, r.Status)
						refused[i] = r.Err
					} else {
						assert.Equal(t, SetResult{Status: StatusStored, CAS: cas}, r)
					}
				})
			}))
			assert.Equal(t, len(sets), answered)
			check(refused)
		}
	}
	assert.Equal(t, 1, dials(meta), "a refusal cost the connection")
	assert.Equal(t, 1, dials(old), "a refusal cost the connection")
}

func TestMisses(t *testing.T) {
	for _, p := range []*pool.Pool{fake(t, nil), fake(t, classic(memcachedtest.Script{}))} {
		require.NoError(t, use(t, p, func(c *pool.Conn) error {
			found, err := Fetch(c, "k")
			assert.Nil(t, found)
			return err
		}))
		require.NoError(t, use(t, p, func(c *pool.Conn) error {
			n, err := Exists(c, []string{"k", "l"})
			assert.Zero(t, n)
			return err
		}))
		require.NoError(t, use(t, p, func(c *pool.Conn) error {
			_, ok, err := Touch(c, "k", Expiration{})
			assert.False(t, ok)
			return err
		}))
		assert.Equal(t, 1, idle(p))
		assert.Equal(t, 1, dials(p))
	}
	p := fake(t, nil)
	require.NoError(t, use(t, p, func(c *pool.Conn) error {
		ttl, err := TTL(c, "k")
		assert.Zero(t, ttl)
		return err
	}))
}

// TestUnexpected: a reply of another command's is none.
func TestUnexpected(t *testing.T) {
	fetch := func(c *pool.Conn) error {
		_, err := Fetch(c, "k")
		return err
	}
	swapK := func(c *pool.Conn) error {
		_, _, err := Swap(c, Set{Item: Item{Key: "k"}, CAS: 1})
		return err
	}
	touch := func(c *pool.Conn) error {
		_, _, err := Touch(c, "k", Expiration{})
		return err
	}
	for name, c := range map[string]struct {
		classic bool
		replies []string
		run     func(*pool.Conn) error
	}{
		"exists": {false, []string{"VA 1\r\nx\r\n", "NF\r\n", "MN\r\n", "END\r\n"}, func(c *pool.Conn) error {
			_, err := Exists(c, []string{"k", "l"})
			return err
		}},
		"fetch": {false, []string{"HD\r\n", "MN\r\n", "VALUE k 0 1\r\nx\r\n", "VA 1 t1 c1 f0\r\nxx\r\n"}, fetch},
		"classic fetch": {true, []string{
			"VA 1\r\nx\r\n", "VALUE l 0 1 1\r\nx\r\nEND\r\n", "VALUE k 0 1 1\r\nxx\r\nEND\r\n",
			"VALUE k 0 1 x\r\nx\r\nEND\r\n", "VALUE k 4294967296 1 1\r\nx\r\nEND\r\n", "VALUE k 0 1 1\r\nx\r\nVALUE k 0 1 1\r\nx\r\nEND\r\n",
		}, fetch},
		"ttl": {false, []string{"VA 1\r\nx\r\n", "MN\r\n", "HD tx\r\n"}, func(c *pool.Conn) error {
			_, err := TTL(c, "k")
			return err
		}},
		"touch":         {false, []string{"VA 1\r\nx\r\n", "NF\r\n", "TOUCHED\r\n"}, touch},
		"classic touch": {true, []string{"HD\r\n", "STORED\r\n", "END\r\n"}, touch},
		"delete of values": {false, []string{"NF\r\n", "DELETED\r\n", "HD c1 t1\r\nEN\r\n", "HD c1 t1\r\nNS\r\n"}, func(c *pool.Conn) error {
			return DeleteCAS(c, []KeyCAS{{"k", 1}}, 1)
		}},
		"swap":         {false, []string{"STORED\r\n", "HD t-1\r\nHD\r\n", "EN\r\nDELETED\r\n", "VA 1 t1\r\nx\r\nSTORED\r\n"}, swapK},
		"classic swap": {true, []string{"HD\r\n", "END\r\n"}, swapK},
		"expires at": {false, []string{"VA 1\r\nx\r\n", "MN\r\n", "HD t5\r\nSTAT time x\r\nEND\r\nHD t5\r\n", "HD t5\r\nEN\r\n"}, func(c *pool.Conn) error {
			_, _, err := ExpiresAt(c, "k")
			return err
		}},
	} {
		for _, reply := range c.replies {
			script := ends(reply)
			if c.classic {
				script = classic(script)
			}
			p := fake(t, script)
			assert.ErrorIs(t, use(t, p, c.run), protocol.ErrUnexpected, "%s: %q", name, reply)
			assert.Zero(t, idle(p), "%s: %q: the connection was kept", name, reply)
		}
	}
}
