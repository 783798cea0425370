package memcacheddriver_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// The servers of the model take values of up to 16 KB, so that one too large is
// cheap to make.
var modelServerArgs = []string{"-m", "64", "-I", "16k", "-o", "slab_chunk_max=8192"}

// modelTooLarge is more than they take, with room for what the server needs.
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
	return m.prefix + rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "\xff\xfe", "é", "0", strings.Repeat("k", 200)}).Draw(t, "key")
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
	require.ErrorIs(m.t, err, memcacheddriver.ErrValueTooLarge)
	var keys []string
	for _, e := range flatten(err) {
		var op *memcacheddriver.OpError
		require.ErrorAs(m.t, e, &op)
		keys = append(keys, op.Keys...)
	}
	slices.Sort(keys)
	slices.Sort(tooLarge)
	require.Equal(m.t, tooLarge, keys)
}

// flatten returns the errors that a batch's error joins.
func flatten(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

func (m *model) get(t *rapid.T) {
	key := m.key(t)
	value, err := m.db.Get(t.Context(), key)
	it, ok := m.items[key]
	if !ok {
		require.True(t, err == kv.ErrNotFound, "Get(%q): %v", key, err)
		require.Nil(t, value)
		return
	}
	require.NoError(t, err)
	require.Equal(t, it.value, value, "%q", key)
}

func (m *model) set(t *rapid.T) {
	key, value, ttl := m.key(t), modelValue(t), modelTTL(t)
	err := m.db.Set(t.Context(), key, value, ttl)
	m.put(key, value, 0, ttl)
	if isTooLarge(value) {
		m.refused(err, key)
	} else {
		m.refused(err)
	}
}

// setIf is SetNX and SetXX.
func (m *model) setIf(there bool) func(*rapid.T) {
	return func(t *rapid.T) {
		key, value, ttl := m.key(t), modelValue(t), modelTTL(t)
		call := m.db.SetNX
		if there {
			call = m.db.SetXX
		}
		stored, err := call(t.Context(), key, value, ttl)
		if isTooLarge(value) { // nothing happened: an add or a replace drops nothing
			m.refused(err, key)
			require.False(t, stored)
			return
		}
		require.NoError(t, err)
		_, is := m.items[key]
		require.Equal(t, is == there, stored, "%q", key)
		if stored {
			m.put(key, value, 0, ttl)
		}
	}
}

func (m *model) delete(t *rapid.T) {
	keys := m.keys(t)
	want := 0
	for _, key := range keys {
		if _, ok := m.items[key]; ok {
			want++
			delete(m.items, key)
		}
	}
	deleted, err := m.db.Delete(t.Context(), keys...)
	require.NoError(t, err)
	require.EqualValues(t, want, deleted, "%q", keys)
}

func (m *model) exists(t *rapid.T) {
	keys := m.keys(t)
	want := 0
	for _, key := range keys {
		if _, ok := m.items[key]; ok {
			want++
		}
	}
	count, err := m.db.Exists(t.Context(), keys...)
	require.NoError(t, err)
	require.EqualValues(t, want, count, "%q", keys)
}

func (m *model) mget(t *rapid.T) {
	keys := m.keys(t)
	want := make([][]byte, len(keys))
	for i, key := range keys {
		if it, ok := m.items[key]; ok {
			want[i] = it.value
		}
	}
	values, err := m.db.MGet(t.Context(), keys)
	require.NoError(t, err)
	require.Equal(t, want, values, "%q", keys)
}

func (m *model) mset(t *rapid.T) {
	pairs := make(map[string][]byte)
	var tooLarge []string
	for _, key := range m.keys(t) {
		pairs[key] = modelValue(t)
	}
	ttl := modelTTL(t)
	for key, value := range pairs {
		if isTooLarge(value) {
			tooLarge = append(tooLarge, key)
		}
		m.put(key, value, 0, ttl)
	}
	before := maps.Clone(pairs)
	m.refused(m.db.MSet(t.Context(), pairs, ttl), tooLarge...)
	require.Equal(t, before, pairs, "MSet changed its argument")
}

func (m *model) swap(t *rapid.T) {
	key, value := m.key(t), modelValue(t)
	var opts []memcacheddriver.CASOption
	it, there := m.items[key]
	ttl := time.Duration(0)
	if rapid.Bool().Draw(t, "with CASTTL") {
		ttl = modelTTL(t)
		it.ends = time.Time{}
		if ttl > 0 {
			it.ends = time.Now().Add(ttl)
		}
		opts = append(opts, memcacheddriver.CASTTL(ttl))
	}
	lose := rapid.SampledFrom([]string{"", "", "", "update fails", "changed", "deleted"}).Draw(t, "lose")
	failed := errors.New("update failed")
	called := 0
	err := m.db.CompareAndSwap(t.Context(), key, func(current []byte) ([]byte, error) {
		called++
		require.Equal(t, m.items[key].value, current, "%q", key)
		switch lose {
		case "update fails":
			return nil, failed
		case "changed":
			require.NoError(t, m.db.Set(t.Context(), key, []byte("changed"), 0))
			m.put(key, []byte("changed"), 0, 0)
		case "deleted":
			_, err := m.db.Delete(t.Context(), key)
			require.NoError(t, err)
			delete(m.items, key)
		}
		clear(current) // ours to change
		return value, nil
	}, opts...)
	if !there {
		require.True(t, err == kv.ErrNotFound, "%v", err)
		require.Zero(t, called)
		return
	}
	require.Equal(t, 1, called)
	switch {
	case lose == "update fails":
		require.ErrorIs(t, err, failed)
	case isTooLarge(value):
		m.refused(err, key) // and what is there stays
	case lose == "changed":
		require.ErrorIs(t, err, kv.ErrConflict)
	case lose == "deleted":
		require.True(t, err == kv.ErrNotFound, "%v", err)
	default:
		require.NoError(t, err)
		ends := it.ends
		m.put(key, value, it.flags, min(ttl, 0))
		if it, ok := m.items[key]; ok {
			it.ends = ends
			m.items[key] = it
		}
	}
}

func (m *model) expire(t *rapid.T) {
	key, ttl := m.key(t), modelTTL(t)
	err := m.db.Expire(t.Context(), key, ttl)
	it, ok := m.items[key]
	if !ok {
		require.True(t, err == kv.ErrNotFound, "%v", err)
		return
	}
	require.NoError(t, err)
	delete(m.items, key)
	if ttl >= 0 {
		it.ends = time.Time{}
		if ttl > 0 {
			it.ends = time.Now().Add(ttl)
		}
		m.items[key] = it
	}
}

func (m *model) ttl(t *rapid.T) {
	key := m.key(t)
	left, err := m.db.TTL(t.Context(), key)
	it, ok := m.items[key]
	switch {
	case !ok:
		require.True(t, err == kv.ErrNotFound, "%v", err)
	case it.ends.IsZero():
		require.NoError(t, err)
		require.Equal(t, memcacheddriver.NoExpiry, left, "%q", key)
	default:
		require.NoError(t, err)
		require.InDelta(t, time.Until(it.ends), left, float64(10*time.Second), "%q", key)
	}
}

// native goes around the driver's methods, on its connections.
func (m *model) native(t *rapid.T) {
	key, flags := m.key(t), rapid.Uint32().Draw(t, "flags")
	value := []byte(rapid.StringN(0, 20, 100).Draw(t, "value"))
	set := func(c *memcache.Client) error {
		return c.Set(&memcache.Item{Key: key, Value: value, Flags: flags})
	}
	if rapid.Bool().Draw(t, "Do") {
		require.NoError(t, m.db.Do(t.Context(), set))
	} else {
		require.NoError(t, set(m.db.Client()))
	}
	m.put(key, value, flags, 0)
	if rapid.Bool().Draw(t, "append") {
		require.NoError(t, m.db.Client().Append(&memcache.Item{Key: key, Value: []byte("+")}))
		m.put(key, append(value, '+'), flags, 0)
	}
}

func (m *model) flags(t *rapid.T) {
	key := m.key(t)
	item, err := m.db.Client().Get(key)
	it, ok := m.items[key]
	if !ok {
		require.Equal(t, memcache.ErrCacheMiss, err)
		return
	}
	require.NoError(t, err)
	require.Equal(t, it.flags, item.Flags, "%q", key)
	require.Equal(t, it.value, item.Value, "%q", key)
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
	var addrs []string
	for range servers {
		addrs = append(addrs, memcachedtest.Start(t, modelServerArgs...).Addr())
	}
	db := batchDB(t, strings.Join(addrs, ","), memcacheddriver.WithTTLQuery())
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
	for _, s := range db.Stats() {
		require.Zero(t, s.InUse)
		require.LessOrEqual(t, s.Idle, 1, "one call at a time needs one connection")
	}
}

func TestModel(t *testing.T) {
	t.Parallel()
	for servers := 1; servers <= 3; servers++ {
		t.Run(fmt.Sprint(servers, " servers"), func(t *testing.T) {
			t.Parallel()
			runModel(t, servers, 0)
		})
	}
}

func TestSoakModel(t *testing.T) {
	t.Parallel()
	runModel(t, 2, soakTime(t))
}
