package memcacheddriver_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
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
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestADriverThatIsNotOpenRefusesEveryCall(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, nil)
	closed := drivertest.Open(t, f.Addr())
	require.NoError(t, closed.Ping(t.Context()))
	kept := closed.Client()
	_, err := kept.Get("k")
	require.Equal(t, memcache.ErrCacheMiss, err)
	require.NoError(t, closed.Close())
	before := f.Received()

	refused := func(c *memcache.Client, state string) {
		t.Helper()
		_, err := c.Get("k")
		assert.ErrorIs(t, err, memcacheddriver.ErrNotOpen, state)
		assert.ErrorIs(t, c.Set(&memcache.Item{Key: "k"}), memcacheddriver.ErrNotOpen, state)
		assert.ErrorIs(t, c.Ping(), memcacheddriver.ErrNotOpen, state)
	}
	for state, db := range map[string]*memcacheddriver.MemcachedDB{"never opened": memcacheddriver.New(), "closed": closed} {
		for _, call := range drivertest.Calls {
			assert.ErrorIs(t, call.Run(t.Context(), db, "k"), memcacheddriver.ErrNotOpen, "%s, %s", state, call.Name)
		}
		assert.ErrorIs(t, db.Do(t.Context(), func(*memcache.Client) error { t.Error("called"); return nil }), memcacheddriver.ErrNotOpen, state)
		refused(db.Client(), state)
		_, err = db.MGet(t.Context(), nil)
		assert.ErrorIs(t, err, memcacheddriver.ErrNotOpen, "%s: MGet of nothing", state)
		assert.Nil(t, db.Stats(), state)
		assert.NoError(t, db.Close(), state)
		assert.Equal(t, "memcached", db.Info().Name, state)
	}
	refused(kept, "a client of before")
	assert.Equal(t, before, f.Received())

	require.NoError(t, closed.Open(t.Context(), f.Addr()))
	require.NoError(t, closed.Ping(t.Context()), "it can be opened again")
	refused(kept, "a client of before, of a driver that was opened again")
}

func TestOpenAndClose(t *testing.T) {
	t.Parallel()
	addr := memcachedtest.Addr(t)
	db := memcacheddriver.New()
	require.Error(t, db.Open(t.Context(), ""))
	require.NoError(t, db.Open(t.Context(), addr), "a failed Open left the driver open")
	require.ErrorIs(t, db.Open(t.Context(), addr), memcacheddriver.ErrAlreadyOpen)
	require.NoError(t, db.Ping(t.Context()), "the second Open broke the first")
	require.NoError(t, db.Close())
	require.NoError(t, db.Close())
	require.NoError(t, db.Open(t.Context(), addr), "a closed driver can be opened again")
	require.NoError(t, db.Ping(t.Context()))
	require.NoError(t, db.Close())
}

// A service starts while its caches are down, and while their names are not
// known.
func TestOpenDialsNothing(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, nil)
	db := drivertest.Open(t, f.Addr())
	assert.Zero(t, drivertest.Dials(db))
	require.NoError(t, db.Ping(t.Context()))
	assert.Equal(t, 1, f.Accepted(), "Ping needs one connection, and Open none")

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	down := memcacheddriver.New()
	require.NoError(t, down.Open(ended, "no-such-host.invalid,127.0.0.1:1,/no/such/socket"))
	require.NoError(t, down.Close())
}

