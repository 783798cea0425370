package memcacheddriver_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/link"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// bothWays runs a test with a driver whose calls go alone, and with one whose calls
// share links, and checks that they do.
func bothWays(t *testing.T, addr string, test func(t *testing.T, db *memcacheddriver.MemcachedDB)) {
	t.Helper()
	for name, share := range map[string]bool{"alone": false, "shared": true} {
		t.Run(name, func(t *testing.T) {
			db := drivertest.OpenAsked(t, addr, memcacheddriver.WithTTLQuery())
			memcacheddriver.ShareAll(db, share)
			test(t, db)
			assert.Equal(t, share, drivertest.Stat(t, db).SharedCalls > 0)
		})
	}
}

func TestSharedCallsAnswerAsThoseAlone(t *testing.T) {
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		bothWays(t, addr, func(t *testing.T, db *memcacheddriver.MemcachedDB) {
			ctx := t.Context()
			for _, ttl := range []time.Duration{0, time.Hour, 40 * 24 * time.Hour, 900 * time.Millisecond} {
				key := drivertest.Key()
				stores := func(want bool) func(bool, error) {
					return func(got bool, err error) {
						t.Helper()
						require.NoError(t, err, ttl)
						assert.Equal(t, want, got, ttl)
					}
				}
				counts := func(want int64) func(int64, error) {
					return func(got int64, err error) {
						t.Helper()
						require.NoError(t, err, ttl)
						assert.Equal(t, want, got, ttl)
					}
				}
				holds := func(want string) {
					t.Helper()
					got, err := db.Get(ctx, key)
					require.NoError(t, err, ttl)
					assert.Equal(t, want, string(got), ttl)
					assert.NotNil(t, got)
				}
				_, err := db.Get(ctx, key)
				assert.True(t, err == kv.ErrNotFound)
				counts(0)(db.Exists(ctx, key))
				counts(0)(db.Delete(ctx, key))
				assert.True(t, db.Expire(ctx, key, ttl) == kv.ErrNotFound)
				stores(false)(db.SetXX(ctx, key, []byte("no"), ttl))
				stores(true)(db.SetNX(ctx, key, []byte("nx"), ttl))
				stores(false)(db.SetNX(ctx, key, []byte("no"), ttl))
				holds("nx")
				stores(true)(db.SetXX(ctx, key, []byte("xx"), ttl))
				holds("xx")
				require.NoError(t, db.Set(ctx, key, nil, ttl))
				holds("")
				large := strings.Repeat("l", link.MaxValue+1)
				require.NoError(t, db.Set(ctx, key, []byte(large), ttl))
				holds(large)
				counts(1)(db.Exists(ctx, key))
				require.NoError(t, db.Expire(ctx, key, ttl))
				counts(1)(db.Delete(ctx, key))
				counts(0)(db.Exists(ctx, key))
				require.NoError(t, db.Do(ctx, func(c *memcache.Client) error { return c.Set(&memcache.Item{Key: key, Flags: 7, Value: []byte("f")}) }))
				holds("f")
				require.NoError(t, db.Set(ctx, key, []byte("g"), ttl))
				require.NoError(t, db.Do(ctx, func(c *memcache.Client) error {
					item, err := c.Get(key)
					if assert.NoError(t, err) {
						assert.Zero(t, item.Flags)
					}
					return nil
				}))
				require.NoError(t, db.Set(ctx, key, []byte("over"), -time.Second))
				counts(0)(db.Exists(ctx, key))
			}
		})
	})
}

func TestSharedCallsKeepTTLs(t *testing.T) {
	t.Parallel()
	bothWays(t, memcachedtest.Addr(t), func(t *testing.T, db *memcacheddriver.MemcachedDB) {
		ctx := t.Context()
		for _, ttl := range []time.Duration{0, time.Hour, 40 * 24 * time.Hour} {
			key := drivertest.Key()
			for _, how := range []func() error{
				func() error { return db.Set(ctx, key, nil, ttl) },
				func() error { _, err := db.SetXX(ctx, key, nil, ttl); return err },
				func() error { return db.Expire(ctx, key, ttl) },
				func() error { db.Delete(ctx, key); _, err := db.SetNX(ctx, key, nil, ttl); return err },
			} {
				require.NoError(t, db.Set(ctx, key, nil, 100*time.Second))
				require.NoError(t, how())
				left, err := db.TTL(ctx, key)
				require.NoError(t, err)
				if ttl == 0 {
					assert.Equal(t, memcacheddriver.NoExpiry, left)
				} else {
					assert.InDelta(t, ttl.Seconds(), left.Seconds(), 30)
				}
			}
		}
		// Under a second: the driver removes it, and an Expire saves it.
		key, saved := drivertest.Key(), drivertest.Key()
		for _, k := range []string{key, saved} {
			ok, err := db.SetNX(ctx, k, []byte("v"), 300*time.Millisecond)
			require.NoError(t, err)
			require.True(t, ok)
		}
		require.NoError(t, db.Expire(ctx, saved, time.Hour))
		time.Sleep(300 * time.Millisecond)
		_, err := db.Get(ctx, key)
		assert.Equal(t, kv.ErrNotFound, err)
		_, err = db.Get(ctx, saved)
		assert.NoError(t, err)
		assert.Equal(t, kv.ErrNotFound, db.Expire(ctx, key, time.Hour))
	})
}

