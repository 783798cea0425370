package pool_test

import (
	"context"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestPanicAndGoexitInDoLoseNoConnection(t *testing.T) {
	t.Parallel()
	db := drivertest.OpenShared(t)
	key := drivertest.Key()
	for range 3 {
		require.PanicsWithValue(t, "mine", func() {
			_ = db.Do(t.Context(), func(c *memcache.Client) error {
				assert.NoError(t, c.Set(&memcache.Item{Key: key, Value: []byte("v")}))
				panic("mine")
			})
		})
		var gone sync.WaitGroup
		gone.Go(func() {
			_ = db.Do(t.Context(), func(c *memcache.Client) error {
				_, err := c.Get(key)
				assert.NoError(t, err)
				runtime.Goexit()
				return nil
			})
		})
		gone.Wait()
		drivertest.RequireIdle(t, db)
	}
	require.NoError(t, db.Set(t.Context(), key, []byte("v"), 0))
}

func TestManyGoroutinesShareTheClientOfADo(t *testing.T) {
	t.Parallel()
	const goroutines, rounds, increments = 16, 5, 20
	db := drivertest.OpenShared(t)
	key := drivertest.Key()
	require.NoError(t, db.Set(t.Context(), key, []byte("0"), 0))
	for range rounds {
		require.NoError(t, db.Do(t.Context(), func(c *memcache.Client) error {
			var all sync.WaitGroup
			for range goroutines {
				all.Go(func() {
					for range increments {
						_, err := c.Increment(key, 1)
						assert.NoError(t, err)
					}
				})
			}
			all.Wait()
			return nil
		}))
	}
	value, err := db.Get(t.Context(), key)
	require.NoError(t, err)
	require.Equal(t, strconv.Itoa(goroutines*rounds*increments), string(value))
	drivertest.RequireIdle(t, db)
	require.LessOrEqual(t, drivertest.Stat(t, db).Idle, 10)
}

func TestContextEndsEveryGoroutineOfADo(t *testing.T) {
	t.Parallel()
	const goroutines = 16
	db := drivertest.Open(t, memcachedtest.StartFake(t, hangsAfterDial).Addr(), memcacheddriver.WithTimeout(drivertest.Never))
	ctx, cancel := context.WithCancel(t.Context())
	require.NoError(t, db.Do(ctx, func(c *memcache.Client) error {
		var all sync.WaitGroup
		for range goroutines {
			all.Go(func() {
				_, err := c.Get("k")
				assert.ErrorIs(t, err, context.Canceled)
			})
		}
		memcachedtest.Eventually(t, func() bool { return drivertest.Stat(t, db).InUse == goroutines }, "all hang")
		cancel()
		all.Wait()
		return nil
	}))
	drivertest.RequireIdle(t, db)
}