// No call fails otherwise than by being closed, and no connection is left.
func TestOpenCloseAndCallsAtOnce(t *testing.T) {
	t.Parallel()
	plain := memcachedtest.Start(t)
	secure, config := memcachedtest.StartTLS(t)
	for name, c := range map[string]struct {
		server *memcachedtest.Server
		opts   []driver.Option
	}{"plain": {plain, nil}, "TLS": {secure, []driver.Option{driver.WithTLSConfig(config)}}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			count := drivertest.Connections(t, c.server)
			db := memcacheddriver.New()
			key := drivertest.Key()
			var served atomic.Int64
			open := func() {
				err := db.Open(t.Context(), c.server.Addr(), append(c.opts, memcacheddriver.WithTTLQuery())...)
				if !errors.Is(err, memcacheddriver.ErrAlreadyOpen) {
					assert.NoError(t, err)
				}
			}

			stop := make(chan struct{})
			var callers sync.WaitGroup
			calls := append([]drivertest.Call{{Name: "native", Run: func(_ context.Context, db *memcacheddriver.MemcachedDB, key string) error {
				return db.Client().Set(&memcache.Item{Key: key, Value: []byte("1")})
			}}}, drivertest.Calls...)
			for _, call := range calls {
				callers.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						err := call.Run(t.Context(), db, key)
						switch {
						case err == nil:
							served.Add(1)
						case errors.Is(err, memcacheddriver.ErrNotOpen):
							time.Sleep(50 * time.Microsecond)
						case !errors.Is(err, kv.ErrConflict):
							t.Errorf("%s: %v", call.Name, err)
							return
						}
						db.Stats()
					}
				})
			}
			var openers sync.WaitGroup
			for range 2 {
				openers.Go(func() {
					for i := range 40 {
						open()
						time.Sleep(time.Duration(i%4) * time.Millisecond)
						assert.NoError(t, db.Close())
					}
				})
			}
			openers.Wait()
			// However slow the machine, calls get through while nobody closes.
			open()
			before := served.Load()
			memcachedtest.Eventually(t, func() bool { return served.Load() > before }, "a call is served")
			close(stop)
			callers.Wait()
			require.NoError(t, db.Close())
			memcachedtest.Eventually(t, func() bool { return count() == 0 }, "the server has lost all connections")
		})
	}
}

// Grove compares it by ==.
func TestAMissIsErrNotFoundItself(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := drivertest.OpenShared(t, memcacheddriver.WithTTLQuery())
	key := drivertest.Key()

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

func TestSetNXStoresAnAbsentKeyOnly(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := drivertest.OpenShared(t)
	key := drivertest.Key()
	for i, want := range []bool{true, false} {
		ok, err := db.SetNX(ctx, key, []byte{'a' + byte(i)}, 0)
		require.NoError(t, err)
		assert.Equal(t, want, ok)
	}
	got, err := db.Get(ctx, key)
	require.NoError(t, err)
	assert.Equal(t, "a", string(got))
}

func TestSetNXOfManyAtOnceSucceedsOnce(t *testing.T) {
	t.Parallel()
	db, key := drivertest.OpenShared(t), drivertest.Key()
	var set atomic.Int32
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			ok, err := db.SetNX(t.Context(), key, []byte("x"), time.Minute)
			assert.NoError(t, err)
			if ok {
				set.Add(1)
			}
		})
	}
	all.Wait()
	assert.EqualValues(t, 1, set.Load())
}

func TestSetXXStoresAPresentKeyOnly(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := drivertest.OpenShared(t)
	key := drivertest.Key()
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

// A server that answers for another key has mixed up its replies.
func TestTheValueOfAnotherKeyIsAnError(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.Say("VALUE other 0 6 1\r\nsecret\r\nEND\r\n")))
	db := drivertest.Open(t, f.Addr())
	for name, get := range map[string]func() error{
		"Get":  func() error { _, err := db.Get(t.Context(), "key"); return err },
		"MGet": func() error { _, err := db.MGet(t.Context(), []string{"key", "key2"}); return err },
	} {
		err := get()
		require.ErrorIs(t, err, memcacheddriver.ErrProtocol, name)
		assert.NotContains(t, err.Error(), "secret", name)
		assert.Zero(t, drivertest.Stat(t, db).Idle, "%s: the connection is used on", name)
	}
}

