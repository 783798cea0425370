package memcacheddriver_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// TestBatchOf100000 keys in one call.
func TestBatchOf100000(t *testing.T) {
	const n, valueSize = 100_000, 20
	// What a batch may need beside its results: some words for each key, and for
	// each server a buffer.
	const perKey, perServer = 160, 1 << 20
	for _, servers := range []int{1, 3} {
		t.Run(fmt.Sprint(servers, " servers"), func(t *testing.T) {
			var addrs []string
			for range servers {
				addrs = append(addrs, memcachedtest.Start(t, "-m", "512").Addr())
			}
			db := batchDB(t, strings.Join(addrs, ","))
			ctx := t.Context()
			keys := batchKeys("k", n)
			pairs := make(map[string][]byte, n)
			for i, key := range keys {
				pairs[key] = fmt.Appendf(nil, "%0*d", valueSize, i)
			}
			const room = n * perKey

			noDeadlock("MSet", func() {
				assert.Less(t, allocatedBy(func() { require.NoError(t, db.MSet(ctx, pairs, time.Hour)) }),
					room+servers*perServer)
			})
			noDeadlock("MGet", func() {
				var values [][]byte
				var err error
				assert.Less(t, allocatedBy(func() { values, err = db.MGet(ctx, keys) }),
					n*valueSize+room+servers*perServer)
				require.NoError(t, err)
				require.Len(t, values, n)
				for i, v := range values {
					if !bytes.Equal(v, pairs[keys[i]]) {
						t.Fatalf("%s is %q, want %q", keys[i], v, pairs[keys[i]])
					}
				}
			})
			noDeadlock("Exists", func() {
				var count int64
				var err error
				assert.Less(t, allocatedBy(func() { count, err = db.Exists(ctx, keys...) }), room+servers*perServer)
				require.NoError(t, err)
				assert.EqualValues(t, n, count)
			})
			noDeadlock("Delete", func() {
				var deleted int64
				var err error
				assert.Less(t, allocatedBy(func() { deleted, err = db.Delete(ctx, keys[:n-1]...) }), room+servers*perServer)
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
			assert.EqualValues(t, servers, batchDials(db), "a connection was not used again")
		})
	}
}

// TestBatchOf700KB: 300 values in one call, each way.
func TestBatchOf700KB(t *testing.T) {
	const n, size = 300, 700 << 10
	const constant = 2 << 20
	db := batchDB(t, memcachedtest.Start(t, "-m", "512").Addr())
	ctx := t.Context()
	// Each value is another view of the same bytes, so that the test itself needs
	// next to no memory.
	text := make([]byte, n+size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(text)
	keys := batchKeys("large", n)
	pairs := make(map[string][]byte, n)
	for i, key := range keys {
		pairs[key] = text[i : i+size]
	}
	noDeadlock("MSet", func() {
		assert.Less(t, allocatedBy(func() { require.NoError(t, db.MSet(ctx, pairs, 0)) }), constant, "values were copied")
	})
	noDeadlock("MGet", func() {
		var values [][]byte
		var err error
		// The allocator rounds up to whole pages, a hundredth.
		assert.Less(t, allocatedBy(func() { values, err = db.MGet(ctx, keys) }), n*size+n*size/100+constant)
		require.NoError(t, err)
		for i, v := range values {
			if !bytes.Equal(v, pairs[keys[i]]) {
				t.Fatalf("%s: another value, of %d bytes", keys[i], len(v))
			}
		}
	})
	noDeadlock("Exists", func() {
		assert.Less(t, allocatedBy(func() {
			count, err := db.Exists(ctx, keys...)
			require.NoError(t, err)
			assert.EqualValues(t, n, count)
		}), constant)
	})
	assert.EqualValues(t, 1, batchDials(db))
}

// TestExistsFetchesNothing: what the server sends does not depend on the values.
func TestExistsFetchesNothing(t *testing.T) {
	t.Parallel()
	const n, size = 100, 500 << 10
	server := memcachedtest.Start(t, "-m", "128")
	db := batchDB(t, server.Addr())
	value := make([]byte, size)
	keys := batchKeys("k", n)
	pairs := make(map[string][]byte, n)
	for _, key := range keys {
		pairs[key] = value
	}
	require.NoError(t, db.MSet(t.Context(), pairs, 0))
	written := func() int {
		n, err := strconv.Atoi(server.Stats(t)["bytes_written"])
		require.NoError(t, err)
		return n
	}
	before := written()
	for _, many := range [][]string{keys, keys[:2], keys[:1]} {
		count, err := db.Exists(t.Context(), slices.Concat(many, []string{"absent"})...)
		require.NoError(t, err)
		assert.EqualValues(t, len(many), count)
	}
	count, err := db.Exists(t.Context(), keys[0])
	require.NoError(t, err)
	assert.EqualValues(t, 1, count)
	assert.Less(t, written()-before, 50_000, "bytes from the server, whose values are %d", n*size)
}

// TestBatchLeavesOthersAlone: while one batch waits in the middle of its reply,
// other calls go on.
func TestBatchLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	server := (&batchServer{gate: make(chan struct{}), waiting: make(chan struct{}, 1), speaksMeta: true}).start(t)
	db := batchDB(t, server.addr)
	ctx := t.Context()
	keys := batchKeys("k", 10)
	done := make(chan error, 1)
	var values [][]byte
	go func() {
		var err error
		values, err = db.MGet(ctx, keys)
		done <- err
	}()
	<-server.waiting
	value, err := db.Get(ctx, "other")
	require.NoError(t, err)
	assert.Equal(t, string(batchValue("other")), string(value))
	require.NoError(t, db.MSet(ctx, batchPairs(keys), 0))
	count, err := db.Exists(ctx, keys...)
	require.NoError(t, err)
	assert.EqualValues(t, len(keys), count)
	select {
	case err := <-done:
		t.Errorf("the batch did not wait: %v", err)
		done <- err
	default:
	}
	close(server.gate)
	require.NoError(t, <-done)
	assert.Equal(t, len(keys), checkBatchValues(t, keys, values))
}

// TestExistsWithoutMeta falls back by itself, and asks once.
func TestExistsWithoutMeta(t *testing.T) {
	t.Parallel()
	server := (&batchServer{}).start(t)
	db := batchDB(t, server.addr)
	keys := batchKeys("k", 10)
	for range 5 {
		count, err := db.Exists(t.Context(), slices.Concat(keys, keys[:2])...)
		require.NoError(t, err)
		assert.EqualValues(t, len(keys)+2, count, "a key counts as often as it is named")
	}
	assert.EqualValues(t, 1, server.probes.Load(), "asked again")
	assert.LessOrEqual(t, server.conns.Load(), int32(2))
}

// TestMetaAskedOnce, whichever calls need it.
func TestMetaAskedOnce(t *testing.T) {
	t.Parallel()
	server := (&batchServer{speaksMeta: true}).start(t)
	db := batchDB(t, server.addr)
	for range 5 {
		count, err := db.Exists(t.Context(), "a", "b")
		require.NoError(t, err)
		assert.EqualValues(t, 2, count)
	}
	assert.EqualValues(t, 1, server.probes.Load(), "asked again")
	assert.EqualValues(t, 1, server.conns.Load())
}

// TestBatchDuplicates: a key that is named twice.
func TestBatchDuplicates(t *testing.T) {
	t.Parallel()
	var addrs []string
	for range 2 {
		addrs = append(addrs, memcachedtest.Start(t).Addr())
	}
	for _, dsn := range []string{addrs[0], strings.Join(addrs, ",")} {
		db := batchDB(t, dsn)
		ctx := t.Context()
		require.NoError(t, db.MSet(ctx, map[string][]byte{"a": []byte("1"), "b": nil, "c": []byte("3")}, 0))
		values, err := db.MGet(ctx, []string{"a", "x", "a", "b", "c", "b", "x", "a"})
		require.NoError(t, err)
		assert.Equal(t, [][]byte{[]byte("1"), nil, []byte("1"), {}, []byte("3"), {}, nil, []byte("1")}, values)
		values[0][0] = '!'
		assert.Equal(t, "1", string(values[2]), "two results share their memory")
		count, err := db.Exists(ctx, "a", "x", "a", "b", "x")
		require.NoError(t, err)
		assert.EqualValues(t, 3, count)
		deleted, err := db.Delete(ctx, "a", "a", "x", "b", "a")
		require.NoError(t, err)
		assert.EqualValues(t, 2, deleted)
	}
}

// TestBatchDuplicatesAnsweredOnce: by a proxy that asks for each key once, and
// answers in an order of its own.
func TestBatchDuplicatesAnsweredOnce(t *testing.T) {
	t.Parallel()
	db := batchDB(t, (&batchServer{once: true}).start(t).addr)
	for _, asked := range []string{"a a", "a b a", "b a b a", "c a b c b a", "a b c"} {
		keys := strings.Fields(asked)
		values, err := db.MGet(t.Context(), keys)
		require.NoError(t, err)
		assert.Equal(t, len(keys), checkBatchValues(t, keys, values), asked)
		for i := range values {
			values[i][0] = '!'
			for j := i + 1; j < len(values); j++ {
				assert.Equal(t, string(batchValue(keys[j])), string(values[j]), "%s: two results share their memory", asked)
			}
		}
		count, err := db.Exists(t.Context(), keys...)
		require.NoError(t, err)
		assert.EqualValues(t, len(keys), count, asked)
	}
}

// TestEmptyBatches ask nobody.
func TestEmptyBatches(t *testing.T) {
	t.Parallel()
	db := batchDB(t, "127.0.0.1:1")
	ctx := t.Context()
	values, err := db.MGet(ctx, nil)
	assert.NoError(t, err)
	assert.Empty(t, values)
	assert.NoError(t, db.MSet(ctx, nil, 0))
	deleted, err := db.Delete(ctx)
	assert.NoError(t, err)
	assert.Zero(t, deleted)
	count, err := db.Exists(ctx)
	assert.NoError(t, err)
	assert.Zero(t, count)
	assert.Zero(t, batchDials(db))
}
