package memcacheddriver_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
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
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// appending returns an update that appends s.
func appending(s string) func([]byte) ([]byte, error) {
	return func(current []byte) ([]byte, error) { return append(current, s...), nil }
}

// increment is an update that adds 1 to a decimal number.
func increment(current []byte) ([]byte, error) {
	n, err := strconv.Atoi(string(current))
	return strconv.AppendInt(nil, int64(n+1), 10), err
}

// requireValue fails the test if key has another value.
func requireValue(t *testing.T, db *memcacheddriver.MemcachedDB, key, want string) {
	t.Helper()
	got, err := db.Get(t.Context(), key)
	require.NoError(t, err)
	require.Equal(t, want, string(got))
}

func TestCompareAndSwapStoresWhatUpdateReturns(t *testing.T) {
	t.Parallel()
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		ctx := t.Context()
		db := drivertest.Open(t, addr)
		key := drivertest.Key()
		require.NoError(t, db.Set(ctx, key, []byte("1"), 0))
		called := 0
		require.NoError(t, db.CompareAndSwap(ctx, key, func(current []byte) ([]byte, error) {
			called++
			assert.Equal(t, "1", string(current))
			current[0] = 'x' // it is update's
			return []byte("2"), nil
		}))
		assert.Equal(t, 1, called)
		requireValue(t, db, key, "2")

		// The argument may be what is returned; nil is a value of no bytes.
		require.NoError(t, db.CompareAndSwap(ctx, key, appending("3")))
		requireValue(t, db, key, "23")
		require.NoError(t, db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { return nil, nil }))
		got, err := db.Get(ctx, key)
		require.NoError(t, err)
		assert.Equal(t, []byte{}, got)
	})
}

func TestCompareAndSwapConflict(t *testing.T) {
	t.Parallel()
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		ctx := t.Context()
		db, other := drivertest.Open(t, addr), drivertest.Open(t, addr)
		for name, meanwhile := range map[string]func(key string) error{
			"set":       func(key string) error { return other.Set(ctx, key, []byte("other's"), 0) },
			"same":      func(key string) error { return other.Set(ctx, key, []byte("1"), 0) }, // written is changed
			"by itself": func(key string) error { return db.Set(ctx, key, []byte("other's"), 0) },
			"swap":      func(key string) error { return db.CompareAndSwap(ctx, key, appending("other's")) },
			"deleted and set": func(key string) error {
				if _, err := other.Delete(ctx, key); err != nil {
					return err
				}
				return other.Set(ctx, key, []byte("other's"), 0)
			},
		} {
			key := drivertest.Key()
			require.NoError(t, db.Set(ctx, key, []byte("1"), 0))
			err := db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { return []byte("mine"), meanwhile(key) })
			require.ErrorIs(t, err, kv.ErrConflict, name)
			op := drivertest.RequireOpError(t, err)
			assert.Equal(t, "cas", op.Op)
			assert.Equal(t, addr, op.Server)
			assert.Equal(t, []string{key}, op.Keys)
			got, err := db.Get(ctx, key)
			require.NoError(t, err)
			assert.NotEqual(t, "mine", string(got), "%s: the loser wrote", name)
		}
	})
}

func TestCompareAndSwapOfWhatIsNotThere(t *testing.T) {
	t.Parallel()
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		ctx := t.Context()
		db := drivertest.Open(t, addr)
		absent, deleted := drivertest.Key(), drivertest.Key()
		err := db.CompareAndSwap(ctx, absent, func([]byte) ([]byte, error) { t.Error("called"); return nil, nil })
		assert.True(t, err == kv.ErrNotFound, "%v", err)

		require.NoError(t, db.Set(ctx, deleted, []byte("1"), 0))
		err = db.CompareAndSwap(ctx, deleted, func([]byte) ([]byte, error) {
			n, err := db.Delete(ctx, deleted)
			require.EqualValues(t, 1, n)
			return []byte("2"), err
		})
		assert.True(t, err == kv.ErrNotFound, "gone meanwhile: %v", err)
		n, err := db.Exists(ctx, absent, deleted)
		require.NoError(t, err)
		assert.Zero(t, n, "the swap brought a deleted key back")
	})
}

