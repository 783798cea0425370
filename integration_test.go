package memcacheddriver_test

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/keyspace"
)

// TestIntegration runs what the driver promises against Memcached containers,
// or, where Docker does not run, against local memcached processes. It is not
// parallel to other tests, because the conformance suite has a TTL of 50 ms in
// it and a busy machine none too spare.
func TestIntegration(t *testing.T) {
	start := nodeStarter(t)
	nodes := make([]node, 4)
	var all sync.WaitGroup
	for i := range nodes {
		var args []string
		if i == 3 {
			args = []string{"-I", "4m", "-m", "64"}
		}
		all.Go(func() { nodes[i] = start(t, args...) })
	}
	all.Wait()
	if t.Failed() {
		return
	}
	var addrs []string
	for _, n := range nodes[:3] {
		addrs = append(addrs, n.addr())
	}

	tests := map[string]func(t *testing.T, dsn string){
		"page":          testPage,
		"capabilities":  testCapabilities,
		"limitations":   testLimitations,
		"registry":      testRegistry,
		"plugins":       testPlugins,
		"keyspace":      testKeyspace,
		"one goroutine": testMixedLoad(1),
		"16 goroutines": testMixedLoad(16),
	}
	if speaksMeta(t, addrs[0]) {
		tests["conformance"] = testConformance // which wants a TTL of 50 ms kept
		tests["TTL query"] = testTTLQuery
	} else {
		tests["TTL query"] = testNoTTLQuery
	}
	for name, dsn := range map[string]string{
		"one server":    addrs[0],
		"three servers": strings.Join(addrs, ","),
	} {
		t.Run(name, func(t *testing.T) {
			for name, test := range tests {
				t.Run(name, func(t *testing.T) { test(t, dsn) })
			}
		})
	}
	t.Run("a server with a larger limit", func(t *testing.T) { testLargerLimit(t, nodes[3].addr()) })
	t.Run("keys on three servers", func(t *testing.T) { testSpread(t, addrs) })
	t.Run("one of three down", func(t *testing.T) { testOneDown(t, nodes[:3]) })
	t.Run("no persistence", func(t *testing.T) { testNoPersistence(t, nodes[0]) })
}

// The snippets of Grove's page, as they compile.
func testPage(t *testing.T, dsn string) {
	ctx := t.Context()
	store := drivertest.OpenStore(t, dsn, memcacheddriver.WithTimeout(10*time.Second), memcacheddriver.WithMaxIdleConns(10))
	require.NoError(t, store.Ping(ctx))

	// Basic usage.
	type Session struct{ User string }
	abc, resource := drivertest.Key()+":session:abc", drivertest.Key()+":lock:resource"
	require.NoError(t, store.Set(ctx, abc, Session{"ann"}, kv.WithTTL(30*time.Minute)))
	var session Session
	require.NoError(t, store.Get(ctx, abc, &session))
	assert.Equal(t, "ann", session.User)
	require.NoError(t, store.Delete(ctx, abc))
	assert.True(t, store.Get(ctx, abc, &session) == kv.ErrNotFound)
	require.NoError(t, store.Set(ctx, resource, "me", kv.WithTTL(10*time.Second), kv.WithNX()))
	assert.ErrorIs(t, store.Set(ctx, resource, "you", kv.WithTTL(10*time.Second), kv.WithNX()), kv.ErrConflict)
	assert.ErrorIs(t, store.Set(ctx, abc, Session{"bob"}, kv.WithTTL(30*time.Minute), kv.WithXX()), kv.ErrNotFound)
	require.NoError(t, store.Set(ctx, abc, Session{"bob"}))
	require.NoError(t, store.Set(ctx, abc, Session{"eve"}, kv.WithTTL(30*time.Minute), kv.WithXX()))
	require.NoError(t, store.Get(ctx, abc, &session))
	assert.Equal(t, "eve", session.User)

	// CompareAndSwap.
	mdb := memcacheddriver.Unwrap(store)
	counter := drivertest.Key()
	require.NoError(t, store.Set(ctx, counter, 0))
	increment := func(current []byte) ([]byte, error) {
		count, err := strconv.Atoi(string(current))
		return []byte(strconv.Itoa(count + 1)), err
	}
	require.NoError(t, mdb.CompareAndSwap(ctx, counter, increment))
	err := mdb.CompareAndSwap(ctx, counter, func(current []byte) ([]byte, error) {
		require.NoError(t, mdb.CompareAndSwap(ctx, counter, increment)) // another client
		return increment(current)
	})
	assert.ErrorIs(t, err, kv.ErrConflict)
	var count int
	require.NoError(t, store.Get(ctx, counter, &count))
	assert.Equal(t, 2, count)

	// The native client.
	client := memcacheddriver.UnwrapClient(store)
	views, err := client.Increment(counter, 1)
	require.NoError(t, err)
	assert.EqualValues(t, 3, views)
	lines := drivertest.Key()
	require.NoError(t, mdb.Set(ctx, lines, nil, 0))
	require.NoError(t, client.Append(&memcache.Item{Key: lines, Value: []byte("new entry\n")}))
	raw, err := store.GetRaw(ctx, lines)
	require.NoError(t, err)
	assert.Equal(t, "new entry\n", string(raw))
}

