//go:build unix

package pool_test

import (
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// takeDescriptors takes those file descriptors away that are not used, until restore is
// called or the test ends. The test must not be parallel.
func takeDescriptors(t *testing.T) (restore func()) {
	t.Helper()
	var limit syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	none := limit
	none.Cur = 3 // what is open stays open
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none))
	restore = sync.OnceFunc(func() { syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) })
	t.Cleanup(restore)
	return restore
}

func TestWithoutFileDescriptors(t *testing.T) {
	server := memcachedtest.Start(t)
	log := drivertest.NewLog()
	open := func(opts ...driver.Option) *memcacheddriver.MemcachedDB {
		return drivertest.Open(t, server.Addr(), append(opts, memcacheddriver.WithTTLQuery(),
			driver.WithDialTimeout(drivertest.Never), memcacheddriver.WithServerFailureLimit(1, drivertest.Never))...)
	}
	db, cold := open(driver.WithLogger(log)), open()
	drivertest.Fill(t, db, 2)

	restore := takeDescriptors(t)

	var all sync.WaitGroup
	for range 30 {
		all.Go(func() {
			for range 10 {
				assert.NoError(t, batch(t.Context(), db, "k"), "two connections serve all")
			}
		})
	}
	all.Wait()
	log.Await(t, 1, "warn: ", server.Addr(), "no more connections", "too many open files")
	for _, call := range append(nativeCalls, drivertest.Calls...) {
		err := call.Run(t.Context(), cold, "k")
		assert.ErrorIs(t, err, syscall.EMFILE, call.Name)
		assert.ErrorContains(t, err, "this machine", call.Name)
	}
	for _, db := range []*memcacheddriver.MemcachedDB{db, cold} {
		assert.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
	}
	require.Len(t, log.Lines(), 1)

	restore()
	memcachedtest.Eventually(t, func() bool { return batch(t.Context(), cold, "k") == nil }, "there are some again")
	drivertest.Hold(t, db, 4)()
}

// To look up a name takes some as well, and does not say so.
func TestANameWithoutFileDescriptors(t *testing.T) {
	db := drivertest.Open(t, onLocalhost(t, memcachedtest.Start(t)), memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
	restore := takeDescriptors(t)
	err := batch(t.Context(), db, "k")
	restore()
	assert.ErrorContains(t, err, "this machine")
	assert.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
	memcachedtest.Eventually(t, func() bool { return batch(t.Context(), db, "k") == nil }, "there are some again")
}
