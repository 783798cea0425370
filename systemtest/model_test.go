package systemtest

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// slabChunkMax returns the option for chunks of at most 8 KB, without which
// memcached takes no limit of 16 KB for a value. It is in kilobytes from 1.6.24
// on, in bytes before.
func slabChunkMax(version string) string {
	var major, minor, patch int
	_, _ = fmt.Sscanf(version, "%d.%d.%d", &major, &minor, &patch)
	if slices.Compare([]int{major, minor, patch}, []int{1, 6, 24}) < 0 {
		return "slab_chunk_max=8192"
	}
	return "slab_chunk_max=8"
}

func TestSlabChunkMaxIsInTheUnitOfTheVersion(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]string{
		"1.5.22":    "slab_chunk_max=8192",
		"1.6.9":     "slab_chunk_max=8192",
		"1.6.18":    "slab_chunk_max=8192",
		"1.6.23":    "slab_chunk_max=8192",
		"1.6.24":    "slab_chunk_max=8",
		"1.6.40-rc": "slab_chunk_max=8",
		"1.7.0":     "slab_chunk_max=8",
		"2.0.0":     "slab_chunk_max=8",
	} {
		require.Equal(t, want, slabChunkMax(version), version)
	}
}

// modelTooLarge is more than the servers of the model take, with room for what
// they need themselves.
const modelTooLarge = 17 << 10

// modelItem is what the model knows of a key that is there.
type modelItem struct {
	value []byte
	flags uint32
	ends  time.Time // zero: never
}

// model is a map beside the driver: whatever is called, both say the same.
type model struct {
	t      *rapid.T
	db     *memcacheddriver.MemcachedDB
	prefix string
	items  map[string]modelItem
}

// key is one of a few, so that calls meet.
func (m *model) key(t *rapid.T) string {
	names := []string{"a", "b", "c", "d", "e", "\xff\xfe", "é", "0", strings.Repeat("k", 200)}
	return m.prefix + rapid.SampledFrom(names).Draw(t, "key")
}

// keys are some, in any order, any of them several times.
func (m *model) keys(t *rapid.T) []string {
	n := rapid.IntRange(0, 12).Draw(t, "keys")
	keys := make([]string, n)
	for i := range keys {
		keys[i] = m.key(t)
	}
	return keys
}

func modelValue(t *rapid.T) []byte {
	switch rapid.IntRange(0, 9).Draw(t, "kind of value") {
	case 0:
		return nil
	case 1:
		return []byte{}
	case 2: // what looks like the protocol
		return []byte(rapid.SampledFrom([]string{"\r\n", "END\r\n", "VALUE a 0 1\r\nx\r\n", "STORED\r\n", "SERVER_ERROR x\r\n", "\x00"}).Draw(t, "value"))
	case 3: // written from where it is, not copied
		return bytes.Repeat([]byte(rapid.StringN(1, 3, 4).Draw(t, "part")), rapid.IntRange(2500, 3500).Draw(t, "times"))
	case 4:
		return make([]byte, modelTooLarge)
	}
	return rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "value")
}

// modelTTL is none, long enough for any test, or over.
func modelTTL(t *rapid.T) time.Duration {
	return rapid.SampledFrom([]time.Duration{0, 0, time.Hour, 31 * 24 * time.Hour, 30*24*time.Hour - time.Millisecond, -time.Second}).Draw(t, "ttl")
}

func isTooLarge(value []byte) bool { return len(value) >= modelTooLarge }

// put is what a write of value does that finds no obstacle.
func (m *model) put(key string, value []byte, flags uint32, ttl time.Duration) {
	delete(m.items, key)
	if ttl < 0 || isTooLarge(value) { // memcached drops what it cannot replace
		return
	}
	it := modelItem{value: bytes.Clone(value), flags: flags}
	if it.value == nil {
		it.value = []byte{}
	}
	if ttl > 0 {
		it.ends = time.Now().Add(ttl)
	}
	m.items[key] = it
}

// refused checks the error of a write whose values are too large for some keys.
func (m *model) refused(err error, tooLarge ...string) {
	m.t.Helper()
	if len(tooLarge) == 0 {
		require.NoError(m.t, err)
		return
	}
	var keys []string
	for _, op := range drivertest.OpErrors(err) {
		require.ErrorIs(m.t, op, memcacheddriver.ErrValueTooLarge)
		keys = append(keys, op.Keys...)
	}
	slices.Sort(keys)
	slices.Sort(tooLarge)
	require.Equal(m.t, tooLarge, keys)
}

// check compares all that there is.
func (m *model) check(t *rapid.T) {
	m.t = t
	keys := slices.Collect(maps.Keys(m.items))
	values, err := m.db.MGet(t.Context(), keys)
	require.NoError(t, err)
	for i, key := range keys {
		require.Equal(t, m.items[key].value, values[i], "%q", key)
	}
}

// runModel does random calls beside a map, which must always say the same, for a
// time and at least once.
func runModel(t *testing.T, servers int, d time.Duration) {
	version := memcachedtest.Start(t).Stats(t)["version"]
	var addrs []string
	for range servers {
		// A limit of 16 KB makes a value that is too large cheap.
		server := memcachedtest.Start(t, "-m", "64", "-I", "16k", "-o", slabChunkMax(version))
		addrs = append(addrs, server.Addr())
	}
	db := drivertest.Open(t, strings.Join(addrs, ","), memcacheddriver.WithTTLQuery())
	runs := 0
	for deadline := time.Now().Add(d); runs == 0 || time.Now().Before(deadline); {
		rapid.Check(t, func(t *rapid.T) {
			runs++
			m := &model{t: t, db: db, prefix: fmt.Sprintf("%d-", runs), items: make(map[string]modelItem)}
			t.Repeat(map[string]func(*rapid.T){
				"Get":            m.get,
				"Set":            m.set,
				"SetNX":          m.setIf(false),
				"SetXX":          m.setIf(true),
				"Delete":         m.delete,
				"Exists":         m.exists,
				"MGet":           m.mget,
				"MSet":           m.mset,
				"CompareAndSwap": m.swap,
				"Expire":         m.expire,
				"TTL":            m.ttl,
				"native":         m.native,
				"flags":          m.flags,
				"":               m.check,
			})
			// Make room: an eviction is a miss that the model does not know of.
			_, err := db.Delete(t.Context(), slices.Collect(maps.Keys(m.items))...)
			require.NoError(t, err)
		})
	}
	drivertest.RequireIdle(t, db)
	for _, s := range db.Stats() {
		require.LessOrEqual(t, s.Idle, 1, "one call at a time needs one connection")
	}
}

func TestDriverAgreesWithModel(t *testing.T) {
	t.Parallel()
	for servers := 1; servers <= 3; servers++ {
		t.Run(fmt.Sprint(servers, " servers"), func(t *testing.T) {
			t.Parallel()
			runModel(t, servers, 0)
		})
	}
}

func TestSoakDriverAgreesWithModel(t *testing.T) {
	t.Parallel()
	runModel(t, 2, drivertest.Soak(t))
}
