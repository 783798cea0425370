package pool_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// getters are the ways in which gomemcache gets values.
var getters = map[string]func(ctx context.Context, db *memcacheddriver.MemcachedDB, keys ...string) (map[string][]byte, error){
	"Get": func(ctx context.Context, db *memcacheddriver.MemcachedDB, keys ...string) (map[string][]byte, error) {
		values := make(map[string][]byte)
		for _, key := range keys {
			value, err := db.Get(ctx, key)
			if err != nil {
				return nil, err
			}
			values[key] = value
		}
		return values, nil
	},
	"GetMulti in Do": func(ctx context.Context, db *memcacheddriver.MemcachedDB, keys ...string) (values map[string][]byte, err error) {
		err = db.Do(ctx, func(c *memcache.Client) error {
			values, err = getMulti(c, keys)
			return err
		})
		return values, err
	},
	"native GetMulti": func(_ context.Context, db *memcacheddriver.MemcachedDB, keys ...string) (map[string][]byte, error) {
		return getMulti(db.Client(), keys)
	},
}

func getMulti(c *memcache.Client, keys []string) (map[string][]byte, error) {
	items, err := c.GetMulti(keys)
	values := make(map[string][]byte)
	for key, item := range items {
		values[key] = item.Value
	}
	return values, err
}

// announce answers with the head of a value of 1 GB, after a small one where
// there is another key, and with nothing more.
func announce(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
	for _, key := range cmd.Args[1:] {
		c.Say("VALUE " + key + " 0 1 1\r\nv\r\n")
	}
	c.Say("VALUE " + cmd.Args[0] + " 0 1073741824 1\r\nfew bytes")
	c.Hang()
}

// Not parallel: it counts what others allocate too.
func TestAnAnnouncedSizeReservesNothing(t *testing.T) {
	server := memcachedtest.StartFake(t, memcachedtest.Script{"gets": announce})
	for name, get := range getters {
		for _, keys := range [][]string{{"large"}, {"large", "small"}} {
			t.Run(fmt.Sprint(name, len(keys)), func(t *testing.T) {
				db := drivertest.Open(t, server.Addr(), memcacheddriver.WithTimeout(200*time.Millisecond), memcacheddriver.WithServerFailureLimit(0, 0))
				var all sync.WaitGroup
				allocated := drivertest.AllocatedBy(func() {
					for range 4 {
						all.Go(func() {
							_, err := get(t.Context(), db, keys...)
							assert.Error(t, err)
						})
					}
					all.Wait()
				})
				require.Less(t, allocated, 4*(2<<20))
			})
		}
	}
}

func TestAContextEndsTheWaitForALargeValue(t *testing.T) {
	t.Parallel()
	const d = 30 * time.Millisecond
	server := memcachedtest.StartFake(t, memcachedtest.Script{"gets": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		c.Say("VALUE " + cmd.Args[0] + " 0 1073741824 1\r\n")
		repeat(c, "bytes", time.Millisecond)
	}})
	for _, name := range []string{"Get", "GetMulti in Do"} {
		db := openPatient(t, server.Addr())
		require.NoError(t, db.Ping(t.Context()))
		ctx, cancel := context.WithTimeout(t.Context(), d)
		_, err := getters[name](ctx, db, "k")
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded, name)
		drivertest.RequireIdle(t, db)
		require.Zero(t, drivertest.Stat(t, db).Timeouts)
	}
}

// Sizes around what is reserved in advance, and several large values in one reply.
func TestLargeValues(t *testing.T) {
	t.Parallel()
	const mb = 1 << 20
	server := memcachedtest.Start(t, "-I", "64m", "-m", "256")
	db := drivertest.Open(t, server.Addr(), memcacheddriver.WithTimeout(drivertest.Never))
	random := rand.NewChaCha8([32]byte{})
	keys, want := []string{}, make(map[string][]byte)
	for _, size := range []int{mb - 1, 1, mb, mb + 1, 0, 5 * mb, 3*mb + 7} {
		value := make([]byte, size)
		_, _ = random.Read(value)
		key := fmt.Sprint("key", size)
		keys, want[key] = append(keys, key), value
		require.NoError(t, db.Set(t.Context(), key, value, 0))
	}
	for name, get := range getters {
		values, err := get(t.Context(), db, keys...)
		require.NoError(t, err, name)
		require.Len(t, values, len(want), name)
		for key, value := range want {
			require.True(t, bytes.Equal(value, values[key]), "%s: other bytes of %s", name, key)
		}
	}
	item, err := db.Client().GetAndTouch(keys[5], 100)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want[keys[5]], item.Value))
	drivertest.RequireIdle(t, db)
	require.EqualValues(t, 1, drivertest.Dials(db))
}

// A server that ends the connection in a large value.
func TestALargeValueCutOff(t *testing.T) {
	t.Parallel()
	server := memcachedtest.StartFake(t, memcachedtest.Script{"gets": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		c.Say("VALUE " + cmd.Args[0] + " 0 2000000 1\r\nfew bytes")
		c.Close()
	}})
	for name, get := range getters {
		db := drivertest.Open(t, server.Addr())
		_, err := get(t.Context(), db, "k")
		require.ErrorContains(t, err, "the server closed the connection", name)
		drivertest.RequireIdle(t, db)
	}
}
