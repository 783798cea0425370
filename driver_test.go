package memcacheddriver_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
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
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
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

func values() map[string][]byte {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	large := make([]byte, 900<<10)
	for i := range large {
		large[i] = byte(rand.Uint32())
	}
	return map[string][]byte{
		"nil": nil, "empty": {}, "one byte": {'x'}, "zero": {0},
		"CR LF": []byte("\r\n"), "END": []byte("END\r\n"), "ends in CR": []byte("a\r"),
		"VALUE": []byte("VALUE k 0 3\r\nabc\r\nEND\r\n"), "every byte": all,
		"at the copy limit": large[:8<<10], "just over": large[:8<<10+1], "large": large,
	}
}

func TestValuesRoundTrip(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := openShared(t)
	set := map[string]func(key string, value []byte) error{
		"Set": func(key string, value []byte) error { return db.Set(ctx, key, value, 0) },
		"SetNX": func(key string, value []byte) error {
			_, err := db.SetNX(ctx, key, value, 0)
			return err
		},
		"SetXX": func(key string, value []byte) error {
			if err := db.Set(ctx, key, []byte("old"), 0); err != nil {
				return err
			}
			_, err := db.SetXX(ctx, key, value, 0)
			return err
		},
		"MSet": func(key string, value []byte) error {
			return db.MSet(ctx, map[string][]byte{key: value, newKey(): value}, 0)
		},
		"CompareAndSwap": func(key string, value []byte) error {
			if err := db.Set(ctx, key, []byte("old"), 0); err != nil {
				return err
			}
			return db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { return value, nil })
		},
	}
	for name, value := range values() {
		for by, set := range set {
			key := newKey()
			require.NoError(t, set(key, value), "%s by %s", name, by)
			want := append([]byte{}, value...) // never nil: that would be a miss to Grove

			got, err := db.Get(ctx, key)
			require.NoError(t, err)
			require.True(t, got != nil && bytes.Equal(want, got), "%s by %s: Get returned %d bytes (nil: %t)", name, by, len(got), got == nil)

			all, err := db.MGet(ctx, []string{key, newKey()})
			require.NoError(t, err)
			require.True(t, all[0] != nil && bytes.Equal(want, all[0]), "%s by %s: MGet returned %d bytes (nil: %t)", name, by, len(all[0]), all[0] == nil)
			require.Nil(t, all[1])

			n, err := db.Exists(ctx, key)
			require.NoError(t, err)
			require.EqualValues(t, 1, n)

			current := []byte("not called")
			require.NoError(t, db.CompareAndSwap(ctx, key, func(c []byte) ([]byte, error) { current = c; return nil, nil }))
			require.True(t, current != nil && bytes.Equal(want, current), "%s by %s: CompareAndSwap read %d bytes (nil: %t)", name, by, len(current), current == nil)
		}
	}
}

