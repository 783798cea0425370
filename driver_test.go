package memcacheddriver_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

var (
	_ driver.Driver      = (*memcacheddriver.MemcachedDB)(nil)
	_ driver.BatchDriver = (*memcacheddriver.MemcachedDB)(nil)
	_ driver.CASDriver   = (*memcacheddriver.MemcachedDB)(nil)
	_ driver.TTLDriver   = (*memcacheddriver.MemcachedDB)(nil)
)

// calls are all calls of an open driver that take a key, each on one that is
// there with the value "1".
var calls = map[string]func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error{
	"get": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.Get(ctx, key)
		return err
	},
	"set": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return db.Set(ctx, key, []byte("1"), 0)
	},
	"setnx": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.SetNX(ctx, key, []byte("1"), 0)
		return err
	},
	"setxx": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.SetXX(ctx, key, []byte("1"), 0)
		return err
	},
	"delete": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.Delete(ctx, key)
		return err
	},
	"delete of two": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.Delete(ctx, "first", key)
		return err
	},
	"exists": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.Exists(ctx, key)
		return err
	},
	"exists of two": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.Exists(ctx, "first", key)
		return err
	},
	"mget of one": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.MGet(ctx, []string{key})
		return err
	},
	"mget": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.MGet(ctx, []string{"first", key})
		return err
	},
	"mset of one": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return db.MSet(ctx, map[string][]byte{key: []byte("1")}, 0)
	},
	"mset": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return db.MSet(ctx, map[string][]byte{"first": []byte("1"), key: []byte("1")}, 0)
	},
	"ttl": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.TTL(ctx, key)
		return err
	},
	"expire": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return db.Expire(ctx, key, time.Hour)
	},
	"cas": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return db.CompareAndSwap(ctx, key, func(current []byte) ([]byte, error) { return current, nil })
	},
}

func TestInfo(t *testing.T) {
	db := memcacheddriver.New()
	assert.Equal(t, "memcached", db.Name())
	info := db.Info()
	assert.Equal(t, "memcached", info.Name)
	assert.NotEmpty(t, info.Version)
	for capability, has := range map[driver.Capability]bool{
		driver.CapTTL: true, driver.CapCAS: true, driver.CapBatch: true,
		driver.CapScan: false, driver.CapPubSub: false, driver.CapTransaction: false,
		driver.CapStreams: false, driver.CapSortedSet: false, driver.CapCRDT: false,
	} {
		assert.Equal(t, has, info.Has(capability), "capability %d", capability)
	}
	var d driver.Driver = db
	_, scan := d.(driver.ScanDriver)
	_, pubsub := d.(driver.PubSubDriver)
	_, tx := d.(driver.TransactionDriver)
	assert.False(t, scan || pubsub || tx, "an interface is implemented that nothing stands behind")
}

func TestAMissIsErrNotFoundItself(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := openShared(t, memcacheddriver.WithTTLQuery())
	key := newKey()

	value, err := db.Get(ctx, key)
	assert.True(t, err == kv.ErrNotFound, "Get: %v", err)
	assert.Nil(t, value)
	_, err = db.TTL(ctx, key)
	assert.True(t, err == kv.ErrNotFound, "TTL: %v", err)
	err = db.Expire(ctx, key, time.Minute)
	assert.True(t, err == kv.ErrNotFound, "Expire: %v", err)
	err = db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { return nil, nil })
	assert.True(t, err == kv.ErrNotFound, "CompareAndSwap: %v", err)

	all, err := db.MGet(ctx, []string{key})
	assert.NoError(t, err)
	assert.Equal(t, [][]byte{nil}, all)
}

func TestSetNX(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := openShared(t)
	key := newKey()
	for i, want := range []bool{true, false} {
		ok, err := db.SetNX(ctx, key, []byte{'a' + byte(i)}, 0)
		require.NoError(t, err)
		assert.Equal(t, want, ok)
	}
	got, err := db.Get(ctx, key)
	require.NoError(t, err)
	assert.Equal(t, "a", string(got))

	// Of many at once, one sets.
	key = newKey()
	var set atomic.Int32
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			ok, err := db.SetNX(ctx, key, []byte("x"), time.Minute)
			assert.NoError(t, err)
			if ok {
				set.Add(1)
			}
		})
	}
	all.Wait()
	assert.EqualValues(t, 1, set.Load())
}

func TestSetXX(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := openShared(t)
	key := newKey()
	ok, err := db.SetXX(ctx, key, []byte("a"), 0)
	require.NoError(t, err)
	assert.False(t, ok)
	_, err = db.Get(ctx, key)
	require.ErrorIs(t, err, kv.ErrNotFound, "SetXX stored an absent key")

	require.NoError(t, db.Set(ctx, key, []byte("a"), 0))
	ok, err = db.SetXX(ctx, key, []byte("b"), 0)
	require.NoError(t, err)
	assert.True(t, ok)
	got, err := db.Get(ctx, key)
	require.NoError(t, err)
	assert.Equal(t, "b", string(got))
}

func TestDeleteCountsWhatItRemoved(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := openShared(t)
	k := newKeys(4)
	set := func() {
		require.NoError(t, db.MSet(ctx, map[string][]byte{k[0]: []byte("0"), k[1]: []byte("1"), k[2]: {}}, 0))
	}
	for _, c := range []struct {
		keys []string
		want int64
	}{
		{nil, 0},
		{[]string{k[0]}, 1},
		{[]string{k[3]}, 0},
		{[]string{k[0], k[1], k[2], k[3]}, 3},
		{[]string{k[0], k[0]}, 1},
		{[]string{k[3], k[3]}, 0},
	} {
		set()
		n, err := db.Delete(ctx, c.keys...)
		require.NoError(t, err)
		assert.Equal(t, c.want, n, "%v", c.keys)
		n, err = db.Exists(ctx, k...)
		require.NoError(t, err)
		assert.Equal(t, 3-c.want, n, "%v", c.keys)
	}
}