func TestCompareAndSwapWritesNothingWhenUpdateFails(t *testing.T) {
	t.Parallel()
	db := drivertest.OpenShared(t)
	ctx, key := t.Context(), drivertest.Key()
	require.NoError(t, db.Set(ctx, key, []byte("1"), 0))
	own := errors.New("update's own")
	err := db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { return []byte("2"), own })
	assert.ErrorIs(t, err, own)
	assert.Equal(t, []string{key}, drivertest.RequireOpError(t, err).Keys)
	assert.Contains(t, err.Error(), "update's own")

	// Even where it is one that the driver has a meaning for.
	err = db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { return nil, memcache.ErrCASConflict })
	assert.ErrorIs(t, err, memcache.ErrCASConflict)
	assert.NotErrorIs(t, err, kv.ErrConflict)

	assert.PanicsWithValue(t, "update's own", func() {
		_ = db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { panic("update's own") })
	})

	ending, end := context.WithCancel(ctx)
	err = db.CompareAndSwap(ending, key, func([]byte) ([]byte, error) { end(); return []byte("2"), nil })
	assert.ErrorIs(t, err, context.Canceled, "the context may end while update thinks")
	requireValue(t, db, key, "1")
}

func TestCompareAndSwapKeepsFlags(t *testing.T) {
	t.Parallel()
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		db := drivertest.Open(t, addr)
		for _, flags := range []uint32{0, 1, 42, 1<<32 - 1} {
			key := drivertest.Key()
			require.NoError(t, db.Client().Set(&memcache.Item{Key: key, Value: []byte("1"), Flags: flags}))
			require.NoError(t, db.CompareAndSwap(t.Context(), key, appending("2")))
			item, err := db.Client().Get(key)
			require.NoError(t, err)
			assert.Equal(t, "12", string(item.Value))
			assert.Equal(t, flags, item.Flags)
		}
	})
}

// Swaps with pauses in which the server's clock ticks, of a TTL of every kind:
// seconds, dates, none.
func TestCompareAndSwapKeepsTheTTL(t *testing.T) {
	t.Parallel()
	const day, swaps = 24 * time.Hour, 25
	ctx := t.Context()
	db := drivertest.OpenShared(t, memcacheddriver.WithTTLQuery())
	lives, lefts := make(map[string]life), make(map[string]time.Duration)
	for _, ttl := range []time.Duration{
		0, 20 * time.Second, time.Minute, time.Hour, 29 * day, 30*day - time.Second, 30 * day,
		30*day + time.Second, 31 * day, 60 * day, 90 * day, 365 * day,
	} {
		key := drivertest.Key()
		lives[key] = life{time.Now(), ttl}
		require.NoError(t, db.Set(ctx, key, []byte("v"), ttl))
		lefts[key] = assertLives(t, db, key, lives[key])
	}
	for range swaps {
		for key, life := range lives {
			require.NoError(t, db.CompareAndSwap(ctx, key, appending("+")))
			left := assertLives(t, db, key, life)
			assert.LessOrEqual(t, left, lefts[key], "a swap made a life of %v longer", life.ttl)
			lefts[key] = left
		}
		time.Sleep(100 * time.Millisecond)
	}
	for key := range lives {
		requireValue(t, db, key, "v"+strings.Repeat("+", swaps))
	}
}

// Without the meta protocol nobody knows what is left.
func TestCompareAndSwapOnClassicDoesNotExpire(t *testing.T) {
	t.Parallel()
	addr := memcachedtest.Addr(t)
	classic, key := drivertest.Open(t, memcachedtest.StartClassic(t, addr)), drivertest.Key()
	require.NoError(t, classic.Set(t.Context(), key, []byte("1"), time.Minute))
	require.NoError(t, classic.CompareAndSwap(t.Context(), key, appending("")))
	left, ok := drivertest.ServerTTL(t, addr, key)
	require.True(t, ok)
	assert.EqualValues(t, -1, left)
}

