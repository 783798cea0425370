package pipeline_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// found is an item on one of servers, with its TTL in seconds; nil if it is on
// none.
func found(t *testing.T, servers []*memcachedtest.Server, key string) (item *memcache.Item, ttl int64) {
	t.Helper()
	for _, s := range servers {
		c := memcache.New(s.Addr())
		item, err := c.Get(key)
		c.Close()
		if err == nil {
			ttl, _ = drivertest.ServerTTL(t, s.Addr(), key)
			return item, ttl
		}
	}
	return nil, 0
}

func TestTwemproxyTakesWhatNeedsNoMeta(t *testing.T) {
	t.Parallel()
	servers, _ := drivertest.StartServers(t, 2)
	db := drivertest.Open(t, drivertest.StartTwemproxy(t, servers), memcacheddriver.WithTTLQuery())
	ctx := t.Context()

	t.Run("Ping", func(t *testing.T) { require.NoError(t, db.Ping(ctx)) })

	// Which is what time.Until is for a time that has passed.
	t.Run("negative TTLs", func(t *testing.T) {
		dials := drivertest.Dials(db)
		const ttl = -time.Minute
		keep := func(v []byte) ([]byte, error) { return v, nil }
		for name, call := range map[string]func() error{
			"Set":            func() error { return db.Set(ctx, "gone", []byte("2"), ttl) },
			"SetXX":          func() error { _, err := db.SetXX(ctx, "gone", []byte("2"), ttl); return err },
			"MSet":           func() error { return db.MSet(ctx, map[string][]byte{"gone": nil, "gone-2": nil}, ttl) },
			"Expire":         func() error { return db.Expire(ctx, "gone", ttl) },
			"CompareAndSwap": func() error { return db.CompareAndSwap(ctx, "gone", keep, memcacheddriver.CASTTL(ttl)) },
		} {
			require.NoError(t, db.Set(ctx, "gone", []byte("1"), 0))
			assert.NoError(t, call(), name)
			_, err := db.Get(ctx, "gone")
			assert.Equal(t, kv.ErrNotFound, err, "%s left the value", name)
		}
		assert.Equal(t, dials, drivertest.Dials(db), "the proxy closed the connection")
	})

	t.Run("single keys", func(t *testing.T) {
		_, err := db.Get(ctx, "absent")
		assert.True(t, err == kv.ErrNotFound, "%v", err)
		require.NoError(t, db.Set(ctx, "k", []byte("1\r\nEND\r\n"), time.Hour))
		value, err := db.Get(ctx, "k")
		require.NoError(t, err)
		assert.Equal(t, "1\r\nEND\r\n", string(value))
		require.NoError(t, db.Set(ctx, "empty", nil, 0))
		value, err = db.Get(ctx, "empty")
		require.NoError(t, err)
		assert.Equal(t, []byte{}, value)

		ok, err := db.SetNX(ctx, "k", []byte("2"), 0)
		require.NoError(t, err)
		assert.False(t, ok)
		ok, err = db.SetNX(ctx, "nx", []byte("2"), time.Hour)
		require.NoError(t, err)
		assert.True(t, ok)
		ok, err = db.SetXX(ctx, "xx", []byte("3"), 0)
		require.NoError(t, err)
		assert.False(t, ok)
		ok, err = db.SetXX(ctx, "nx", []byte("3"), 0)
		require.NoError(t, err)
		assert.True(t, ok)

		require.NoError(t, db.Expire(ctx, "k", time.Minute))
		_, ttl := found(t, servers, "k")
		assert.InDelta(t, 60, ttl, 30)
		assert.True(t, db.Expire(ctx, "absent", time.Minute) == kv.ErrNotFound)

		n, err := db.Delete(ctx, "k")
		require.NoError(t, err)
		assert.EqualValues(t, 1, n)
		n, err = db.Delete(ctx, "k")
		require.NoError(t, err)
		assert.Zero(t, n)

		assert.Error(t, db.Set(ctx, "nx", make([]byte, 2<<20), 0))
	})

	t.Run("batches", func(t *testing.T) {
		keys := drivertest.Keys(1000)
		require.NoError(t, db.MSet(ctx, drivertest.Pairs(keys), time.Hour))
		asked := slices.Concat(keys, []string{"absent"}, keys[:10])
		values, err := db.MGet(ctx, asked)
		require.NoError(t, err)
		assert.Equal(t, len(keys)+10, drivertest.AssertValues(t, asked, values))
		count, err := db.Exists(ctx, asked...)
		require.NoError(t, err)
		assert.EqualValues(t, len(keys)+10, count)
		for i, s := range servers {
			assert.NotEqual(t, "0", s.Stats(t)["curr_items"], "nothing on server %d", i)
		}
		deleted, err := db.Delete(ctx, asked...)
		require.NoError(t, err)
		assert.EqualValues(t, len(keys), deleted)
		count, err = db.Exists(ctx, keys...)
		require.NoError(t, err)
		assert.Zero(t, count)

		large := make(map[string][]byte)
		for _, key := range keys[:20] {
			large[key] = []byte(strings.Repeat(key, 20<<10))
		}
		require.NoError(t, db.MSet(ctx, large, 0))
		values, err = db.MGet(ctx, keys[:20])
		require.NoError(t, err)
		for i, key := range keys[:20] {
			assert.True(t, string(large[key]) == string(values[i]), key)
		}
	})

	t.Run("CompareAndSwap", func(t *testing.T) {
		swap := func(key string, to string, opts ...memcacheddriver.CASOption) error {
			return db.CompareAndSwap(ctx, key, func(current []byte) ([]byte, error) {
				return append(current, to...), nil
			}, opts...)
		}
		err := swap("gone", "x")
		assert.True(t, err == kv.ErrNotFound, "%v", err)
		require.NoError(t, db.Do(ctx, func(c *memcache.Client) error {
			return c.Set(&memcache.Item{Key: "swapped", Value: []byte("1"), Flags: 77})
		}))
		require.NoError(t, swap("swapped", "2"))
		item, ttl := found(t, servers, "swapped")
		require.NotNil(t, item)
		assert.Equal(t, "12", string(item.Value))
		assert.EqualValues(t, 77, item.Flags)
		assert.EqualValues(t, -1, ttl)
		require.NoError(t, swap("swapped", "3", memcacheddriver.CASTTL(time.Hour)))
		item, ttl = found(t, servers, "swapped")
		require.NotNil(t, item)
		assert.Equal(t, "123", string(item.Value))
		assert.InDelta(t, 3600, ttl, 30)
		require.NoError(t, swap("swapped", "4"))
		_, ttl = found(t, servers, "swapped")
		assert.EqualValues(t, -1, ttl, "without the meta protocol a swap makes a value immortal, as documented")

		err = db.CompareAndSwap(ctx, "swapped", func([]byte) ([]byte, error) {
			return []byte("lost"), db.Set(ctx, "swapped", []byte("other"), 0)
		})
		assert.ErrorIs(t, err, kv.ErrConflict)
		err = db.CompareAndSwap(ctx, "swapped", func([]byte) ([]byte, error) {
			_, err := db.Delete(ctx, "swapped")
			return []byte("lost"), err
		})
		assert.True(t, err == kv.ErrNotFound, "%v", err)
	})

	t.Run("TTL", func(t *testing.T) {
		require.NoError(t, db.Set(ctx, "k", []byte("v"), time.Hour))
		for range 3 {
			_, err := db.TTL(ctx, "k")
			assert.ErrorIs(t, err, kv.ErrNotSupported)
		}
	})

	t.Run("cancellation", func(t *testing.T) {
		servers[0].Stop()
		defer servers[0].Cont()
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		_, err := db.MGet(ctx, drivertest.Keys(50))
		assert.ErrorIs(t, err, context.DeadlineExceeded)
	})

	assert.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
}

