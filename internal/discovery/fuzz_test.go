package discovery_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/discovery"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// endpoint answers by what it reads, whatever it is asked.
type endpoint struct{ io.Reader }

func (endpoint) Write(p []byte) (int, error) { return len(p), nil }

// FuzzCluster feeds the parser with anything: it comes to an end, however the bytes
// are cut, with a bounded error or a whole list, and without more memory than the
// bytes are worth.
func FuzzCluster(f *testing.F) {
	for _, seed := range []string{
		"", "\r\n", "END\r\n", "ERROR\r\n", "ERROR\r\nEND\r\n", "SERVER_ERROR busy\r\n",
		"CONFIG cluster 0 147\r\n12\na.example|10.0.0.1|11211 b.example||11218\n\r\nEND\r\n",
		"ERROR\r\nVALUE AmazonElastiCache:cluster 0 9\r\n1\r\n|10.0.0.1|1\r\n\r\nEND\r\n",
		"CONFIG cluster 0 99999999999999999999\n0\n|::1|65535 ::|::|1 a||1 a||1\nEND\n",
		"CONFIG cluster 0 5\r\n12\nEND\r\n", "CONFIG cluster 0 5\r\n12\na||1",
		"CONFIG cluster 0 5\r\n1\n" + strings.Repeat("a||1 ", 9) + "\nEND\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		got, err := discovery.Cluster(endpoint{bytes.NewReader(in)})
		runtime.ReadMemStats(&after)
		// The rest is other goroutines'.
		if cost, limit := after.TotalAlloc-before.TotalAlloc, uint64(64*len(in)+1<<20); cost > limit {
			t.Errorf("%d bytes cost %d of memory", len(in), cost)
		}
		again, againErr := discovery.Cluster(endpoint{iotest.OneByteReader(bytes.NewReader(in))})
		assert.Equal(t, got, again)
		assert.Equal(t, fmt.Sprint(err), fmt.Sprint(againErr))
		if err != nil {
			assert.Empty(t, got)
			assert.Less(t, len(err.Error()), 1500)
			return
		}

		require.NotEmpty(t, got.Servers)
		assert.GreaterOrEqual(t, got.Version, int64(0))
		nodes, known := make([]string, len(got.Servers)), make(map[string]bool)
		for i, server := range got.Servers {
			assert.False(t, known[server], server)
			known[server] = true
			host, port, err := net.SplitHostPort(server)
			require.NoError(t, err)
			require.NotEmpty(t, host)
			nodes[i] = "|" + host + "|" + port
		}
		again, err = discovery.Cluster(endpoint{strings.NewReader(
			"CONFIG cluster 0 0\r\n" + memcachedtest.ClusterBody(got.Version, nodes...) + "\r\nEND\r\n")})
		require.NoError(t, err)
		assert.Equal(t, got, again)
	})
}
