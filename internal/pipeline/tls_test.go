package pipeline_test

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// memcached 1.6.18 forgets what stands behind a value in a TLS record in which the
// value did not begin, until something else comes.
func TestBatchesOverTLS(t *testing.T) {
	t.Parallel()
	server, config := memcachedtest.StartTLS(t, "-m", "256")
	sizes := map[string]func() int{
		"100 bytes":      func() int { return 100 },
		"1 KB":           func() int { return 1 << 10 },
		"about 8 KB":     func() int { return 8<<10 - 8 + rand.IntN(16) },
		"about a record": func() int { return 16<<10 - 200 + rand.IntN(400) },
		"100 KB":         func() int { return 100 << 10 },
		"all kinds":      func() int { return rand.IntN(1 << (4 + rand.IntN(14))) },
	}
	for name, size := range sizes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for round := range 30 {
				// Each round on a new connection: the first records of one are short.
				db := drivertest.Open(t, server.Addr(), driver.WithTLSConfig(config), memcacheddriver.WithTimeout(3*time.Second))
				keys := drivertest.Keys(5 + rand.IntN(60))
				pairs := map[string][]byte{}
				for _, key := range keys {
					pairs[key] = bytes.Repeat([]byte(key), size()/len(key)+1)
				}
				require.NoError(t, db.MSet(t.Context(), pairs, time.Minute), "round %d", round)
				values, err := db.MGet(t.Context(), keys)
				require.NoError(t, err, "round %d", round)
				for i, key := range keys {
					assert.True(t, bytes.Equal(pairs[key], values[i]), key)
				}
				require.NoError(t, db.MSet(t.Context(), pairs, 500*time.Millisecond), "round %d", round)
				n, err := db.Delete(t.Context(), keys...)
				require.NoError(t, err, "round %d", round)
				assert.LessOrEqual(t, int(n), len(keys))
				require.NoError(t, db.Close())
			}
		})
	}
}
