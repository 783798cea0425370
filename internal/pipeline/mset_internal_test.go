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

// TestSetQuietly stores what Set stores, at the edges of a segment too.
func TestSetQuietly(t *testing.T) {
	server := memcachedtest.Start(t, "-m", "256")
	p := newPool(server.Addr(), 3)
	defer p.Close()
	for _, n := range []int{0, 1, segment - 1, segment, segment + 1, 5*segment + 3, 50 * segment} {
		items := append(smallItems(n),
			Item{"large", make([]byte, 600)}, Item{"huge", make([]byte, 2<<20)}, Item{"last", make([]byte, 100_000)})
		items[n/2].Value = []byte{} // the empty value is a value
		var refused []int
		require.NoError(t, use(t, p, func(c *pool.Conn) error {
			answered, err := SetQuietly(c, items, 100, func(from, to int, err error) {
				var reply *protocol.ReplyError
				assert.ErrorAs(t, err, &reply)
				assert.Equal(t, from+1, to)
				refused = append(refused, from)
			})
			assert.Equal(t, len(items), answered)
			return err
		}))
		assert.Equal(t, []int{n + 1}, refused)
		keys := make([]string, len(items))
		for i, it := range items {
			keys[i] = it.Key
		}
		found := 0
		require.NoError(t, use(t, p, func(c *pool.Conn) error {
			return Get(c, keys, func(i int, value []byte) {
				found++
				assert.Equal(t, len(items[i].Value), len(value), keys[i])
				if i < n {
					assert.Equal(t, items[i].Value, value)
				}
			})
		}))
		assert.Equal(t, len(items)-1, found)
		ttl, ok, err := int64(0), false, error(nil)
		require.NoError(t, use(t, p, func(c *pool.Conn) error {
			ttl, ok, err = TTL(c, keys[0])
			return err
		}))
		assert.True(t, ok)
		assert.Greater(t, ttl, int64(90))
	}
	assert.EqualValues(t, 1, p.Servers[0].Stats().Dials, "a refusal leaves the connection in step")
}

// TestSetQuietlyOutOfMemory: a server that may not evict refuses small items. It
// does not say which: those of other segments are known to be stored.
func TestSetQuietlyOutOfMemory(t *testing.T) {
	p := listen(t, answers(func(cmd command) string {
		switch {
		case cmd.fields[0] == "mn":
			return "MN\r\n"
		case cmd.fields[0] == "ms" && (cmd.fields[1] == "key-70" || cmd.fields[1] == "key-80"):
			return "SERVER_ERROR out of memory storing object\r\n"
		}
		return ""
	}))
	items := smallItems(3 * segment)
	var refused [][2]int
	require.NoError(t, use(t, p, func(c *pool.Conn) error {
		answered, err := SetQuietly(c, items, 0, func(from, to int, err error) {
			assert.ErrorContains(t, err, "out of memory")
			refused = append(refused, [2]int{from, to})
		})
		assert.Equal(t, len(items), answered)
		return err
	}))
	assert.Equal(t, [][2]int{{segment, 2 * segment}}, refused)
	assert.EqualValues(t, 1, p.Servers[0].Stats().Dials)
}

// TestSetQuietlyFaults: only what the server has given its sign for is answered,
// and a connection out of step is not used again.
func TestSetQuietlyFaults(t *testing.T) {
	for _, fault := range []string{"ERROR\r\n", "CLIENT_ERROR bad data chunk\r\n", "STORED\r\n", "HD\r\n", "garbage\r\n", "\r\n", "VA 3\r\nabc\r\n"} {
		t.Run(strings.TrimSpace(fault), func(t *testing.T) {
			p := listen(t, answers(func(cmd command) string {
				switch {
				case cmd.fields[0] == "mn":
					return "MN\r\n"
				case cmd.fields[0] == "ms" && cmd.fields[1] == "key-70":
					return fault
				}
				return ""
			}))
			items := smallItems(3 * segment)
			err := use(t, p, func(c *pool.Conn) error {
				answered, err := SetQuietly(c, items, 0, func(int, int, error) { t.Error("refused") })
				assert.Equal(t, segment, answered)
				return err
			})
			require.Error(t, err)
			assert.Zero(t, p.Servers[0].Stats().Idle)
		})
	}
}