// Each swap reads and writes whole seconds: a key that gained one where the clock
// ticks in between would never expire.
func TestCompareAndSwapWithoutPauseKeepsTheTTL(t *testing.T) {
	t.Parallel()
	const ttl = 6 * time.Second
	addr := memcachedtest.Start(t).Addr()
	dbs := []*memcacheddriver.MemcachedDB{drivertest.Open(t, addr), drivertest.Open(t, addr)}
	ctx, cancel := context.WithTimeout(t.Context(), 4*ttl)
	defer cancel()
	require.NoError(t, dbs[0].Set(ctx, "k", []byte("0"), ttl))
	start := time.Now()
	var swaps, late atomic.Int64
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for {
				switch err := dbs[i%2].CompareAndSwap(ctx, "k", increment); {
				case err == nil:
					swaps.Add(1)
					if time.Since(start) > ttl/2 {
						late.Add(1)
					}
				case err == kv.ErrNotFound:
					return
				case !errors.Is(err, kv.ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	lived := time.Since(start)
	assert.Greater(t, lived, ttl-2*time.Second)
	assert.Less(t, lived, ttl+4*time.Second)
	assert.Greater(t, swaps.Load(), int64(100))
	assert.NotZero(t, late.Load(), "nothing was swapped towards the end")
}

func TestCASTTL(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	server := drivertest.OpenShared(t, memcacheddriver.WithTTLQuery())
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		ctx, db := t.Context(), drivertest.Open(t, addr)
		for _, before := range []time.Duration{0, time.Minute, 90 * day} {
			key := drivertest.Key()
			require.NoError(t, db.Set(ctx, key, []byte("1"), before))
			for _, ttl := range []time.Duration{20 * time.Second, 2 * time.Hour, 40 * day, 0} {
				life := life{time.Now(), ttl}
				// The last one counts.
				require.NoError(t, db.CompareAndSwap(ctx, key, appending("+"),
					memcacheddriver.CASTTL(time.Hour), memcacheddriver.CASTTL(ttl)))
				assertLives(t, server, key, life)
			}
			require.NoError(t, db.CompareAndSwap(ctx, key, appending("+"), memcacheddriver.CASTTL(-time.Second)))
			_, err := db.Get(ctx, key)
			assert.True(t, err == kv.ErrNotFound, "a swap with a negative TTL left the key: %v", err)
		}
	})
}

// swapScript answers for the key k: a swap reads that it has ttl seconds to live,
// and then, together with the server's clock, that it has left.
func swapScript(ttl, left int64, stats, cas string) memcachedtest.Script {
	return memcachedtest.Script{
		"mg": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			if slices.Contains(cmd.Args, "v") {
				c.Say(fmt.Sprintf("VA 3 t%d c5 f9\r\nold\r\n", ttl))
			} else {
				c.Say(fmt.Sprintf("HD t%d\r\n", left))
			}
		},
		"stats": memcachedtest.Say(stats),
		"cas":   memcachedtest.Say(cas),
	}
}