// The keys of a dead server behind a proxy fail, the others do not where the
// proxy answers key by key.
func TestTwemproxyWithAServerDownServesTheOthers(t *testing.T) {
	t.Parallel()
	for dead := range 2 {
		t.Run(fmt.Sprint("server ", dead), func(t *testing.T) {
			t.Parallel()
			servers, _ := drivertest.StartServers(t, 2)
			addr := drivertest.StartTwemproxy(t, servers)
			before := drivertest.Open(t, addr)
			ctx := t.Context()
			keys := drivertest.Keys(50)
			require.NoError(t, before.MSet(ctx, drivertest.Pairs(keys), 0))
			servers[dead].Kill()

			for name, db := range map[string]*memcacheddriver.MemcachedDB{"before": before, "after": drivertest.Open(t, addr)} {
				var failed []string
				for _, op := range drivertest.OpErrors(db.MSet(ctx, drivertest.Pairs(keys), 0)) {
					failed = append(failed, op.Keys...)
				}
				require.NotEmpty(t, failed, name)
				alive := slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return slices.Contains(failed, key) })
				require.NotEmpty(t, alive, name)
				values, err := db.MGet(ctx, alive)
				require.NoError(t, err, name)
				assert.Equal(t, len(alive), drivertest.AssertValues(t, alive, values), name)
				values, err = db.MGet(ctx, keys)
				assert.Error(t, err, "%s: misses instead of an error", name)
				drivertest.AssertValues(t, keys, values)
				_, err = db.Exists(ctx, keys...)
				assert.Error(t, err, "%s: misses instead of an error", name)
			}

			servers[dead].Restart()
			memcachedtest.Eventually(t, func() bool { return before.MSet(ctx, drivertest.Pairs(keys), 0) == nil }, "the server is back")
			values, err := before.MGet(ctx, keys)
			require.NoError(t, err)
			assert.Equal(t, len(keys), drivertest.AssertValues(t, keys, values))
		})
	}
}

