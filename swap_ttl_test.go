package memcacheddriver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

const days = 24 * time.Hour

// lifeStarted is what a key's remaining life is measured from.
type lifeStarted struct {
	at  time.Time
	ttl time.Duration
}

// assertLives checks that key has what is left of its TTL, and what a busy machine
// took to ask. One of more than 30 days is a time by this machine's clock, and
// the server's may be two seconds behind it.
func assertLives(t *testing.T, db *memcacheddriver.MemcachedDB, key string, life lifeStarted) {
	t.Helper()
	left, err := db.TTL(t.Context(), key)
	took := time.Since(life.at)
	if !assert.NoError(t, err, key) {
		return
	}
	longest := life.ttl + time.Second
	if life.ttl > 30*days {
		longest += 2 * time.Second
	}
	assert.LessOrEqual(t, left, longest, key)
	assert.GreaterOrEqual(t, left, life.ttl-took-time.Second-time.Nanosecond, key)
}

func appendTo(s string) func([]byte) ([]byte, error) {
	return func(current []byte) ([]byte, error) { return append(current, s...), nil }
}

// TestSwapKeepsTTL and flags, on a server of one's own and a TTL of every kind.
func TestSwapKeepsTTL(t *testing.T) {
	t.Parallel()
	db := batchDB(t, memcachedtest.Start(t).Addr(), memcacheddriver.WithTTLQuery())
	ctx := t.Context()
	for _, ttl := range []time.Duration{5 * time.Second, time.Minute, time.Hour, 29 * days, 30*days - time.Second, 30 * days, 31 * days, 365 * days} {
		key := "k-" + ttl.String()
		life := lifeStarted{time.Now(), ttl}
		require.NoError(t, db.Set(ctx, key, []byte("v"), ttl))
		assertLives(t, db, key, life)
		before, err := db.TTL(ctx, key)
		require.NoError(t, err)
		for range 20 {
			require.NoError(t, db.CompareAndSwap(ctx, key, appendTo("+")))
		}
		assertLives(t, db, key, life)
		after, err := db.TTL(ctx, key)
		require.NoError(t, err)
		assert.LessOrEqual(t, after, before, "swaps made the life of %s longer", key)
		value, err := db.Get(ctx, key)
		require.NoError(t, err)
		assert.Equal(t, "v"+strings.Repeat("+", 20), string(value))
	}
}

// TestSwapKeepsNoExpiry: what has no end gets none.
func TestSwapKeepsNoExpiry(t *testing.T) {
	t.Parallel()
	db := batchDB(t, memcachedtest.Start(t).Addr(), memcacheddriver.WithTTLQuery())
	require.NoError(t, db.Set(t.Context(), "k", []byte("v"), 0))
	for range 5 {
		require.NoError(t, db.CompareAndSwap(t.Context(), "k", appendTo("+")))
		left, err := db.TTL(t.Context(), "k")
		require.NoError(t, err)
		assert.Equal(t, memcacheddriver.NoExpiry, left)
	}
}

func TestSwapWithCASTTL(t *testing.T) {
	t.Parallel()
	db := batchDB(t, memcachedtest.Start(t).Addr(), memcacheddriver.WithTTLQuery())
	ctx := t.Context()
	for _, before := range []time.Duration{0, time.Hour} {
		for _, ttl := range []time.Duration{10 * time.Second, 2 * time.Hour, 40 * days} {
			require.NoError(t, db.Set(ctx, "k", []byte("v"), before))
			life := lifeStarted{time.Now(), ttl}
			require.NoError(t, db.CompareAndSwap(ctx, "k", appendTo("+"), memcacheddriver.CASTTL(ttl)))
			assertLives(t, db, "k", life)
			require.NoError(t, db.CompareAndSwap(ctx, "k", appendTo("+")))
			assertLives(t, db, "k", life)
		}
		require.NoError(t, db.Set(ctx, "k", []byte("v"), before))
		require.NoError(t, db.CompareAndSwap(ctx, "k", appendTo("+"), memcacheddriver.CASTTL(0)))
		left, err := db.TTL(ctx, "k")
		require.NoError(t, err)
		assert.Equal(t, memcacheddriver.NoExpiry, left, "CASTTL(0) is for ever")
		require.NoError(t, db.CompareAndSwap(ctx, "k", appendTo("+"), memcacheddriver.CASTTL(-time.Second)))
		_, err = db.Get(ctx, "k")
		assert.True(t, err == kv.ErrNotFound, "a negative TTL has expired already: %v", err)
	}
	// A fraction of a second is not cut off.
	life := lifeStarted{time.Now(), 4 * time.Second}
	require.NoError(t, db.Set(ctx, "k", nil, 0))
	require.NoError(t, db.CompareAndSwap(ctx, "k", appendTo(""), memcacheddriver.CASTTL(3200*time.Millisecond)))
	assertLives(t, db, "k", life)
}

