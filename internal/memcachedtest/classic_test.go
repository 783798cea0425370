package memcachedtest_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestClassicKnowsNoMetaCommands(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	c := dial(t, memcachedtest.StartClassic(t, server.Addr()))
	assert.Equal(t, "ERROR\r\n", exchange(t, c, "mn\r\n"))
	assert.Equal(t, "STORED\r\nERROR\r\nVALUE k 0 6\r\nmn\r\nmn\r\nEND\r\n",
		exchange(t, c, "set k 0 0 6\r\nmn\r\nmn\r\nmg k v\r\nget k\r\n"), "in order, and not within a value")
	assert.Equal(t, "ERROR\r\nOK\r\nEND\r\n", exchange(t, c, "ms k 9\r\nflush_all\r\nget k\r\n"), "a value is a command")
	assert.Equal(t, "ERROR\r\nERROR\r\n", exchange(t, c, "\r\nset\r\n"))
	server.Kill()
	gone(t, c)
}

func TestClassicTakesTheAddressOfAServer(t *testing.T) {
	t.Parallel()
	server, newcomer := memcachedtest.Start(t), memcachedtest.Start(t)
	server.Kill()
	assert.Equal(t, server.Addr(), memcachedtest.StartClassicOn(t, server.Addr(), newcomer.Addr()))
	assert.Equal(t, "ERROR\r\n", exchange(t, dial(t, server.Addr()), "mn\r\n"))
}
