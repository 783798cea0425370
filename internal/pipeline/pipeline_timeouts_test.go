package pipeline_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// A batch that moves along takes as long as it takes.
func TestTimeoutIsForEachReplyOfABatch(t *testing.T) {
	t.Parallel()
	keys := drivertest.Keys(16)
	// More than socket buffers hold: a server that takes one value at a time has
	// not taken all within one timeout.
	large := make(map[string][]byte)
	for _, key := range drivertest.Keys(24) {
		large[key] = make([]byte, 1000<<10)
	}
	for _, c := range []struct {
		name    string
		classic bool
		run     func(context.Context, *memcacheddriver.MemcachedDB) error
	}{
		{"MGet", false, func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.MGet(ctx, keys)
			return err
		}},
		// By the meta protocol they would have one reply.
		{"MSet", true, func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			return db.MSet(ctx, drivertest.Pairs(keys), 0)
		}},
		{"MSet of large values", false, func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			return db.MSet(ctx, large, 0)
		}},
		{"Delete", false, func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.Delete(ctx, keys...)
			return err
		}},
		{"Exists", false, func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.Exists(ctx, keys...)
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			// A machine that is too busy for one timeout gets a longer one.
			for timeout := time.Second; ; timeout *= 4 {
				script := hits(func(c *memcachedtest.FakeConn, reply string) {
					time.Sleep(timeout / 8)
					c.Say(reply)
				})
				if c.classic {
					script = classic(script)
				}
				db := drivertest.Open(t, memcachedtest.StartFake(t, script).Addr(), memcacheddriver.WithTimeout(timeout))
				start := time.Now()
				err := c.run(t.Context(), db)
				if err != nil && timeout < 10*time.Second {
					t.Log(err)
					continue
				}
				require.NoError(t, err)
				assert.Greater(t, time.Since(start), 3*timeout/2, "the test is too quick to tell")
				return
			}
		})
	}
}