// The errors say the same, but for what the connection's state makes of them.
func TestSharedCallsFailAsThoseAlone(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.Say("SERVER_ERROR out of memory\r\n")))
	bothWays(t, f.Addr(), func(t *testing.T, db *memcacheddriver.MemcachedDB) {
		for _, call := range drivertest.Calls {
			if call.Keys != 1 || strings.HasPrefix(call.Name, "Compare") {
				continue
			}
			op := drivertest.RequireOpError(t, call.Run(t.Context(), db, "key"))
			assert.Equal(t, f.Addr(), op.Server, call.Name)
			assert.Equal(t, []string{"key"}, op.Keys, call.Name)
			assert.Equal(t, `the server answered "SERVER_ERROR out of memory"`, op.Err.Error(), call.Name)

			ctx, cancel := context.WithCancelCause(t.Context())
			cancel(fmt.Errorf("why"))
			op = drivertest.RequireOpError(t, call.Run(ctx, db, "key"))
			assert.Empty(t, op.Server, call.Name)
			assert.ErrorIs(t, op, context.Canceled, call.Name)
			assert.Equal(t, "context canceled: why", op.Err.Error(), call.Name)
		}
	})
	f.SetScript(memcachedtest.AfterDial(memcachedtest.Say("SERVER_ERROR object too large for cache\r\n")))
	bothWays(t, f.Addr(), func(t *testing.T, db *memcacheddriver.MemcachedDB) {
		assert.ErrorIs(t, db.Set(t.Context(), "key", bytes.Repeat([]byte("v"), 5000), 0), memcacheddriver.ErrValueTooLarge)
	})
}

// One of the proxy's two servers is frozen. The keys of the other one are served all the
// same, though what is asked of the frozen one holds up the links for a read timeout.
func TestAFrozenServerBehindTwemproxy(t *testing.T) {
	const lasts = 700 * time.Millisecond
	served := make(map[bool]int64)
	for _, share := range []bool{false, true} {
		servers, _ := drivertest.StartServers(t, 2)
		db := drivertest.Open(t, drivertest.StartTwemproxy(t, servers), memcacheddriver.WithTimeout(200*time.Millisecond))
		if !share {
			memcacheddriver.ShareAll(db, false)
		}
		healthy, frozen := keysBehind(t, db, servers[0], 20)
		servers[1].Stop()
		defer servers[1].Cont()
		var n atomic.Int64
		var all sync.WaitGroup
		end := time.Now().Add(lasts)
		for g := range 32 {
			all.Go(func() {
				for i := g; time.Now().Before(end); i++ {
					if g%8 == 0 {
						_, _ = db.Get(t.Context(), frozen[i%len(frozen)])
						continue
					}
					key := healthy[i%len(healthy)]
					if value, err := db.Get(t.Context(), key); err == nil {
						n.Add(1)
						assert.Equal(t, key, string(value))
					} else {
						runtime.Gosched() // it may be refused at once
					}
				}
			})
		}
		all.Wait()
		served[share] = n.Load()
	}
	t.Logf("%d were served alone, %d shared", served[false], served[true])
	assert.Greater(t, served[true], served[false]/10)
}

// keysBehind sets keys that hold their own names, n at least of those that a proxy keeps
// on server and n of the others.
func keysBehind(t *testing.T, db *memcacheddriver.MemcachedDB, server *memcachedtest.Server, n int) (on, others []string) {
	t.Helper()
	direct := memcache.New(server.Addr())
	defer direct.Close()
	for len(on) < n || len(others) < n {
		key := drivertest.Key()
		require.NoError(t, db.Set(t.Context(), key, []byte(key), 0))
		if _, err := direct.Get(key); err == nil {
			on = append(on, key)
		} else {
			others = append(others, key)
		}
	}
	return on, others
}

// Not parallel: AllocsPerRun counts what others allocate too.
func TestSharedCallsAllocateLittle(t *testing.T) {
	db := drivertest.OpenAsked(t, memcachedtest.Start(t).Addr())
	memcacheddriver.ShareAll(db, true)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	value := make([]byte, 100)
	for name, call := range map[string]struct {
		most float64
		run  func()
	}{
		"Set": {1, func() { db.Set(ctx, "key", value, 0) }},
		"Get": {1, func() { db.Get(ctx, "key") }},
	} {
		lowest := math.Inf(1) // under the race detector sync.Pool forgets at random
		for range 60 {
			lowest = min(lowest, testing.AllocsPerRun(3, call.run))
		}
		assert.LessOrEqual(t, lowest, call.most, name)
	}
}