func TestAValueIsTheCallersAgain(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := openShared(t)
	a, b := newKey(), newKey()
	value := []byte("before")
	require.NoError(t, db.Set(ctx, a, value, 0))
	require.NoError(t, db.MSet(ctx, map[string][]byte{b: value, newKey(): value}, 0))
	copy(value, "behind")
	for _, key := range []string{a, b} {
		got, err := db.Get(ctx, key)
		require.NoError(t, err)
		assert.Equal(t, "before", string(got))
		copy(got, "behind") // a result is the caller's, too
	}
	got, err := db.MGet(ctx, []string{a, b, a})
	require.NoError(t, err)
	copy(got[0], "behind")
	assert.Equal(t, "before", string(got[2]), "two results share their bytes")
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

func TestValueTooLarge(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	addr := memcachedtest.Addr(t)
	db := openDB(t, addr)
	large := bytes.Repeat([]byte("secret-value-"), 100_000) // over 1 MB
	for name, set := range map[string]func(key string) error{
		"set": func(key string) error { return db.Set(ctx, key, large, 0) },
		"setnx": func(key string) error {
			_, err := db.Delete(ctx, key)
			require.NoError(t, err)
			_, err = db.SetNX(ctx, key, large, 0)
			return err
		},
		"setxx": func(key string) error { _, err := db.SetXX(ctx, key, large, 0); return err },
		"mset": func(key string) error {
			return db.MSet(ctx, map[string][]byte{key: large, newKey(): []byte("small")}, 0)
		},
		"cas": func(key string) error {
			return db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { return large, nil })
		},
	} {
		key := newKey()
		require.NoError(t, db.Set(ctx, key, []byte("old"), 0))
		err := set(key)
		require.ErrorIs(t, err, memcacheddriver.ErrValueTooLarge, name)
		op := requireOpError(t, err)
		assert.Equal(t, name, op.Op)
		assert.Equal(t, addr, op.Server)
		assert.Equal(t, []string{key}, op.Keys)
		assert.NotContains(t, err.Error(), "secret-value")
		assert.Less(t, len(err.Error()), 300)

		// The refusal leaves nothing in the way of the next call.
		require.NoError(t, db.Set(ctx, key, []byte("small"), 0), name)
		got, err := db.Get(ctx, key)
		require.NoError(t, err)
		assert.Equal(t, "small", string(got))
	}
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

func TestPing(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	servers, addrs := startServers(t, 3)
	db := openDB(t, strings.Join(addrs, ","))
	require.NoError(t, db.Ping(ctx))
	servers[0].Kill()
	servers[2].Kill()
	err := db.Ping(ctx)
	require.Error(t, err)
	var down []string
	for _, e := range opErrors(err) {
		assert.Equal(t, "ping", e.Op)
		down = append(down, e.Server)
	}
	assert.ElementsMatch(t, []string{addrs[0], addrs[2]}, down)
	assert.Contains(t, err.Error(), addrs[0])
	assert.Contains(t, err.Error(), addrs[2])
	assert.NotContains(t, err.Error(), addrs[1])
}

// Each server answers only when all have been asked.
func TestPingAsksAllServersAtOnce(t *testing.T) {
	t.Parallel()
	var asked sync.WaitGroup
	asked.Add(3)
	var addrs []string
	for range 3 {
		addrs = append(addrs, startScripted(t, func(c net.Conn) {
			answer(c, func(string) string {
				asked.Done()
				asked.Wait()
				return "VERSION 1.6.0\r\n"
			})
		}))
	}
	db := openDB(t, strings.Join(addrs, ","), memcacheddriver.WithTimeout(20*time.Second))
	require.NoError(t, db.Ping(t.Context()))
}

func TestPingOfWhatIsNoMemcached(t *testing.T) {
	t.Parallel()
	addr := startScripted(t, func(c net.Conn) {
		answer(c, func(string) string { return "HTTP/1.1 400 Bad Request\r\n" })
	})
	db := openDB(t, addr)
	require.ErrorIs(t, db.Ping(t.Context()), memcacheddriver.ErrProtocol)
}

func TestNotOpen(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	never := memcacheddriver.New()
	closed := memcacheddriver.New()
	require.NoError(t, closed.Open(ctx, memcachedtest.Addr(t)))
	require.NoError(t, closed.Ping(ctx))
	client := closed.Client()
	require.NoError(t, closed.Close())

	for state, db := range map[string]*memcacheddriver.MemcachedDB{"never opened": never, "closed": closed} {
		for name, call := range calls {
			assert.ErrorIs(t, call(ctx, db, "key"), memcacheddriver.ErrNotOpen, "%s of a driver %s", name, state)
		}
		assert.ErrorIs(t, db.Ping(ctx), memcacheddriver.ErrNotOpen, state)
		assert.ErrorIs(t, db.Do(ctx, func(*memcache.Client) error { t.Error("called"); return nil }), memcacheddriver.ErrNotOpen, state)
		_, err := db.Client().Get("key")
		assert.ErrorIs(t, err, memcacheddriver.ErrNotOpen, "%s: a client of now", state)
		assert.ErrorIs(t, db.Client().Ping(), memcacheddriver.ErrNotOpen, state)
		_, err = db.MGet(ctx, nil)
		assert.ErrorIs(t, err, memcacheddriver.ErrNotOpen, "%s: MGet of nothing", state)
		assert.Nil(t, db.Stats(), state)
		assert.NoError(t, db.Close(), state)
		assert.Equal(t, "memcached", db.Info().Name, state)
	}
	_, err := client.Get("key")
	assert.ErrorIs(t, err, memcacheddriver.ErrNotOpen, "a client of before Close")
}

func TestOpenAndClose(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	addr := memcachedtest.Addr(t)
	db := memcacheddriver.New()
	require.Error(t, db.Open(ctx, ""))
	require.NoError(t, db.Open(ctx, addr), "a failed Open left the driver open")
	require.ErrorIs(t, db.Open(ctx, addr), memcacheddriver.ErrAlreadyOpen)
	require.NoError(t, db.Ping(ctx), "the second Open broke the first")
	require.NoError(t, db.Close())
	require.NoError(t, db.Close())
	require.NoError(t, db.Open(ctx, addr), "a closed driver can be opened again")
	require.NoError(t, db.Ping(ctx))
	require.NoError(t, db.Close())
}

// A service starts while its caches are down, and while their names are not
// known.
func TestOpenDialsNothing(t *testing.T) {
	t.Parallel()
	var accepted atomic.Int32
	addr := startScripted(t, func(c net.Conn) {
		accepted.Add(1)
		answer(c, func(string) string { return "VERSION 1.6.0\r\n" })
	})
	db := openDB(t, addr)
	assert.Zero(t, db.Stats()[0].Dials)
	require.NoError(t, db.Ping(t.Context()))
	assert.EqualValues(t, 1, accepted.Load(), "Ping needs one connection, and Open none")

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	down := memcacheddriver.New()
	require.NoError(t, down.Open(ended, "no-such-host.invalid,127.0.0.1:1,/no/such/socket"))
	require.NoError(t, down.Close())
}

func TestOpenCloseAndCallsAtOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	addr := memcachedtest.Addr(t)
	db := memcacheddriver.New()
	key := newKey()
	allowed := func(err error) bool {
		return err == nil || err == kv.ErrNotFound || errors.Is(err, kv.ErrNotSupported) || errors.Is(err, kv.ErrConflict) ||
			errors.Is(err, memcacheddriver.ErrNotOpen)
	}
	var opened, served atomic.Int32
	stop := make(chan struct{})
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			for range 100 {
				switch err := db.Open(ctx, addr); {
				case err == nil:
					opened.Add(1)
				case !errors.Is(err, memcacheddriver.ErrAlreadyOpen):
					t.Error(err)
				}
				time.Sleep(200 * time.Microsecond)
				assert.NoError(t, db.Close())
			}
		})
	}
	var callers sync.WaitGroup
	for name, call := range calls {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				err := call(ctx, db, key)
				if !allowed(err) {
					t.Errorf("%s: %v", name, err)
					return
				}
				if err == nil {
					served.Add(1)
				}
				db.Stats()
				if err := db.Client().Set(&memcache.Item{Key: key, Value: []byte("1")}); !allowed(err) {
					t.Errorf("the client: %v", err)
					return
				}
			}
		})
	}
	all.Wait()
	close(stop)
	callers.Wait()
	require.NoError(t, db.Close())
	assert.Positive(t, opened.Load())
	assert.Positive(t, served.Load(), "no call got through: nothing was tested")
}