// What is sent must not need the clocks of two machines to agree, and where the
// server's cannot be read, the seconds that are left are sent.
func TestCompareAndSwapSendsWhenTheKeyExpires(t *testing.T) {
	t.Parallel()
	const clock, month = "STAT time 1700000000\r\n", 30 * 86400
	for name, c := range map[string]struct {
		ttl       int64
		stats     string
		opts      []memcacheddriver.CASOption
		want      int64
		tolerance float64
	}{
		"by the server's clock":        {ttl: 100, stats: clock + "END\r\n", want: 1700000100},
		"a month by the server's":      {ttl: month + 1, stats: clock + "END\r\n", want: 1700000000 + month + 1},
		"no expiry":                    {ttl: -1, want: 0},
		"CASTTL, rounded up":           {ttl: 100, opts: []memcacheddriver.CASOption{memcacheddriver.CASTTL(3200 * time.Millisecond)}, want: 4},
		"a proxy's clock":              {ttl: 100, stats: clock + "STAT proxy_conn_requests 1\r\nEND\r\n", want: 100},
		"no clock":                     {ttl: 100, stats: "SERVER_ERROR not here\r\n", want: 100},
		"no clock, more than a month":  {ttl: month + 1, stats: "SERVER_ERROR not here\r\n", want: time.Now().Unix() + month + 1, tolerance: 60},
		"no clock, just under a month": {ttl: month, stats: "SERVER_ERROR not here\r\n", want: month},
	} {
		f := memcachedtest.StartFake(t, swapScript(c.ttl, c.ttl, c.stats, "STORED\r\n"))
		db := drivertest.Open(t, f.Addr())
		require.NoError(t, db.CompareAndSwap(t.Context(), "k", appending("+"), c.opts...), name)
		_, sent, _ := strings.Cut(f.Received(), "cas k 9 ") // the flags
		var expiration int64
		_, err := fmt.Sscanf(sent, "%d 4 5\r\n", &expiration) // the size and the CAS number
		require.NoError(t, err, "%s: %q", name, sent)
		assert.InDelta(t, c.want, expiration, c.tolerance, name)
	}
}

// Another client sets the key anew, without a TTL, between the reads of a swap: it
// is there all the time, so that the swap must not say kv.ErrNotFound.
func TestCompareAndSwapOfAKeyThatLosesItsTTL(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, swapScript(100, -1, "STAT time 1700000000\r\nEND\r\n", "EXISTS\r\n"))
	db := drivertest.Open(t, f.Addr())
	assert.ErrorIs(t, db.CompareAndSwap(t.Context(), "k", appending("+")), kv.ErrConflict)
	assert.Equal(t, 1, f.Count("cas"))
}

// An Expire during a swap is not undone by it: the value does not change with it,
// so that the swap has no conflict.
func TestExpireDuringASwapStays(t *testing.T) {
	t.Parallel()
	const subsecond = 300 * time.Millisecond
	ctx, addr := t.Context(), memcachedtest.Start(t).Addr()
	db, other := drivertest.Open(t, addr, memcacheddriver.WithTTLQuery()), drivertest.Open(t, addr)
	for _, before := range []time.Duration{0, 900 * time.Millisecond, time.Minute, 2 * time.Hour, 60 * 24 * time.Hour} {
		for _, by := range []*memcacheddriver.MemcachedDB{db, other} {
			for _, ttl := range []time.Duration{0, subsecond, time.Minute, time.Hour, 40 * 24 * time.Hour} {
				if ttl == subsecond && by == other {
					continue // of another's only the server's part is seen
				}
				key, began := drivertest.Key(), time.Now()
				require.NoError(t, db.Set(ctx, key, []byte("1"), before))
				require.NoError(t, db.CompareAndSwap(ctx, key, func(v []byte) ([]byte, error) {
					return append(v, '+'), by.Expire(ctx, key, ttl)
				}), "%v, then %v", before, ttl)
				if ttl != subsecond {
					assertLives(t, db, key, life{began, ttl})
					continue
				}
				memcachedtest.Eventually(t, func() bool { return !exists(t, other, key) }, "%v, then %v, is over", before, ttl)
				assert.Less(t, time.Since(began), time.Second, "%v, then %v: the server ended it", before, ttl)
			}
		}
	}
}