// TestSwapDoesNotCreep: each swap reads and writes whole seconds, and a key that
// gained one where the clock ticks in between would never die.
func TestSwapDoesNotCreep(t *testing.T) {
	t.Parallel()
	addr := memcachedtest.Start(t).Addr()
	dbs := []*memcacheddriver.MemcachedDB{batchDB(t, addr), batchDB(t, addr)}
	const ttl, slack = 10 * time.Second, 2 * time.Second
	ctx, cancel := context.WithTimeout(t.Context(), 2*ttl)
	defer cancel()
	require.NoError(t, dbs[0].Set(ctx, "k", []byte("0"), ttl))
	start := time.Now()
	var swaps, late atomic.Int64
	var all sync.WaitGroup
	deaths := make(chan time.Duration, 8)
	for i := range cap(deaths) {
		all.Go(func() {
			for {
				err := dbs[i%2].CompareAndSwap(ctx, "k", func(current []byte) ([]byte, error) {
					n, err := strconv.Atoi(string(current))
					return strconv.AppendInt(nil, int64(n+1), 10), err
				})
				switch {
				case err == nil:
					swaps.Add(1)
					if time.Since(start) > ttl/2 {
						late.Add(1)
					}
				case errors.Is(err, kv.ErrConflict):
				case err == kv.ErrNotFound:
					deaths <- time.Since(start)
					return
				default:
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	close(deaths)
	for died := range deaths {
		assert.InDelta(t, ttl, died, float64(slack), "the key died after %v", died)
	}
	t.Logf("%d swaps", swaps.Load())
	assert.Greater(t, swaps.Load(), int64(100))
	assert.NotZero(t, late.Load(), "nothing was swapped towards the end")
}

// TestSwapNowAndThen: a key that is swapped over and over, with pauses in which
// the clock ticks, keeps its death too.
func TestSwapNowAndThen(t *testing.T) {
	t.Parallel()
	db := batchDB(t, memcachedtest.Start(t).Addr(), memcacheddriver.WithTTLQuery())
	ctx := t.Context()
	lives := make(map[string]lifeStarted)
	for _, ttl := range []time.Duration{time.Hour, 30*days + time.Second, 90 * days} {
		key := ttl.String()
		require.NoError(t, db.Set(ctx, key, nil, ttl))
		// By the server's clock, which a swap must leave alone.
		left, err := db.TTL(ctx, key)
		require.NoError(t, err)
		lives[key] = lifeStarted{time.Now(), left}
	}
	for start := time.Now(); time.Since(start) < 4*time.Second; time.Sleep(130 * time.Millisecond) {
		for key, life := range lives {
			require.NoError(t, db.CompareAndSwap(ctx, key, appendTo(".")))
			before := time.Since(life.at)
			left, err := db.TTL(ctx, key)
			require.NoError(t, err)
			assert.LessOrEqual(t, left, life.ttl-before+time.Second, "%s is longer", key)
			assert.GreaterOrEqual(t, left, life.ttl-time.Since(life.at)-time.Second, "%s is shorter", key)
		}
	}
}

// metaScript serves a server that speaks meta and says what a test wants of its
// one key. A reply of "" ends the connection.
func metaScript(t *testing.T, reply func(command string) string) string {
	t.Helper()
	return acceptAll(t, func(c net.Conn, _ chan struct{}) {
		r := bufio.NewReader(c)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			f := strings.Fields(line)
			if size := map[string]int{"ms": 2, "cas": 4}[f[0]]; size > 0 {
				size, _ := strconv.Atoi(f[size])
				if _, err := r.Discard(size + len("\r\n")); err != nil {
					return
				}
			}
			out := map[string]string{"version": "VERSION 1.6.18\r\n", "mn": "MN\r\n"}[f[0]]
			if out == "" {
				out = reply(strings.Join(f, " "))
			}
			if _, err := io.WriteString(c, out); err != nil || out == "" {
				return
			}
		}
	})
}

// TestSwapOfAKeyThatIsThere all the time is never kv.ErrNotFound: somebody sets
// it anew, without a TTL, between the reads of a swap.
func TestSwapOfAKeyThatIsThere(t *testing.T) {
	t.Parallel()
	addr := metaScript(t, func(command string) string {
		switch {
		case command == "mg k t c f v":
			return "VA 3 t100 c5 f0\r\nold\r\n"
		case strings.HasPrefix(command, "mg k t"):
			return "HD t-1\r\n" // set by another client meanwhile
		case command == "stats":
			return "STAT time 1700000000\r\nEND\r\n"
		case strings.HasPrefix(command, "cas k "):
			return "EXISTS\r\n"
		}
		return "CLIENT_ERROR " + command + "\r\n"
	})
	db := batchDB(t, addr)
	err := db.CompareAndSwap(t.Context(), "k", appendTo("+"))
	assert.ErrorIs(t, err, kv.ErrConflict)
}

// TestSwapWithoutClock: where the server's clock cannot be read, behind
// memcached's own proxy, the seconds that are left are what is written.
func TestSwapWithoutClock(t *testing.T) {
	t.Parallel()
	stored := make(chan string, 1)
	addr := metaScript(t, func(command string) string {
		switch {
		case command == "mg k t c f v":
			return "VA 3 t100 c5 f9\r\nold\r\n"
		case strings.HasPrefix(command, "mg k t"):
			return "HD t100\r\n"
		case command == "stats":
			return "STAT time 1700000000\r\nSTAT proxy_conn_requests 1\r\nEND\r\n"
		case strings.HasPrefix(command, "cas k "):
			stored <- command
			return "STORED\r\n"
		}
		return "CLIENT_ERROR " + command + "\r\n"
	})
	db := batchDB(t, addr)
	require.NoError(t, db.CompareAndSwap(t.Context(), "k", appendTo("+")))
	assert.Equal(t, "cas k 9 100 4 5", <-stored, "flags, expiration, size and CAS number")
}

// TestSwapWithoutClockOfALongLife: more than 30 days are sent as a date.
func TestSwapWithoutClockOfALongLife(t *testing.T) {
	t.Parallel()
	stored := make(chan string, 1)
	addr := metaScript(t, func(command string) string {
		switch {
		case command == "mg k t c f v":
			return "VA 3 t3456000 c5 f9\r\nold\r\n"
		case strings.HasPrefix(command, "mg k t"):
			return "HD t3456000\r\n"
		case command == "stats":
			return "SERVER_ERROR not here\r\n"
		case strings.HasPrefix(command, "cas k "):
			stored <- command
			return "STORED\r\n"
		}
		return "CLIENT_ERROR " + command + "\r\n"
	})
	require.NoError(t, batchDB(t, addr).CompareAndSwap(t.Context(), "k", appendTo("+")))
	expiration, err := strconv.ParseInt(strings.Fields(<-stored)[3], 10, 64)
	require.NoError(t, err)
	assert.InDelta(t, time.Now().Unix()+3456000, expiration, 60)
}

// TestSwapWithoutCAS: a memcached that was started without CAS numbers (-C)
// cannot tell whether a value has changed. A swap must refuse, not lose what
// another client wrote.
func TestSwapWithoutCAS(t *testing.T) {
	t.Parallel()
	db := batchDB(t, memcachedtest.Start(t, "-C").Addr())
	ctx := t.Context()
	require.NoError(t, db.Set(ctx, "k", []byte("old"), 0))
	err := db.CompareAndSwap(ctx, "k", func([]byte) ([]byte, error) {
		return []byte("swapped"), db.Set(ctx, "k", []byte("another client's"), 0)
	})
	assert.Error(t, err)
	value, getErr := db.Get(ctx, "k")
	require.NoError(t, getErr)
	assert.NotEqual(t, "swapped", string(value), "another client's value is lost")
}

// TestSwapClassicChecksTheKey: a proxy that answers another key than the one that
// was asked for must not have its value swapped in.
func TestSwapClassicChecksTheKey(t *testing.T) {
	t.Parallel()
	var swapped atomic.Bool
	addr := acceptAll(t, func(c net.Conn, _ chan struct{}) {
		r := bufio.NewReader(c)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			reply := "ERROR\r\n"
			switch f := strings.Fields(line); f[0] {
			case "version":
				reply = "VERSION 1.4.39\r\n"
			case "get", "gets":
				reply = "VALUE another 0 6 7\r\nsecret\r\nEND\r\n"
			case "cas":
				swapped.Store(true)
				reply = "STORED\r\n"
				_, _ = r.ReadString('\n')
			}
			if _, err := io.WriteString(c, reply); err != nil {
				return
			}
		}
	})
	db := batchDB(t, addr)
	err := db.CompareAndSwap(t.Context(), "k", func(current []byte) ([]byte, error) {
		t.Errorf("update was called with %q, another key's value", current)
		return current, nil
	})
	assert.ErrorIs(t, err, memcacheddriver.ErrProtocol)
	assert.False(t, swapped.Load())
}

// TestSwapRefused by size: an error of its own, and the value stays.
func TestSwapRefused(t *testing.T) {
	t.Parallel()
	db := batchDB(t, memcachedtest.Start(t).Addr())
	ctx := t.Context()
	for range 3 {
		require.NoError(t, db.Set(ctx, "k", []byte("v"), time.Hour))
		err := db.CompareAndSwap(ctx, "k", func([]byte) ([]byte, error) { return make([]byte, 2<<20), nil })
		require.ErrorIs(t, err, memcacheddriver.ErrValueTooLarge)
		assert.NotErrorIs(t, err, kv.ErrConflict)
		value, err := db.Get(ctx, "k")
		require.NoError(t, err)
		assert.Equal(t, "v", string(value))
	}
}

// TestSwapCountsRight: no increment of many goroutines on several drivers gets
// lost, with a TTL to keep and without.
func TestSwapCountsRight(t *testing.T) {
	t.Parallel()
	addr := memcachedtest.Start(t).Addr()
	dbs := []*memcacheddriver.MemcachedDB{batchDB(t, addr), batchDB(t, addr), batchDB(t, addr)}
	for _, ttl := range []time.Duration{0, time.Hour} {
		key := fmt.Sprint("counter-", int(ttl.Seconds()))
		require.NoError(t, dbs[0].Set(t.Context(), key, []byte("0"), ttl))
		const workers, each = 6, 50
		var all sync.WaitGroup
		for w := range workers {
			all.Go(func() {
				for done := 0; done < each; {
					err := dbs[w%len(dbs)].CompareAndSwap(t.Context(), key, func(current []byte) ([]byte, error) {
						n, err := strconv.Atoi(string(current))
						return []byte(strconv.Itoa(n + 1)), err
					})
					if err == nil {
						done++
					} else if !errors.Is(err, kv.ErrConflict) {
						t.Error(err)
						return
					}
				}
			})
		}
		all.Wait()
		value, err := dbs[0].Get(t.Context(), key)
		require.NoError(t, err)
		assert.Equal(t, strconv.Itoa(workers*each), string(value))
	}
}