// Close cuts what waits for a server.
func TestCloseCutsCalls(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 64)
	addr := startScripted(t, func(c net.Conn) {
		answer(c, func(string) string { asked <- struct{}{}; return "\r" })
	})
	db := openDB(t, addr, memcacheddriver.WithTimeout(time.Minute))
	got := make(chan error, 3)
	go func() { _, err := db.Get(t.Context(), "key"); got <- err }()
	go func() { _, err := db.MGet(t.Context(), []string{"a", "b"}); got <- err }()
	go func() { _, err := db.Client().Get("key"); got <- err }()
	for range 3 {
		<-asked
	}
	require.NoError(t, db.Close())
	for range 3 {
		assert.ErrorIs(t, <-got, memcacheddriver.ErrNotOpen)
	}
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

// Plain gomemcache clients with the same list find each other's data, also with
// a server listed twice.
func TestKeysMapAsInGomemcache(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, addrs := startServers(t, 3)
	for name, list := range map[string][]string{
		"three servers": addrs,
		"one twice":     {addrs[0], addrs[1], addrs[0], addrs[2]},
		"another order": {addrs[2], addrs[0], addrs[1]},
	} {
		plain := memcache.New(list...)
		plain.Timeout = 10 * time.Second
		db := openDB(t, strings.Join(list, ", "))

		keys := newKeys(100)
		pairs := make(map[string][]byte)
		for i, key := range keys {
			switch i % 3 {
			case 0:
				require.NoError(t, db.Set(ctx, key, []byte(key), 0))
			case 1:
				require.NoError(t, plain.Set(&memcache.Item{Key: key, Value: []byte(key)}))
			case 2:
				pairs[key] = []byte(key)
			}
		}
		require.NoError(t, db.MSet(ctx, pairs, 0))

		batch, err := db.MGet(ctx, keys)
		require.NoError(t, err)
		for i, key := range keys {
			assert.Equal(t, key, string(batch[i]), "%s: MGet", name)
			got, err := db.Get(ctx, key)
			require.NoError(t, err, "%s: %s is not where gomemcache puts it", name, key)
			assert.Equal(t, key, string(got))
			item, err := plain.Get(key)
			require.NoError(t, err, "%s: gomemcache does not find %s", name, key)
			assert.Equal(t, key, string(item.Value))
			item, err = db.Client().Get(key)
			require.NoError(t, err, "%s: the driver's client does not find %s", name, key)
			assert.Equal(t, key, string(item.Value))
		}
		n, err := db.Exists(ctx, keys...)
		require.NoError(t, err)
		assert.EqualValues(t, 100, n)

		// What one deletes is gone for the other.
		n, err = db.Delete(ctx, keys...)
		require.NoError(t, err)
		assert.EqualValues(t, 100, n)
		items, err := plain.GetMulti(keys)
		require.NoError(t, err)
		assert.Empty(t, items)
		require.NoError(t, plain.Close())
	}
}

