package memcacheddriver_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
)

// callsWithTTL are all calls that take a TTL, on a key that is there, or for
// SetNX is not.
var callsWithTTL = map[string]func(t *testing.T, db *memcacheddriver.MemcachedDB, key string, ttl time.Duration) error{
	"Set": func(t *testing.T, db *memcacheddriver.MemcachedDB, key string, ttl time.Duration) error {
		return db.Set(t.Context(), key, []byte("1"), ttl)
	},
	"SetNX": func(t *testing.T, db *memcacheddriver.MemcachedDB, _ string, ttl time.Duration) error {
		_, err := db.SetNX(t.Context(), drivertest.Key(), []byte("1"), ttl)
		return err
	},
	"SetXX": func(t *testing.T, db *memcacheddriver.MemcachedDB, key string, ttl time.Duration) error {
		_, err := db.SetXX(t.Context(), key, []byte("1"), ttl)
		return err
	},
	"MSet": func(t *testing.T, db *memcacheddriver.MemcachedDB, key string, ttl time.Duration) error {
		return db.MSet(t.Context(), map[string][]byte{key: nil, drivertest.Key(): nil}, ttl)
	},
	"Expire": func(t *testing.T, db *memcacheddriver.MemcachedDB, key string, ttl time.Duration) error {
		return db.Expire(t.Context(), key, ttl)
	},
	"CASTTL": func(t *testing.T, db *memcacheddriver.MemcachedDB, key string, ttl time.Duration) error {
		return db.CompareAndSwap(t.Context(), key, func(v []byte) ([]byte, error) { return v, nil }, memcacheddriver.CASTTL(ttl))
	},
}

func TestTTLWithoutItsUnitIsToldOnce(t *testing.T) {
	t.Parallel()
	for name, call := range callsWithTTL {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			logger := drivertest.NewLog()
			db := drivertest.OpenShared(t, driver.WithLogger(logger))
			calls := func(ttls ...time.Duration) {
				for _, ttl := range ttls {
					key := drivertest.Key()
					require.NoError(t, db.Set(t.Context(), key, []byte("1"), 0))
					require.NoError(t, call(t, db, key, ttl), ttl)
				}
			}
			calls(0, -1, time.Millisecond, time.Second, time.Hour)
			require.Empty(t, logger.Lines())
			calls(60, time.Millisecond-1, 60)
			assert.Len(t, logger.Lines(), 1)
			assert.Len(t, logger.Lines("warn", "a TTL of 60ns", "60*time.Second"), 1)
		})
	}
}