// A server without CAS numbers cannot tell whether a value has changed: a swap
// would lose what another client writes.
func TestCompareAndSwapNeedsCASNumbers(t *testing.T) {
	t.Parallel()
	addr := memcachedtest.Start(t, "-C").Addr()
	for name, addr := range map[string]string{"meta": addr, "classic": memcachedtest.StartClassic(t, addr)} {
		db := drivertest.Open(t, addr)
		require.NoError(t, db.Set(t.Context(), "k", []byte("old"), 0))
		err := db.CompareAndSwap(t.Context(), "k", func([]byte) ([]byte, error) {
			return []byte("swapped"), db.Set(t.Context(), "k", []byte("another client's"), 0)
		})
		assert.ErrorIs(t, err, kv.ErrNotSupported, name)
		value, err := db.Get(t.Context(), "k")
		require.NoError(t, err)
		assert.NotEqual(t, "swapped", string(value), "%s: another client's value is lost", name)
	}
}

// As a broken proxy may answer.
func TestCompareAndSwapRefusesAnotherKeysValue(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{
		"mn":      memcachedtest.Say("ERROR\r\n"),
		"version": memcachedtest.Say("VERSION 1.4.39\r\n"),
		"gets":    memcachedtest.Say("VALUE another 0 6 7\r\nsecret\r\nEND\r\n"),
		"cas":     memcachedtest.Say("STORED\r\n"),
	})
	db := drivertest.Open(t, f.Addr())
	err := db.CompareAndSwap(t.Context(), "k", func(current []byte) ([]byte, error) {
		t.Errorf("update was called with %q, another key's value", current)
		return current, nil
	})
	assert.ErrorIs(t, err, memcacheddriver.ErrProtocol)
	assert.Equal(t, 1, f.Count("gets"))
	assert.Zero(t, f.Count("cas"))
}

// No increment is lost and none counts twice.
func TestCompareAndSwapFromManyGoroutines(t *testing.T) {
	t.Parallel()
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		const goroutines, each = 6, 30
		dbs := []*memcacheddriver.MemcachedDB{drivertest.Open(t, addr), drivertest.Open(t, addr), drivertest.Open(t, addr)}
		for _, ttl := range []time.Duration{0, time.Hour} {
			key := drivertest.Key()
			require.NoError(t, dbs[0].Set(t.Context(), key, []byte("0"), ttl))
			var all sync.WaitGroup
			for i := range goroutines {
				all.Go(func() {
					for done := 0; done < each; {
						err := dbs[i%len(dbs)].CompareAndSwap(t.Context(), key, increment)
						switch {
						case err == nil:
							done++
						case !errors.Is(err, kv.ErrConflict):
							t.Error(err)
							return
						}
					}
				})
			}
			all.Wait()
			requireValue(t, dbs[0], key, strconv.Itoa(goroutines*each))
		}
	})
}

func TestCompareAndSwapRefusedLeavesTheValue(t *testing.T) {
	t.Parallel()
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		db, key := drivertest.Open(t, addr), drivertest.Key()
		for range 3 {
			require.NoError(t, db.Set(t.Context(), key, []byte("v"), time.Hour))
			err := db.CompareAndSwap(t.Context(), key, func([]byte) ([]byte, error) { return make([]byte, 2<<20), nil })
			require.ErrorIs(t, err, memcacheddriver.ErrValueTooLarge)
			assert.NotErrorIs(t, err, kv.ErrConflict)
			assert.Equal(t, addr, drivertest.RequireOpError(t, err).Server)
			requireValue(t, db, key, "v")
		}
	})
}

// So that update may make calls of its own.
func TestUpdateHoldsNoConnection(t *testing.T) {
	t.Parallel()
	db := drivertest.OpenShared(t, memcacheddriver.WithMaxIdleConns(1))
	key := drivertest.Key()
	require.NoError(t, db.Set(t.Context(), key, []byte("1"), 0))
	require.NoError(t, db.CompareAndSwap(t.Context(), key, func(c []byte) ([]byte, error) {
		drivertest.RequireIdle(t, db)
		_, err := db.Get(t.Context(), key)
		return c, err
	}))
	assert.EqualValues(t, 1, drivertest.Dials(db))
}
