package pipeline_test

import (
	"context"
	"os"
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
	const timeout = time.Second
	keys := drivertest.Keys(16)
	// 40 MB, more than socket buffers hold: a server that takes one value at a time
	// has not taken all within one timeout.
	large := make(map[string][]byte)
	for _, key := range drivertest.Keys(40) {
		large[key] = make([]byte, 1000<<10)
	}
	slowly := func(each time.Duration) memcachedtest.Script {
		return hits(func(c *memcachedtest.FakeConn, reply string) {
			time.Sleep(each)
			c.Say(reply)
		})
	}
	type call func(context.Context, *memcacheddriver.MemcachedDB) error
	for name, c := range map[string]struct {
		script memcachedtest.Script
		run    call
	}{
		"MGet": {slowly(timeout / 8), func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.MGet(ctx, keys)
			return err
		}},
		// With the meta protocol 64 small values have one reply.
		"MSet": {classic(slowly(timeout / 8)), func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			return db.MSet(ctx, drivertest.Pairs(keys), 0)
		}},
		"MSet of large values": {slowly(timeout / 16), func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			return db.MSet(ctx, large, 0)
		}},
		"Delete": {slowly(timeout / 8), func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.Delete(ctx, keys...)
			return err
		}},
		"Exists": {slowly(timeout / 8), func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.Exists(ctx, keys...)
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := drivertest.Open(t, memcachedtest.StartFake(t, c.script).Addr(), memcacheddriver.WithTimeout(timeout))
			start := time.Now()
			require.NoError(t, c.run(t.Context(), db))
			assert.Greater(t, time.Since(start), 3*timeout/2, "the test is too quick to tell")
		})
	}
}

func TestTimeoutEndsAReplyThatDrips(t *testing.T) {
	t.Parallel()
	const timeout = 500 * time.Millisecond
	for name, begin := range map[string]string{
		"a value": "VALUE a 0 1000000\r\n",
		"a line":  "VALUE ",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			drip := func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
				for text := begin; c.Say(text); text = "x" {
					time.Sleep(timeout / 20)
				}
			}
			db := drivertest.Open(t, memcachedtest.StartFake(t, memcachedtest.Script{"get": drip}).Addr(), memcacheddriver.WithTimeout(timeout))
			ctx, cancel := context.WithTimeout(t.Context(), drivertest.Never)
			defer cancel()
			start := time.Now()
			_, err := db.MGet(ctx, []string{"a", "b"})
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			require.NotErrorIs(t, err, context.DeadlineExceeded, "only the context ended it")
			assert.GreaterOrEqual(t, time.Since(start), timeout)
			assert.EqualValues(t, 1, drivertest.Stat(t, db).Timeouts)
		})
	}
}
