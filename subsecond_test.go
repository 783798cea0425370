package memcacheddriver_test

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// exists asks for a key as one that knows nothing of TTLs under a second.
func exists(t *testing.T, db *memcacheddriver.MemcachedDB, key string) bool {
	t.Helper()
	n, err := db.Exists(t.Context(), key)
	require.NoError(t, err)
	return n == 1
}

// requireLives checks, for some keys, that they live for ttl. write gives it to
// one, and is called anew where it says kv.ErrNotFound; there asks for it.
func requireLives(t *testing.T, ttl time.Duration, write func(key string) error, there func(key string) bool) {
	t.Helper()
	least := time.Hour
	for range 5 {
		key := drivertest.Key()
		var began, last time.Time
		memcachedtest.Eventually(t, func() bool {
			began = time.Now()
			err := write(key)
			last = time.Now()
			if err != kv.ErrNotFound {
				require.NoError(t, err)
			}
			return err == nil
		}, "a TTL of %v is given", ttl)
		due := last.Add(ttl)
		memcachedtest.Eventually(t, func() bool {
			asked := time.Now()
			if there(key) {
				last = asked
				return false
			}
			return true
		}, "a value set for %v is gone", ttl)
		assert.GreaterOrEqual(t, time.Since(began), ttl, "it ended early")
		// What is surely too long, however busy the machine is with the test. The
		// server ends no value in its first second.
		late := last.Sub(due)
		assert.Less(t, late, time.Second-ttl, "the driver did not remove the value")
		least = min(least, late)
	}
	assert.Less(t, least, 40*time.Millisecond, "late at best")
}

func TestSubsecondTTLIsExact(t *testing.T) {
	t.Parallel()
	const ttl = 60 * time.Millisecond
	addr := memcachedtest.Start(t).Addr()
	db, other := drivertest.Open(t, addr), drivertest.Open(t, addr)
	ctx := t.Context()
	for by, set := range setters {
		t.Run(by, func(t *testing.T) {
			t.Parallel()
			requireLives(t, ttl, func(key string) error {
				return set(ctx, db, key, []byte("v"), ttl)
			}, func(key string) bool { return exists(t, other, key) })
		})
	}
}

func TestCompareAndSwapKeepsASubsecondTTL(t *testing.T) {
	t.Parallel()
	const ttl = 150 * time.Millisecond
	db := drivertest.Open(t, memcachedtest.Start(t).Addr())
	ctx, swaps := t.Context(), 0
	requireLives(t, ttl, func(key string) error {
		return db.Set(ctx, key, []byte("0"), ttl)
	}, func(key string) bool {
		err := db.CompareAndSwap(ctx, key, increment)
		if err != kv.ErrNotFound {
			require.NoError(t, err)
			swaps++
		}
		return err == nil
	})
	assert.NotZero(t, swaps)
}

// Whether that one was shorter or longer.
func TestExpireReplacesASubsecondTTL(t *testing.T) {
	t.Parallel()
	const ttl = 100 * time.Millisecond
	db := drivertest.Open(t, memcachedtest.Start(t).Addr())
	ctx := t.Context()
	for _, first := range []time.Duration{30 * time.Millisecond, 900 * time.Millisecond} {
		requireLives(t, ttl, func(key string) error {
			if err := db.Set(ctx, key, []byte("v"), first); err != nil {
				return err
			}
			return db.Expire(ctx, key, ttl)
		}, func(key string) bool { return exists(t, db, key) })
	}
}

// An Expire that is cut off may have happened or not, but a value that had a life
// under a second does not live on for the three seconds of the server's.
func TestAnExpireThatIsCutOffKeepsASubsecondTTL(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{
		"ms": memcachedtest.Say("HD c5\r\n"),
		"mg": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			if slices.Contains(cmd.Args, "T3600") {
				memcachedtest.Hang(c, cmd)
			} else {
				c.Say("HD c5 t3\r\n")
			}
		},
		"md": memcachedtest.Say("HD\r\n"),
	})
	db := drivertest.Open(t, f.Addr())
	require.NoError(t, db.Set(t.Context(), "k", []byte("v"), 100*time.Millisecond))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	assert.ErrorIs(t, db.Expire(ctx, "k", time.Hour), context.DeadlineExceeded)
	memcachedtest.Eventually(t, func() bool { return f.Count("md") == 1 }, "the value is removed")
}

