package pipeline

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

func smallItems(n int) []Item {
	items := make([]Item, n)
	for i := range items {
		items[i] = Item{fmt.Sprint("key-", i), []byte(fmt.Sprint("value of ", i))}
	}
	return items
}

// TestMSet stores items of all sizes, at the edges of a segment too, on servers
// with the meta protocol and without.
func TestMSet(t *testing.T) {
	server := memcachedtest.Start(t, "-m", "256")
	direct := open(t, server.Addr())
	for name, addr := range map[string]string{"meta": server.Addr(), "classic": memcachedtest.StartClassic(t, server.Addr())} {
		p := open(t, addr)
		for _, n := range []int{0, 1, segment - 1, segment, segment + 1, 5*segment + 3, 50 * segment} {
			items := append(smallItems(n),
				Item{"large", make([]byte, 600)}, Item{"huge", make([]byte, 2<<20)}, Item{"last", make([]byte, 100_000)})
			// Large ones among the small, and an empty value, which is one.
			items[0], items[n] = items[n], items[0]
			items[n/2].Value = []byte{}
			values := make(map[string]string)
			for _, it := range items {
				values[it.Key] = string(it.Value)
			}
			var refused []string
			require.NoError(t, use(t, p, func(c *pool.Conn) error {
				unanswered, err := MSet(c, items, 100, func(items []Item, err error) {
					var reply *protocol.ReplyError
					assert.ErrorAs(t, err, &reply)
					for _, it := range items {
						refused = append(refused, it.Key)
					}
				})
				assert.Empty(t, unanswered)
				return err
			}))
			assert.Equal(t, []string{"huge"}, refused, "%s, %d", name, n)
			keys := make([]string, len(items))
			for i, it := range items {
				keys[i] = it.Key
			}
			found := 0
			require.NoError(t, use(t, p, func(c *pool.Conn) error {
				return Get(c, keys, func(i int, value []byte) {
					found++
					if values[keys[i]] != string(value) {
						t.Errorf("%s, %d: %s has another value", name, n, keys[i])
					}
				})
			}))
			assert.Equal(t, len(items)-1, found, "%s, %d", name, n)
			var seconds int64
			require.NoError(t, use(t, direct, func(c *pool.Conn) (err error) {
				seconds, err = TTL(c, "last")
				return err
			}))
			assert.Greater(t, seconds, int64(90))
		}
		assert.Equal(t, 1, dials(p), "a refusal leaves the connection in step")
	}
}

// TestMSetOutOfMemory: a server that may not evict refuses small items. It does
// not say which: those of other segments are known to be stored.
func TestMSetOutOfMemory(t *testing.T) {
	p := fake(t, memcachedtest.Script{"ms": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		if cmd.Args[0] == "key-70" || cmd.Args[0] == "key-80" {
			c.Say("SERVER_ERROR out of memory storing object\r\n")
		}
	}})
	items := smallItems(3 * segment)
	var refused [][]Item
	require.NoError(t, use(t, p, func(c *pool.Conn) error {
		unanswered, err := MSet(c, items, 0, func(items []Item, err error) {
			assert.ErrorContains(t, err, "out of memory")
			refused = append(refused, items)
		})
		assert.Empty(t, unanswered)
		return err
	}))
	assert.Equal(t, [][]Item{items[segment : 2*segment]}, refused)
	assert.Equal(t, 1, dials(p))
}

// TestMSetFaults: only what the server has given its sign for is answered, and a
// connection out of step is not used again.
func TestMSetFaults(t *testing.T) {
	for _, fault := range []string{"ERROR\r\n", "CLIENT_ERROR bad data chunk\r\n", "STORED\r\n", "HD\r\n", "garbage\r\n", "\r\n", "VA 3\r\nabc\r\n"} {
		t.Run(strings.TrimSpace(fault), func(t *testing.T) {
			p := fake(t, memcachedtest.Script{"ms": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
				if cmd.Args[0] == "key-70" {
					c.Say(fault)
				}
			}})
			items := append(smallItems(3*segment), Item{"large", make([]byte, smallItem)})
			err := use(t, p, func(c *pool.Conn) error {
				unanswered, err := MSet(c, items, 0, func([]Item, error) { t.Error("refused") })
				assert.Len(t, unanswered, len(items)-segment)
				return err
			})
			require.Error(t, err)
			assert.Zero(t, idle(p))
		})
	}
}
