package memcachedtest_test

import (
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestConfigEndpoint(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.ConfigEndpoint(12, "a||1", "b|10.0.0.2|2"))
	c := dial(t, f.Addr())
	assert.Equal(t, "CONFIG cluster 0 21\r\n12\na||1 b|10.0.0.2|2\n\r\nEND\r\n", exchange(t, c, "config get cluster\r\n"))
	assert.Equal(t, "ERROR\r\nEND\r\nMN\r\n", exchange(t, c, "config get other\r\nget k\r\nmn\r\n"), "else as a memcached")
	f.SetScript(memcachedtest.ConfigEndpoint(13))
	assert.Equal(t, "CONFIG cluster 0 4\r\n13\n\n\r\nEND\r\n", exchange(t, c, "config get cluster\r\n"))
	assert.Equal(t, 3, f.Count("config"))

	f.SetScript(memcachedtest.OldConfigEndpoint(12, "a||1"))
	assert.Equal(t, "ERROR\r\nVALUE AmazonElastiCache:cluster 0 8\r\n12\na||1\n\r\nEND\r\nEND\r\n",
		exchange(t, c, "config get cluster\r\nget AmazonElastiCache:cluster\r\nget k\r\n"))

	f.SetScript(memcachedtest.Script{"config": memcachedtest.Flood("abc")})
	_, err := io.WriteString(c, "config get cluster\r\n")
	require.NoError(t, err)
	got := make([]byte, 1<<20)
	_, err = io.ReadFull(c, got)
	require.NoError(t, err)
	assert.Equal(t, "abcab", string(got[:5]))
}