func TestExistsCounts(t *testing.T) {
	t.Parallel()
	metaAndClassic(t, func(t *testing.T, addr string) {
		ctx := t.Context()
		db := openDB(t, addr)
		a, empty, absent := newKey(), newKey(), newKey()
		require.NoError(t, db.MSet(ctx, map[string][]byte{a: []byte("a"), empty: {}}, 0))
		for _, c := range []struct {
			keys []string
			want int64
		}{
			{nil, 0},
			{[]string{a}, 1},
			{[]string{absent}, 0},
			{[]string{empty}, 1},
			{[]string{absent, a, empty}, 2},
			{[]string{a, a}, 2}, // as Redis counts
			{[]string{a, absent, a, absent, empty, a}, 4},
		} {
			n, err := db.Exists(ctx, c.keys...)
			require.NoError(t, err)
			assert.Equal(t, c.want, n, "%v", c.keys)
		}
	})
}

func TestAContextThatHasEnded(t *testing.T) {
	t.Parallel()
	db := openShared(t, memcacheddriver.WithTTLQuery())
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	for _, ctx := range []context.Context{cancelled, late} {
		for name, call := range calls {
			err := call(ctx, db, "key")
			assert.ErrorIs(t, err, ctx.Err(), name)
			assert.True(t, strings.HasPrefix(err.Error(), "memcacheddriver: "), "%s: %v", name, err)
		}
		assert.ErrorIs(t, db.Ping(ctx), ctx.Err())
		assert.ErrorIs(t, db.Do(ctx, func(*memcache.Client) error { t.Error("called"); return nil }), ctx.Err())
	}
	assert.Zero(t, db.Stats()[0].Dials)
}

func TestDo(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := openShared(t)
	key := newKey()
	require.NoError(t, db.Set(ctx, key, []byte("41"), 0))

	var n uint64
	require.NoError(t, db.Do(ctx, func(c *memcache.Client) (err error) {
		n, err = c.Increment(key, 1)
		return err
	}))
	assert.EqualValues(t, 42, n)

	own := errors.New("fn's own")
	assert.True(t, db.Do(ctx, func(*memcache.Client) error { return own }) == own, "fn's error is not as it was")
	assert.True(t, db.Do(ctx, func(c *memcache.Client) error {
		_, err := c.Get(newKey())
		return err
	}) == memcache.ErrCacheMiss)

	// From several goroutines at once.
	require.NoError(t, db.Do(ctx, func(c *memcache.Client) error {
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				_, err := c.Increment(key, 1)
				assert.NoError(t, err)
			})
		}
		all.Wait()
		return nil
	}))
	got, err := db.Get(ctx, key)
	require.NoError(t, err)
	assert.Equal(t, "50", string(got))

	// A panic reaches the caller and takes no connection with it.
	assert.PanicsWithValue(t, "fn's own", func() {
		_ = db.Do(ctx, func(c *memcache.Client) error {
			_, err := c.Get(key)
			assert.NoError(t, err)
			panic("fn's own")
		})
	})
	assert.Zero(t, db.Stats()[0].InUse)

	// ctx ends what fn waits for.
	addr := startScripted(t, silence)
	silent := openDB(t, addr, memcacheddriver.WithTimeout(time.Minute))
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	assert.ErrorIs(t, silent.Do(short, func(c *memcache.Client) error {
		_, err := c.Get("key")
		return err
	}), context.DeadlineExceeded)
}

func TestManyGoroutines(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, addrs := startServers(t, 2)
	db := openDB(t, strings.Join(addrs, ","))
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			key, other := newKey(), newKey()
			for i := range 30 {
				value := []byte{byte(i), '\r', '\n'}
				assert.NoError(t, db.Set(ctx, key, value, time.Minute))
				got, err := db.Get(ctx, key)
				assert.NoError(t, err)
				assert.Equal(t, value, got, "another call's reply")
				batch, err := db.MGet(ctx, []string{other, key})
				assert.NoError(t, err)
				assert.Equal(t, [][]byte{nil, value}, batch, "another call's reply")
			}
		})
	}
	all.Wait()
}

// A server that answers for another key has mixed up its replies.
func TestGetOfAnotherKey(t *testing.T) {
	t.Parallel()
	addr := startScripted(t, func(c net.Conn) {
		answer(c, func(line string) string {
			if strings.HasPrefix(line, "get") {
				return "VALUE other 0 6 1\r\nsecret\r\nEND\r\n"
			}
			return "ERROR\r\n"
		})
	})
	db := openDB(t, addr)
	for name, get := range map[string]func() error{
		"Get":  func() error { _, err := db.Get(t.Context(), "key"); return err },
		"MGet": func() error { _, err := db.MGet(t.Context(), []string{"key", "key2"}); return err },
	} {
		err := get()
		require.ErrorIs(t, err, memcacheddriver.ErrProtocol, name)
		assert.NotContains(t, err.Error(), "secret", name)
		assert.Zero(t, db.Stats()[0].Idle, "%s: the connection is used on", name)
	}
}