// The time of a value that is just getting another life passes meanwhile.
func TestExpireAtTheLastMomentStays(t *testing.T) {
	t.Parallel()
	const ttl = 100 * time.Millisecond
	f := memcachedtest.StartFake(t, memcachedtest.Script{
		"ms": memcachedtest.Say("HD c5\r\n"),
		"mg": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			if slices.Contains(cmd.Args, "T3600") {
				time.Sleep(2 * ttl)
			}
			c.Say("HD c5 t3\r\n")
		},
		"md": memcachedtest.Say("HD\r\n"),
	})
	db := drivertest.Open(t, f.Addr())
	require.NoError(t, db.Set(t.Context(), "k", []byte("v"), ttl))
	require.NoError(t, db.Expire(t.Context(), "k", time.Hour))
	time.Sleep(ttl)
	assert.Zero(t, f.Count("md"), "the value is removed")
}

// An Expire may touch a value before the answer to its Set has come.
func TestExpireBeforeTheAnswerToTheSetStays(t *testing.T) {
	t.Parallel()
	for _, ttl := range []time.Duration{900 * time.Millisecond, 2 * time.Second} {
		stored, touched, removed := make(chan bool), make(chan bool), make(chan time.Time, 1)
		f := memcachedtest.StartFake(t, memcachedtest.Script{
			"ms": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
				close(stored)
				<-touched
				c.Say("HD c5\r\n")
			},
			"mg": memcachedtest.Say("HD c5 t2\r\n"),
			"md": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
				removed <- time.Now()
				c.Say("HD\r\n")
			},
		})
		db := drivertest.Open(t, f.Addr())
		set := make(chan error)
		go func() { set <- db.Set(t.Context(), "k", []byte("v"), 50*time.Millisecond) }()
		<-stored
		began := time.Now()
		require.NoError(t, db.Expire(t.Context(), "k", ttl))
		close(touched)
		require.NoError(t, <-set)
		assert.GreaterOrEqual(t, (<-removed).Sub(began), ttl)
	}
}

// A batch may take long: the time of a value runs from its own answer, in which
// the server may have been slow.
func TestATimeBeginsWithTheAnswer(t *testing.T) {
	t.Parallel()
	const ttl = 200 * time.Millisecond
	var stored, removed atomic.Int64
	answered, over := make(chan time.Time, 1), make(chan bool)
	f := memcachedtest.StartFake(t, memcachedtest.Script{
		"ms": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			n := stored.Add(1)
			if n == 2 {
				<-over
				time.Sleep(ttl)
				answered <- time.Now()
			}
			c.Say(fmt.Sprintf("HD c%d\r\n", n))
		},
		"mg": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			c.Say(fmt.Sprintf("HD c%d t3\r\n", removed.Add(1)))
		},
		"md": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			c.Say("HD\r\n")
			over <- true
		},
	})
	db := drivertest.Open(t, f.Addr())
	pairs := map[string][]byte{"k": []byte("1"), "l": []byte("2")}
	require.NoError(t, db.MSet(t.Context(), pairs, ttl))
	<-over
	assert.GreaterOrEqual(t, time.Since(<-answered), ttl)
}

