package memcacheddriver_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// Eight alone, and two that all others share.
func TestManyCallersNeedFewConnections(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	db := drivertest.Open(t, server.Addr())
	var all sync.WaitGroup
	for g := range 256 {
		all.Go(func() {
			key := fmt.Sprint("key", g)
			for range 50 {
				assert.NoError(t, db.Set(t.Context(), key, drivertest.Value(key), time.Minute))
				value, err := db.Get(t.Context(), key)
				assert.NoError(t, err)
				assert.Equal(t, string(drivertest.Value(key)), string(value))
			}
		})
	}
	all.Wait()
	s := drivertest.Stat(t, db)
	assert.LessOrEqual(t, int(s.Dials), 10)
	assert.NotZero(t, s.SharedCalls)
	assert.Zero(t, s.Waits)
	memcachedtest.Eventually(t, func() bool { return drivertest.Stat(t, db).Links == 0 }, "the links have ended")
	drivertest.RequireIdle(t, db)
	_, err := db.Get(t.Context(), "key0")
	assert.NoError(t, err)
	assert.Equal(t, s.SharedCalls, drivertest.Stat(t, db).SharedCalls)
}

// Where others have all connections, single-key calls share the one that comes free.
func TestCallsThatWouldWaitShare(t *testing.T) {
	t.Parallel()
	for limit, shares := range map[int]bool{1: false, 2: true, 3: true} {
		db := drivertest.OpenShared(t, memcacheddriver.WithMaxOpenConns(limit), driver.WithDialTimeout(drivertest.Never))
		release := drivertest.Hold(t, db, limit)
		var calls sync.WaitGroup
		get := func() {
			calls.Go(func() {
				_, err := db.Get(t.Context(), "absent")
				assert.Equal(t, kv.ErrNotFound, err)
			})
		}
		get()
		memcachedtest.Eventually(t, func() bool { return drivertest.Stat(t, db).Waiting == 1 }, "the first one waits")
		for range 6 {
			get()
		}
		memcachedtest.Eventually(t, func() bool {
			s := drivertest.Stat(t, db)
			return s.Waiting+int(s.SharedCalls) >= 7
		}, "all are under way")
		release()
		calls.Wait()
		assert.Equal(t, shares, drivertest.Stat(t, db).SharedCalls > 0, "a limit of %d", limit)
	}
}