// One dead server of three fails its own keys alone, and by name.
func TestOneServerOfThreeIsDown(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	servers, addrs := startServers(t, 3)
	db := openDB(t, strings.Join(addrs, ","), memcacheddriver.WithTTLQuery())
	keys := keysOf(t, addrs, 1)
	servers[1].Kill()
	for name, call := range calls {
		if strings.Contains(name, "of two") || name == "mget" || name == "mset" {
			continue // those have a second key, see the batch tests
		}
		for _, i := range []int{0, 2} {
			require.NoError(t, db.Set(ctx, keys[i][0], []byte("1"), 0))
			assert.NoError(t, call(ctx, db, keys[i][0]), name)
		}
		err := call(ctx, db, keys[1][0])
		require.Error(t, err, name)
		op := requireOpError(t, err)
		assert.Equal(t, addrs[1], op.Server, name)
		assert.Equal(t, keys[1], op.Keys, name)
		assert.NotErrorIs(t, err, kv.ErrNotFound, "%s: a server that is down is no miss", name)
		assert.NotErrorIs(t, err, context.DeadlineExceeded, name)
	}
	_, err := db.Get(ctx, keys[1][0])
	assert.ErrorIs(t, err, memcacheddriver.ErrServerDown)

	servers[1].Restart()
	eventually(t, func() bool { return db.Set(ctx, keys[1][0], nil, 0) == nil }, "the server is back, but not for the driver")
}

// A cache that was restarted costs no call.
func TestServerRestart(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server := memcachedtest.Start(t)
	db := openDB(t, server.Addr())
	for range 3 {
		require.NoError(t, db.Set(ctx, "a", []byte("1"), 0))
		require.NoError(t, db.MSet(ctx, map[string][]byte{"b": nil, "c": nil}, 0))
		server.Restart()
		_, err := db.Get(ctx, "a")
		require.True(t, err == kv.ErrNotFound, "%v", err)
		n, err := db.Exists(ctx, "a", "b", "c")
		require.NoError(t, err)
		assert.Zero(t, n)
	}
}

func TestUnixSocket(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server := memcachedtest.StartUnix(t)
	for _, dsn := range []string{server.Addr(), "unix://" + server.Addr(), "memcached://" + server.Addr() + "?timeout=5s"} {
		db := openDB(t, dsn)
		key := newKey()
		require.NoError(t, db.Set(ctx, key, []byte(dsn), 0), dsn)
		got, err := db.MGet(ctx, []string{key, key})
		require.NoError(t, err, dsn)
		assert.Equal(t, [][]byte{[]byte(dsn), []byte(dsn)}, got)
		assert.Equal(t, server.Addr(), db.Stats()[0].Addr)
	}
}

// A host name is looked up at each dial, not at Open.
func TestHostName(t *testing.T) {
	t.Parallel()
	_, port, err := net.SplitHostPort(memcachedtest.Start(t).Addr())
	require.NoError(t, err)
	db := openDB(t, "localhost:"+port)
	require.NoError(t, db.Ping(t.Context()))
	assert.Equal(t, "localhost:"+port, db.Stats()[0].Addr)
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

// The driver's timeouts are not the caller's deadline.
func TestATimeoutIsNotTheCallersDeadline(t *testing.T) {
	t.Parallel()
	addr := startScripted(t, silence)
	db := openDB(t, addr, memcacheddriver.WithTimeout(20*time.Millisecond), memcacheddriver.WithServerFailureLimit(0, 0))
	for name, call := range calls {
		if name == "ttl" {
			continue // not supported without WithTTLQuery
		}
		err := call(t.Context(), db, "key")
		require.Error(t, err, name)
		assert.NotErrorIs(t, err, context.DeadlineExceeded, name)
		var timeout net.Error
		assert.True(t, errors.As(err, &timeout) && timeout.Timeout(), "%s: %v", name, err)
		assert.Equal(t, addr, requireOpError(t, err).Server)
	}
}