// CAS numbers begin again with the server. What is written then is neither removed
// for an older value's time, nor forgotten for its number.
func TestSubsecondTTLsEndWithTheServersLife(t *testing.T) {
	t.Parallel()
	const ttl = 900 * time.Millisecond
	server := memcachedtest.Start(t)
	db, other, ctx := drivertest.Open(t, server.Addr()), drivertest.Open(t, server.Addr()), t.Context()
	cas := func(db *memcacheddriver.MemcachedDB, key string) uint64 {
		item, err := db.Client().Get(key)
		require.NoError(t, err)
		return item.CasID
	}
	require.NoError(t, db.Set(ctx, "k", []byte("old"), ttl))
	number := cas(db, "k")
	for range 100 {
		require.NoError(t, db.Set(ctx, "l", []byte("old"), ttl))
	}
	server.Restart()
	memcachedtest.Eventually(t, func() bool { return other.Ping(ctx) == nil && db.Ping(ctx) == nil }, "the server is back")
	require.NoError(t, other.Set(ctx, "k", []byte("new"), 0))
	require.Equal(t, number, cas(other, "k"), "the test needs the same number again")
	requireLives(t, 100*time.Millisecond, func(string) error {
		return db.Set(ctx, "l", []byte("new"), 100*time.Millisecond)
	}, func(string) bool { return exists(t, other, "l") })
	time.Sleep(ttl)
	requireValue(t, other, "k", "new")
	requireValue(t, db, "k", "new")
}

func TestSubsecondConditionsHold(t *testing.T) {
	t.Parallel()
	const ttl = 500 * time.Millisecond
	server := memcachedtest.Start(t)
	db, ctx := drivertest.Open(t, server.Addr()), t.Context()
	ok, err := db.SetXX(ctx, "absent", []byte("v"), ttl)
	require.NoError(t, err)
	assert.False(t, ok)
	require.NoError(t, db.Set(ctx, "there", []byte("v"), 0))
	ok, err = db.SetNX(ctx, "there", []byte("w"), ttl)
	require.NoError(t, err)
	assert.False(t, ok)
	assert.ErrorIs(t, db.Expire(ctx, "absent", ttl), kv.ErrNotFound)
	err = db.MSet(ctx, map[string][]byte{"large": make([]byte, 2<<20), "small": []byte("v")}, ttl)
	assert.ErrorIs(t, err, memcacheddriver.ErrValueTooLarge)
	assert.Equal(t, "2", server.Stats(t)["total_items"], "there and small were stored")
}

// What was written since must not be removed with the value that it replaced.
func TestSubsecondRemovesOnlyItsOwn(t *testing.T) {
	t.Parallel()
	const ttl = 200 * time.Millisecond
	addr := memcachedtest.Start(t).Addr()
	db, other := drivertest.Open(t, addr), drivertest.Open(t, addr)
	ctx := t.Context()
	var keys []string
	for name, replace := range map[string]func(key string) error{
		"set":            func(key string) error { return db.Set(ctx, key, []byte("new"), time.Hour) },
		"set by another": func(key string) error { return other.Set(ctx, key, []byte("new"), time.Hour) },
		"swap": func(key string) error {
			return db.CompareAndSwap(ctx, key, appending("+"), memcacheddriver.CASTTL(time.Hour))
		},
		"swap by another": func(key string) error {
			return other.CompareAndSwap(ctx, key, appending("+"), memcacheddriver.CASTTL(time.Hour))
		},
		"expire": func(key string) error { return db.Expire(ctx, key, time.Hour) },
	} {
		key := drivertest.Key()
		keys = append(keys, key)
		memcachedtest.Eventually(t, func() bool {
			require.NoError(t, db.Set(ctx, key, []byte("old"), ttl))
			err := replace(key)
			if err != kv.ErrNotFound {
				require.NoError(t, err, name)
			}
			return err == nil
		}, "%s finds the value still there", name)
	}
	require.NoError(t, db.Set(ctx, "last", nil, ttl))
	memcachedtest.Eventually(t, func() bool { return !exists(t, other, "last") }, "what was due is removed")
	values, err := other.MGet(ctx, keys)
	require.NoError(t, err)
	for i, value := range values {
		assert.NotNil(t, value, "value %d was removed", i)
	}
	for _, key := range keys {
		_, err := db.Get(ctx, key)
		assert.NoError(t, err, "a value with an hour to live is hidden")
	}
}

func TestTTLsOfASecondAreTheServers(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	db := drivertest.Open(t, server.Addr())
	require.NoError(t, db.Set(t.Context(), "k", []byte("v"), time.Second))
	require.NoError(t, db.Set(t.Context(), "l", []byte("v"), 2*time.Second))
	memcachedtest.Eventually(t, func() bool {
		n, err := db.Exists(t.Context(), "k", "l")
		require.NoError(t, err)
		return n == 0
	}, "both are gone")
	requireNothingRemoved(t, server)
}

