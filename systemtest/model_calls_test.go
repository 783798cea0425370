package systemtest

import (
	"errors"
	"maps"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

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
	case isTooLarge(value) && (lose != "deleted" || err != kv.ErrNotFound): // nobody says which is told
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
