package pool_test

import (
	"context"
	"errors"
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

// All callers give up early, and nobody sees a timeout.
func TestAFrozenServerIsNoticedByNobodysTimeout(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	db := drivertest.Open(t, server.Addr(), memcacheddriver.WithTimeout(500*time.Millisecond))
	drivertest.Fill(t, db, 8)
	server.Stop()
	start := time.Now()
	var mu sync.Mutex
	var late, down int
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for time.Since(start) < 2500*time.Millisecond {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				began := time.Since(start)
				_, err := db.Get(ctx, "k")
				cancel()
				if began > 1500*time.Millisecond {
					mu.Lock()
					late++
					if errors.Is(err, memcacheddriver.ErrServerDown) {
						down++
					}
					mu.Unlock()
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	all.Wait()
	server.Cont()
	t.Logf("%d of %d were refused at once", down, late)
	assert.Greater(t, down, late*9/10)
}

// The same where each caller has a connection at once, as nothing is asked in the dial.
func TestSilenceIsAFailureWhoeverWaited(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"version": memcachedtest.HangUp, "gets": memcachedtest.Hang, "get": memcachedtest.Hang})
	db := drivertest.Open(t, f.Addr(), memcacheddriver.WithTimeout(200*time.Millisecond), memcacheddriver.WithServerFailureLimit(3, drivertest.Never))
	calls := 0
	memcachedtest.Eventually(t, func() bool {
		calls++
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, err := db.Get(ctx, "k")
		if errors.Is(err, memcacheddriver.ErrServerDown) {
			assert.ErrorContains(t, err, "not a byte within the read timeout of 200ms")
			return true
		}
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		return false
	}, "the server is down")
	assert.GreaterOrEqual(t, calls, 7, "200 ms of silence in calls of 20 ms, and of more where the machine is busy")
}

// One reply, to anybody, and the server is well.
func TestCallersThatGiveUpDoNotBringAServerDown(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"gets": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		if cmd.Keys()[0] == "slow" {
			c.Hang()
			return
		}
		c.Default(cmd)
	}})
	db := drivertest.Open(t, f.Addr(), memcacheddriver.WithTimeout(100*time.Millisecond), memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, err := db.Get(ctx, "slow")
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.NoError(t, batch(t.Context(), db, "quick"))
	}
	require.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
}

// The end of a Do says nothing about the server: its function need not have waited.
func TestWhatADoLeavesBehindIsNoSilence(t *testing.T) {
	t.Parallel()
	const calls, timeout = 12, 400 * time.Millisecond
	f := memcachedtest.StartFake(t, memcachedtest.Script{"gets": memcachedtest.Hang})
	db := drivertest.Open(t, f.Addr(), memcacheddriver.WithTimeout(timeout), memcacheddriver.WithMaxIdleConns(calls),
		memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
	drivertest.Fill(t, db, calls) // else a dial would be a sign of life
	for range calls {
		require.NoError(t, db.Do(t.Context(), func(c *memcache.Client) error {
			go c.Get("k")
			time.Sleep(timeout / 8)
			return nil
		}))
	}
	assert.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
}
