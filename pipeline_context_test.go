package memcacheddriver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// TestBatchCancelled stops promptly, in whatever it waits for, and nothing of it
// reaches a later call.
func TestBatchCancelled(t *testing.T) {
	t.Parallel()
	const n = 1000
	server := memcachedtest.Start(t, "-m", "128")
	// Only the context can end these calls soon.
	db := batchDB(t, server.Addr(), memcacheddriver.WithTimeout(5*time.Minute))
	keys := batchKeys("k", n)
	pairs := make(map[string][]byte, n)
	for _, key := range keys {
		pairs[key] = bytes.Repeat([]byte(key), 2000) // more in all than the socket buffers take
	}
	require.NoError(t, db.MSet(t.Context(), pairs, 0))
	_, err := db.Exists(t.Context(), keys[0]) // the server is asked once for its protocol
	require.NoError(t, err)

	for name, call := range map[string]func(context.Context) error{
		"MGet":   func(ctx context.Context) error { _, err := db.MGet(ctx, keys); return err },
		"MSet":   func(ctx context.Context) error { return db.MSet(ctx, pairs, 0) },
		"Exists": func(ctx context.Context) error { _, err := db.Exists(ctx, keys...); return err },
		"Delete": func(ctx context.Context) error { _, err := db.Delete(ctx, batchKeys("absent", n)...); return err },
	} {
		server.Stop()
		ctx, cancel := context.WithCancel(t.Context())
		cancelled := make(chan time.Time, 1)
		time.AfterFunc(50*time.Millisecond, func() {
			cancelled <- time.Now()
			cancel()
		})
		err := call(ctx)
		require.ErrorIs(t, err, context.Canceled, name)
		assert.Less(t, time.Since(<-cancelled), 10*time.Second, "%s: not promptly", name)
		for _, s := range db.Stats() {
			assert.Zero(t, s.Idle+s.InUse, "%s: the connection was kept", name)
		}
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

// TestBatchesCutAnywhere: batches whose contexts end at any moment, beside others
// on the same driver. A value is its own key's or none.
func TestBatchesCutAnywhere(t *testing.T) {
	t.Parallel()
	const workers, rounds, n = 4, 50, 200
	server := memcachedtest.Start(t)
	db := batchDB(t, server.Addr())
	var cut, whole atomic.Int32
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			keys := batchKeys(fmt.Sprint("worker", w), n)
			pairs := make(map[string][]byte, n)
			for _, key := range keys {
				pairs[key] = bytes.Repeat([]byte(key), 1+rand.IntN(100))
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
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.Int64N(int64(4*took))))
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

// TestDeadlineWhileConnecting is the caller's, and no fault of the server's,
// whichever clock sees it first: the socket's or the context's.
func TestDeadlineWhileConnecting(t *testing.T) {
	t.Parallel()
	addr := memcachedtest.Start(t).Addr()
	cut := 0
	for i := range 1500 {
		db := memcacheddriver.New()
		require.NoError(t, db.Open(t.Context(), addr))
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(20+i%200)*time.Microsecond)
		_, err := db.MGet(ctx, []string{"a", "b"})
		stats := db.Stats()[0]
		cancel()
		require.NoError(t, db.Close())
		if err == nil {
			continue
		}
		cut++
		require.ErrorIs(t, err, context.DeadlineExceeded, "call %d", i)
		require.Zero(t, stats.DialErrors, "call %d: the server was blamed", i)
		require.Zero(t, stats.Timeouts, "call %d: the server was blamed", i)
	}
	t.Logf("%d calls were cut", cut)
	assert.NotZero(t, cut)
}