// requireNothingRemoved fails the test if a client has sent a deletion.
func requireNothingRemoved(t *testing.T, server *memcachedtest.Server) {
	t.Helper()
	stats := server.Stats(t)
	require.Equal(t, "0", stats["delete_hits"])
	require.Equal(t, "0", stats["delete_misses"])
	require.Equal(t, "0", stats["cas_badval"])
}

// Closing the driver is not the end of the value, but the server's TTL is.
func TestSubsecondValuesOutliveTheDriver(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	db, other := drivertest.Open(t, server.Addr()), drivertest.Open(t, server.Addr())
	require.NoError(t, db.Set(t.Context(), "k", []byte("v"), 900*time.Millisecond))
	require.NoError(t, db.Close())
	if left, ok := drivertest.ServerTTL(t, server.Addr(), "k"); ok {
		assert.LessOrEqual(t, left, int64(3))
		assert.Positive(t, left)
	}
	memcachedtest.Eventually(t, func() bool { return !exists(t, other, "k") }, "the value is gone")
	requireNothingRemoved(t, server)
}

// Not parallel, as it counts goroutines.
func TestManySubsecondTTLs(t *testing.T) {
	server := memcachedtest.Start(t, "-m", "512")
	db := drivertest.Open(t, server.Addr())
	const n = 100_000
	pairs := make(map[string][]byte, n)
	for i := range n {
		pairs[fmt.Sprintf("key-%d", i)] = []byte("v")
	}
	goroutines := runtime.NumGoroutine()
	require.NoError(t, db.MSet(t.Context(), pairs, 999*time.Millisecond))
	assert.Less(t, runtime.NumGoroutine(), goroutines+100, "no goroutine per key")
	memcachedtest.Eventually(t, func() bool { return server.Stats(t)["curr_items"] == "0" }, "all are gone")
	assert.Equal(t, strconv.Itoa(n), server.Stats(t)["total_items"])
}

func TestCloseEndsARemovalThatHangs(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"mg": memcachedtest.Hang})
	db := drivertest.Open(t, f.Addr(), memcacheddriver.WithTimeout(drivertest.Never))
	require.NoError(t, db.Set(t.Context(), "k", []byte("v"), 10*time.Millisecond))
	memcachedtest.Eventually(t, func() bool { return f.Count("mg") == 1 }, "the value is being removed")
	start := time.Now()
	assert.NoError(t, db.Close())
	assert.Less(t, time.Since(start), drivertest.Never/2, "Close waits for the server")
}

// A server without CAS numbers cannot be told which value to remove.
func TestSubsecondRemovesNothingWithoutCAS(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t, "-C")
	db, ctx := drivertest.Open(t, server.Addr()), t.Context()
	require.NoError(t, db.Set(ctx, "k", []byte("v"), 50*time.Millisecond))
	require.NoError(t, db.Set(ctx, "k", []byte("w"), time.Hour))
	time.Sleep(200 * time.Millisecond)
	requireValue(t, db, "k", "w")
	requireNothingRemoved(t, server)
}

// kv.WithTTL(60) is 60 ns, and was meant to be a minute.
func TestTTLWithoutItsUnitIsToldOnce(t *testing.T) {
	t.Parallel()
	for by, set := range setters {
		logger := drivertest.NewLog()
		db := drivertest.OpenShared(t, driver.WithLogger(logger))
		calls := func(ttls ...time.Duration) {
			for _, ttl := range ttls {
				require.NoError(t, set(t.Context(), db, drivertest.Key(), []byte("1"), ttl), "%s, %v", by, ttl)
			}
		}
		calls(0, -1, time.Millisecond, time.Second, time.Hour)
		require.Empty(t, logger.Lines(), by)
		calls(60, time.Millisecond-1, 60)
		logger.Await(t, 1)
		assert.Len(t, logger.Lines(), 1, by)
		assert.Len(t, logger.Lines("warn", "a TTL of 60ns", "60*time.Second"), 1, by)
	}
}
