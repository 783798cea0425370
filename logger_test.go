package memcacheddriver_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/xraph/go-utils/log"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// onWarning is a logger that does something at each warning.
type onWarning struct {
	log.Logger
	do func()
}

func (l *onWarning) Warnf(string, ...any) { l.do() }

func TestALoggerThatHangsHoldsUpNothing(t *testing.T) {
	t.Parallel()
	hangs, free, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	f := memcachedtest.StartFake(t, nil)
	f.Close()
	db := drivertest.Open(t, f.Addr(), memcacheddriver.WithServerFailureLimit(1, drivertest.Never),
		driver.WithLogger(&onWarning{log.NewNoopLogger(), func() { close(hangs); <-free; close(done) }}))
	drivertest.NoDeadlock("a logger that hangs", func() {
		assert.Error(t, db.Ping(t.Context()))
		<-hangs
		assert.ErrorIs(t, db.Ping(t.Context()), memcacheddriver.ErrServerDown)
		assert.NoError(t, db.Close())
	})
	close(free)
	<-done
}

// Close waits for the removal of a value, which here is what has something to say.
func TestALoggerMayClose(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"mg": memcachedtest.HangUp})
	closed := make(chan error, 1)
	var db *memcacheddriver.MemcachedDB
	db = drivertest.OpenAsked(t, f.Addr(), memcacheddriver.WithServerFailureLimit(1, drivertest.Never),
		driver.WithLogger(&onWarning{log.NewNoopLogger(), func() { closed <- db.Close() }}))
	require.NoError(t, db.Set(t.Context(), "k", []byte("v"), 10*time.Millisecond))
	drivertest.NoDeadlock("a logger that closes", func() { assert.NoError(t, <-closed) })
}
