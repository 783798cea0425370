package pipeline_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// In whatever it waits for, and nothing of it reaches a later call.
func TestACancelledBatchEndsAtOnce(t *testing.T) {
	t.Parallel()
	const n = 1000
	server := memcachedtest.Start(t, "-m", "128")
	db := drivertest.Open(t, server.Addr(), memcacheddriver.WithTimeout(drivertest.Never))
	keys := drivertest.Keys(n)
	pairs := make(map[string][]byte, n)
	for _, key := range keys {
		pairs[key] = bytes.Repeat(drivertest.Value(key), 500) // more in all than socket buffers hold
	}
	require.NoError(t, db.MSet(t.Context(), pairs, 0))

	for name, call := range map[string]func(context.Context) error{
		"MGet":   func(ctx context.Context) error { _, err := db.MGet(ctx, keys); return err },
		"MSet":   func(ctx context.Context) error { return db.MSet(ctx, pairs, 0) },
		"Exists": func(ctx context.Context) error { _, err := db.Exists(ctx, keys...); return err },
		"Delete": func(ctx context.Context) error { _, err := db.Delete(ctx, drivertest.Keys(n)...); return err },
	} {
		drivertest.Fill(t, db, 1) // else it would wait in the dial
		before := drivertest.Stat(t, db)
		server.Stop()
		ctx, cancel := context.WithCancel(t.Context())
		cancelled := make(chan time.Time, 1)
		time.AfterFunc(50*time.Millisecond, func() {
			cancelled <- time.Now()
			cancel()
		})
		err := call(ctx)
		require.ErrorIs(t, err, context.Canceled, name)
		assert.Less(t, time.Since(<-cancelled), drivertest.Never/2, "%s: not at once", name)
		after := drivertest.Stat(t, db)
		assert.Zero(t, after.Idle+after.InUse, "%s: the connection was kept", name)
		assert.Equal(t, before.Dials, after.Dials, name)
		assert.Equal(t, before.Cancelled+1, after.Cancelled, name)
		server.Cont()
	}

	// A write that was cut off may have stored some, the same values again.
	values, err := db.MGet(t.Context(), keys)
	require.NoError(t, err)
	for i, key := range keys {
		if !bytes.Equal(values[i], pairs[key]) {
			t.Fatalf("%s is %.40q… of %d bytes", key, values[i], len(values[i]))
		}
	}
}

// Contexts end at any moment, while other batches run on the same driver. A value
// is its own key's or none.
func TestBatchesCutAnywhereStayInStep(t *testing.T) {
	t.Parallel()
	const workers, rounds, n = 4, 50, 200
	db := drivertest.OpenShared(t)
	var cut, whole atomic.Int32
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			keys := drivertest.Keys(n)
			pairs := make(map[string][]byte, n)
			for _, key := range keys {
				pairs[key] = bytes.Repeat(drivertest.Value(key), 1+rand.IntN(30))
			}
			start := time.Now()
			if err := db.MSet(t.Context(), pairs, 0); err != nil {
				t.Error(err)
				return
			}
			took := time.Since(start)
			check := func(values [][]byte, err error) bool {
				for i, v := range values {
					if v == nil && err == nil || v != nil && !bytes.Equal(v, pairs[keys[i]]) {
						t.Errorf("%s is %.60q, %v", keys[i], v, err)
						return false
					}
				}
				return true
			}
			for range rounds {
				start = time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), rand.N(4*took))
				values, err := db.MGet(ctx, keys)
				setErr := db.MSet(ctx, pairs, 0)
				cancel()
				if err == nil && setErr == nil {
					whole.Add(1)
					took = time.Since(start)
				} else {
					cut.Add(1)
				}
				for _, err := range []error{err, setErr} {
					if err != nil && !errors.Is(err, context.DeadlineExceeded) {
						t.Error(err)
					}
				}
				if !check(values, err) {
					return
				}
				values, err = db.MGet(t.Context(), keys[:5])
				if err != nil {
					t.Error(err)
				}
				if !check(values, err) {
					return
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d rounds were cut, %d were not", cut.Load(), whole.Load())
	assert.NotZero(t, cut.Load())
	assert.NotZero(t, whole.Load())
}

// Whichever clock sees it first, the socket's or the context's.
func TestABatchsDeadlineWhileConnectingIsNoFaultOfTheServer(t *testing.T) {
	t.Parallel()
	db := drivertest.OpenShared(t, driver.WithReadTimeout(drivertest.Never),
		memcacheddriver.WithConnMaxIdleTime(time.Nanosecond)) // each call connects
	var cut int
	for i := range 1500 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(20+i%300)*time.Microsecond)
		_, err := db.MGet(ctx, []string{"a", "b"})
		cancel()
		if err != nil {
			cut++
			require.ErrorIs(t, err, context.DeadlineExceeded, "call %d", i)
		}
	}
	t.Logf("%d calls were cut", cut)
	assert.NotZero(t, cut)
	stats := drivertest.Stat(t, db)
	assert.GreaterOrEqual(t, int(stats.Dials), 100)
	assert.Zero(t, stats.DialErrors, "the server was blamed")
	assert.Zero(t, stats.Timeouts, "the server was blamed")
	assert.Equal(t, memcacheddriver.ServerUp, stats.State)
}