// It closes a connection on which it is asked for meta. The first calls of a
// driver, all at once, must not take it for down, as each of them meets that.
func TestTwemproxyClosingOnTheQuestionForMetaIsNoFailure(t *testing.T) {
	t.Parallel()
	servers, _ := drivertest.StartServers(t, 1)
	addr := drivertest.StartTwemproxy(t, servers)
	for _, limit := range []int{1, 3} {
		t.Run(fmt.Sprint("failure limit ", limit), func(t *testing.T) {
			t.Parallel()
			const calls = 32
			db := drivertest.Open(t, addr, memcacheddriver.WithServerFailureLimit(limit, drivertest.Never),
				memcacheddriver.WithMaxIdleConns(calls))
			var all sync.WaitGroup
			start := make(chan struct{})
			for i := range calls {
				all.Go(func() {
					<-start
					if i%2 == 0 {
						_, err := db.Exists(t.Context(), "a", "b")
						assert.NoError(t, err)
						return
					}
					err := db.CompareAndSwap(t.Context(), "absent", func([]byte) ([]byte, error) { return nil, nil })
					assert.True(t, err == kv.ErrNotFound, "%v", err)
				})
			}
			close(start)
			all.Wait()
			memcachedtest.Eventually(t, func() bool { return drivertest.Stat(t, db).Dialing == 0 }, "all dials have ended")
			stats := drivertest.Stat(t, db)
			assert.Equal(t, memcacheddriver.ServerUp, stats.State)
			assert.Zero(t, stats.DialErrors)
			assert.Zero(t, stats.Timeouts)
			assert.LessOrEqual(t, stats.Dials, uint64(3*stats.Idle), "two are closed on the question, one is used")

			_, err := db.Exists(t.Context(), "a", "b")
			require.NoError(t, err)
			assert.Equal(t, stats.Dials, drivertest.Dials(db), "a connection that works is not asked again")
		})
	}
	t.Run("one after the other", func(t *testing.T) {
		t.Parallel()
		db := drivertest.Open(t, addr)
		drivertest.Fill(t, db, 1)
		assert.EqualValues(t, 3, drivertest.Dials(db))
		drivertest.Fill(t, db, 4)
		assert.EqualValues(t, 6, drivertest.Dials(db), "those that follow are not asked")
	})
}