// The rows of the page's capability table.
func testCapabilities(t *testing.T, dsn string) {
	ctx := t.Context()
	store := drivertest.OpenStore(t, dsn)
	info := store.Driver().Info()
	for row, c := range map[string]struct {
		capability driver.Capability
		yes        bool
		works      func() error
	}{
		"TTL": {driver.CapTTL, true, func() error {
			key := drivertest.Key()
			if err := store.Set(ctx, key, 1, kv.WithTTL(time.Second)); err != nil {
				return err
			}
			memcachedtest.Eventually(t, func() bool { return store.Get(ctx, key, new(int)) == kv.ErrNotFound }, "a key with a TTL of 1 s is gone")
			return nil
		}},
		"CAS": {driver.CapCAS, true, func() error {
			key := drivertest.Key()
			if err := store.Set(ctx, key, 1, kv.WithXX()); err != kv.ErrNotFound {
				return fmt.Errorf("XX of an absent key: %w", err)
			}
			if err := store.Set(ctx, key, 1, kv.WithNX()); err != nil {
				return err
			}
			return store.Set(ctx, key, 2, kv.WithXX())
		}},
		"Scan": {driver.CapScan, false, func() error {
			return store.Scan(ctx, "*", func(string) error { return nil })
		}},
		"Batch": {driver.CapBatch, true, func() error {
			k := drivertest.Keys(3)
			if err := store.MSet(ctx, map[string]any{k[0]: "a", k[1]: "b"}, kv.WithTTL(time.Minute)); err != nil {
				return err
			}
			got := make(map[string]any)
			if err := store.MGet(ctx, k, got); err != nil {
				return err
			}
			assert.Equal(t, map[string]any{k[0]: "a", k[1]: "b"}, got)
			return nil
		}},
		"PubSub":       {driver.CapPubSub, false, nil},
		"Transactions": {driver.CapTransaction, false, nil},
		"Streams":      {driver.CapStreams, false, nil},
	} {
		assert.Equal(t, c.yes, info.Has(c.capability), row)
		if c.works == nil {
			continue // the store has no call for it
		}
		if err := c.works(); c.yes {
			assert.NoError(t, err, row)
		} else {
			assert.True(t, err == kv.ErrNotSupported, "%s: %v", row, err)
		}
	}
	_, pubsub := store.Driver().(driver.PubSubDriver)
	_, transactions := store.Driver().(driver.TransactionDriver)
	_, scan := store.Driver().(driver.ScanDriver)
	assert.False(t, pubsub || transactions || scan)
}

// The page's limitations but for "no persistence".
func testLimitations(t *testing.T, dsn string) {
	ctx := t.Context()
	store := drivertest.OpenStore(t, dsn)
	key := drivertest.Key()
	require.NoError(t, store.Set(ctx, key, "v", kv.WithTTL(time.Hour)))

	assert.ErrorIs(t, store.Scan(ctx, "*", func(string) error { return nil }), kv.ErrNotSupported)

	_, err := store.TTL(ctx, key)
	assert.ErrorIs(t, err, kv.ErrNotSupported)
	assert.NoError(t, store.Expire(ctx, key, time.Minute))

	long := strings.Repeat("k", 250-len(key)) + key
	require.NoError(t, store.Set(ctx, long, "v"))
	assert.ErrorIs(t, store.Set(ctx, long+"k", "v"), memcacheddriver.ErrInvalidKey)
	assert.ErrorIs(t, store.Get(ctx, long+"k", new(string)), memcacheddriver.ErrInvalidKey)

	// 1 MB is for the value, the key and what the server adds.
	require.NoError(t, store.SetRaw(ctx, key, make([]byte, 1<<20-1024)))
	assert.ErrorIs(t, store.SetRaw(ctx, key, make([]byte, 1<<20)), memcacheddriver.ErrValueTooLarge)
	assert.True(t, store.Get(ctx, key, new(string)) == kv.ErrNotFound, "memcached removes what it could not replace")
}

