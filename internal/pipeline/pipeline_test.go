package pipeline_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// Not parallel: it measures what is allocated.
func TestBatchesOf100000Keys(t *testing.T) {
	const n, valueSize = 100_000, 20
	// What a batch may need besides its results: some words for each key, and for
	// each server a buffer.
	const perKey, perServer = 160, 1 << 20
	for _, servers := range []int{1, 3} {
		t.Run(fmt.Sprint(servers, " servers"), func(t *testing.T) {
			var addrs []string
			for range servers {
				addrs = append(addrs, memcachedtest.Start(t, "-m", "512").Addr())
			}
			db := drivertest.OpenAsked(t, strings.Join(addrs, ","))
			ctx := t.Context()
			keys := drivertest.Keys(n)
			pairs := make(map[string][]byte, n)
			for i, key := range keys {
				pairs[key] = fmt.Appendf(nil, "%0*d", valueSize, i)
			}
			room := n*perKey + servers*perServer

			drivertest.NoDeadlock("MSet", func() {
				var err error
				assert.Less(t, drivertest.AllocatedBy(func() { err = db.MSet(ctx, pairs, time.Hour) }), room)
				require.NoError(t, err)
			})
			drivertest.NoDeadlock("MGet", func() {
				var values [][]byte
				var err error
				assert.Less(t, drivertest.AllocatedBy(func() { values, err = db.MGet(ctx, keys) }), n*valueSize+room)
				require.NoError(t, err)
				require.Len(t, values, n)
				for i, v := range values {
					if !bytes.Equal(v, pairs[keys[i]]) {
						t.Fatalf("%s is %q, want %q", keys[i], v, pairs[keys[i]])
					}
				}
			})
			drivertest.NoDeadlock("Exists", func() {
				var count int64
				var err error
				assert.Less(t, drivertest.AllocatedBy(func() { count, err = db.Exists(ctx, keys...) }), room)
				require.NoError(t, err)
				assert.EqualValues(t, n, count)
			})
			drivertest.NoDeadlock("Delete", func() {
				var deleted int64
				var err error
				assert.Less(t, drivertest.AllocatedBy(func() { deleted, err = db.Delete(ctx, keys[:n-1]...) }), room)
				require.NoError(t, err)
				assert.EqualValues(t, n-1, deleted)
			})
			values, err := db.MGet(ctx, keys)
			require.NoError(t, err)
			for i, v := range values[:n-1] {
				if v != nil {
					t.Fatalf("%s is there", keys[i])
				}
			}
			assert.Equal(t, pairs[keys[n-1]], values[n-1])
			count, err := db.Exists(ctx, keys...)
			require.NoError(t, err)
			assert.EqualValues(t, 1, count)
			assert.EqualValues(t, servers, drivertest.Dials(db), "a connection was not used again")
		})
	}
}

// More than all socket buffers hold, each way. Not parallel: it measures what is
// allocated.
func TestBatchesOfLargeValuesAllocateOnlyTheirResults(t *testing.T) {
	const n, size = 300, 700 << 10
	const constant = 2 << 20
	db := drivertest.OpenAsked(t, memcachedtest.Start(t, "-m", "512").Addr())
	ctx := t.Context()
	// Each value is another view of the same bytes, so that the test itself needs
	// next to no memory.
	text := make([]byte, n+size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(text)
	keys := drivertest.Keys(n)
	pairs := make(map[string][]byte, n)
	for i, key := range keys {
		pairs[key] = text[i : i+size]
	}
	drivertest.NoDeadlock("MSet", func() {
		var err error
		assert.Less(t, drivertest.AllocatedBy(func() { err = db.MSet(ctx, pairs, 0) }), constant, "values were copied")
		require.NoError(t, err)
	})
	drivertest.NoDeadlock("MGet", func() {
		var values [][]byte
		var err error
		// The allocator rounds up to whole pages, a hundredth.
		assert.Less(t, drivertest.AllocatedBy(func() { values, err = db.MGet(ctx, keys) }), n*size+n*size/100+constant)
		require.NoError(t, err)
		for i, v := range values {
			if !bytes.Equal(v, pairs[keys[i]]) {
				t.Fatalf("%s: another value, of %d bytes", keys[i], len(v))
			}
		}
	})
	drivertest.NoDeadlock("Exists", func() {
		var count int64
		var err error
		assert.Less(t, drivertest.AllocatedBy(func() { count, err = db.Exists(ctx, keys...) }), constant)
		require.NoError(t, err)
		assert.EqualValues(t, n, count)
	})
	assert.EqualValues(t, 1, drivertest.Dials(db))
}

func TestABatchThatWaitsHoldsUpNoOtherCall(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	waits, goOn := make(chan struct{}), make(chan struct{})
	var replies atomic.Int32
	db := drivertest.Open(t, memcachedtest.StartFake(t, hits(func(c *memcachedtest.FakeConn, reply string) {
		c.Say(reply)
		if replies.Add(1) == 1 {
			close(waits)
			c.Wait(goOn)
		}
	})).Addr())
	keys := drivertest.Keys(10)
	done := make(chan error, 1)
	var values [][]byte
	go func() {
		var err error
		values, err = db.MGet(ctx, keys)
		done <- err
	}()
	<-waits
	value, err := db.Get(ctx, "other")
	require.NoError(t, err)
	assert.Equal(t, string(drivertest.Value("other")), string(value))
	require.NoError(t, db.MSet(ctx, drivertest.Pairs(keys), 0))
	count, err := db.Exists(ctx, keys...)
	require.NoError(t, err)
	assert.EqualValues(t, len(keys), count)
	select {
	case err := <-done:
		t.Fatalf("the batch did not wait: %v", err)
	default:
	}
	close(goOn)
	require.NoError(t, <-done)
	assert.Equal(t, len(keys), drivertest.AssertValues(t, keys, values))
}