func TestDoReturnsWhatFnReturns(t *testing.T) {
	t.Parallel()
	db, key := drivertest.OpenShared(t), drivertest.Key()
	require.NoError(t, db.Set(t.Context(), key, []byte("41"), 0))
	var n uint64
	require.NoError(t, db.Do(t.Context(), func(c *memcache.Client) (err error) {
		n, err = c.Increment(key, 1)
		return err
	}))
	assert.EqualValues(t, 42, n)

	own := errors.New("fn's own")
	assert.True(t, db.Do(t.Context(), func(*memcache.Client) error { return own }) == own, "fn's error is not as it was")
	assert.True(t, db.Do(t.Context(), func(c *memcache.Client) error {
		_, err := c.Get(drivertest.Key())
		return err
	}) == memcache.ErrCacheMiss)
}

func TestManyGoroutinesGetEachTheirOwnReplies(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, addrs := drivertest.StartServers(t, 2)
	db := drivertest.Open(t, strings.Join(addrs, ","))
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			key, other := drivertest.Key(), drivertest.Key()
			for i := range 30 {
				value := []byte{byte(i), '\r', '\n'}
				assert.NoError(t, db.Set(ctx, key, value, time.Minute))
				got, err := db.Get(ctx, key)
				assert.NoError(t, err)
				assert.Equal(t, value, got)
				batch, err := db.MGet(ctx, []string{other, key})
				assert.NoError(t, err)
				assert.Equal(t, [][]byte{nil, value}, batch)
			}
		})
	}
	all.Wait()
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
	ctx, db := t.Context(), drivertest.OpenShared(t)
	for name, value := range values() {
		for by, set := range setters {
			key := drivertest.Key()
			require.NoError(t, set(ctx, db, key, value, 0), "%s by %s", name, by)
			want := append([]byte{}, value...) // never nil: that would be a miss to Grove

			got, err := db.Get(ctx, key)
			require.NoError(t, err)
			require.True(t, got != nil && bytes.Equal(want, got), "%s by %s: Get returned %d bytes (nil: %t)", name, by, len(got), got == nil)

			all, err := db.MGet(ctx, []string{key, drivertest.Key()})
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
	ctx, db := t.Context(), drivertest.OpenShared(t)
	a, b := drivertest.Key(), drivertest.Key()
	value := []byte("before")
	require.NoError(t, db.Set(ctx, a, value, 0))
	require.NoError(t, db.MSet(ctx, map[string][]byte{b: value, drivertest.Key(): value}, 0))
	copy(value, "change")
	for _, key := range []string{a, b} {
		got, err := db.Get(ctx, key)
		require.NoError(t, err)
		assert.Equal(t, "before", string(got))
		copy(got, "change") // a result is the caller's, too
	}
	got, err := db.MGet(ctx, []string{a, b, a})
	require.NoError(t, err)
	copy(got[0], "change")
	assert.Equal(t, "before", string(got[2]), "two results share their bytes")
}

func TestAValueTooLargeIsRefused(t *testing.T) {
	t.Parallel()
	ctx, addr := t.Context(), memcachedtest.Addr(t)
	db := drivertest.Open(t, addr)
	large := bytes.Repeat([]byte("secret-value-"), 100_000) // over 1 MB
	ops := map[string]string{"SetNX": "setnx", "SetXX": "setxx", "MSet": "mset", "CompareAndSwap": "cas"}
	for by, set := range setters {
		for _, ttl := range []time.Duration{0, 500 * time.Millisecond} {
			key := drivertest.Key()
			err := set(ctx, db, key, large, ttl)
			require.ErrorIs(t, err, memcacheddriver.ErrValueTooLarge, by)
			op := drivertest.RequireOpError(t, err)
			assert.Equal(t, cmp.Or(ops[by], "set"), op.Op, by)
			assert.Equal(t, addr, op.Server)
			assert.Equal(t, []string{key}, op.Keys)
			assert.NotContains(t, err.Error(), "secret-value")
			assert.Less(t, len(err.Error()), 300)

			// The refusal leaves nothing in the way of the next call.
			require.NoError(t, db.Set(ctx, key, []byte("small"), 0), by)
			requireValue(t, db, key, "small")
		}
	}
}