// speaksMeta reports whether the server says that it is memcached 1.6.10 or later.
func speaksMeta(t *testing.T, addr string) bool {
	t.Helper()
	version := drivertest.AskServer(t, addr, "version")
	var major, minor, patch int
	_, err := fmt.Sscanf(version, "VERSION %d.%d.%d", &major, &minor, &patch)
	require.NoError(t, err, "%q", version)
	t.Logf("the server says %q", version)
	return slices.Compare([]int{major, minor, patch}, []int{1, 6, 10}) >= 0
}

func testTTLQuery(t *testing.T, dsn string) {
	ctx := t.Context()
	store := drivertest.OpenStore(t, dsn, memcacheddriver.WithTTLQuery())
	key := drivertest.Key()
	require.NoError(t, store.Set(ctx, key, "v", kv.WithTTL(time.Minute)))
	ttl, err := store.TTL(ctx, key)
	require.NoError(t, err)
	assert.True(t, 0 < ttl && ttl <= time.Minute+time.Second, "%v", ttl)

	space := keyspace.New[int](store, drivertest.Key(), keyspace.WithTTL(time.Hour))
	require.NoError(t, space.Set(ctx, "k", 1))
	entry, err := space.GetEntry(ctx, "k")
	require.NoError(t, err)
	assert.InDelta(t, time.Hour, entry.TTL, float64(time.Minute))
}

// Before memcached 1.6.10 nobody can tell a TTL.
func testNoTTLQuery(t *testing.T, dsn string) {
	store := drivertest.OpenStore(t, dsn, memcacheddriver.WithTTLQuery())
	_, err := store.TTL(t.Context(), drivertest.Key())
	assert.ErrorIs(t, err, kv.ErrNotSupported)
}

func testLargerLimit(t *testing.T, dsn string) {
	store := drivertest.OpenStore(t, dsn)
	key := drivertest.Key()
	value := bytes.Repeat([]byte("x"), 3<<20)
	require.NoError(t, store.SetRaw(t.Context(), key, value))
	got, err := store.GetRaw(t.Context(), key)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(value, got))
	assert.ErrorIs(t, store.SetRaw(t.Context(), key, make([]byte, 5<<20)), memcacheddriver.ErrValueTooLarge)
}

// testMixedLoad does everything at once and looks that no reply goes astray.
func testMixedLoad(goroutines int) func(t *testing.T, dsn string) {
	return func(t *testing.T, dsn string) {
		ctx := t.Context()
		db := drivertest.Open(t, dsn)
		var all sync.WaitGroup
		for range goroutines {
			all.Go(func() {
				k := drivertest.Keys(5)
				for i := range 20 {
					pairs := make(map[string][]byte)
					for j, key := range k[:4] {
						pairs[key] = fmt.Append(nil, key, i, j)
					}
					assert.NoError(t, db.MSet(ctx, pairs, time.Minute))
					got, err := db.MGet(ctx, k)
					assert.NoError(t, err)
					for j, key := range k {
						assert.Equal(t, pairs[key], got[j])
					}
					assert.NoError(t, db.CompareAndSwap(ctx, k[0], func(c []byte) ([]byte, error) {
						assert.Equal(t, pairs[k[0]], c)
						return append(c, '!'), nil
					}))
					one, err := db.Get(ctx, k[0])
					assert.NoError(t, err)
					assert.Equal(t, append(pairs[k[0]], '!'), one)
					n, err := db.Delete(ctx, k...)
					assert.NoError(t, err)
					assert.EqualValues(t, 4, n)
				}
			})
		}
		all.Wait()
	}
}
