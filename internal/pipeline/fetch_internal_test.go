package pipeline

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

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
		"delete of values": {false, []string{"EN\r\n", "DELETED\r\n", "NS\r\n"}, func(c *pool.Conn) error {
			return DeleteCAS(c, []KeyCAS{{"k", 1}})
		}},
		"expires at": {false, []string{"VA 1\r\nx\r\n", "MN\r\n", "HD t5\r\nSTAT time x\r\nEND\r\nHD t5\r\n", "HD t5\r\nEN\r\n"}, func(c *pool.Conn) error {
			_, err := ExpiresAt(c, "k")
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
