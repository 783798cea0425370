package pool_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// Other calls need not wait for the last reply of a long batch.
func TestABatchThatProbesBringsTheServerBackWithItsFirstReply(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"*": memcachedtest.HangUp})
	const retry = 200 * time.Millisecond
	db := drivertest.Open(t, f.Addr(), memcacheddriver.WithTimeout(drivertest.Never), memcacheddriver.WithServerFailureLimit(1, retry))
	_, err := db.Get(t.Context(), "k")
	require.Error(t, err)
	require.Equal(t, memcacheddriver.ServerDown, drivertest.Stat(t, db).State)

	rest := make(chan struct{})
	f.SetScript(memcachedtest.Script{"delete": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		if cmd.Keys()[0] == "a" || c.Wait(rest) {
			c.Say("DELETED\r\n")
		}
	}})
	time.Sleep(retry)
	done := make(chan error, 1)
	go func() {
		_, err := db.Delete(t.Context(), "a", "b", "c")
		done <- err
	}()
	memcachedtest.Eventually(t, func() bool { return f.Count("delete") >= 2 }, "the batch has its first reply")
	memcachedtest.Eventually(t, func() bool { return drivertest.Stat(t, db).State == memcacheddriver.ServerUp },
		"the server is up while the batch runs")
	_, err = db.Get(t.Context(), "k")
	assert.Equal(t, kv.ErrNotFound, err)
	close(rest)
	assert.NoError(t, <-done)
}
