package memcacheddriver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
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

var errConnCause = errors.New("the user went away")

// connEnds are the ways in which a context ends.
var connEnds = []struct {
	name string
	err  error
	make func(d time.Duration) (context.Context, func())
}{
	{"deadline", context.DeadlineExceeded, func(d time.Duration) (context.Context, func()) {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		return ctx, func() { cancel() }
	}},
	{"cancel", context.Canceled, func(d time.Duration) (context.Context, func()) {
		ctx, cancel := context.WithCancel(context.Background())
		timer := time.AfterFunc(d, cancel)
		return ctx, func() { timer.Stop(); cancel() }
	}},
	{"cancel with a cause", errConnCause, func(d time.Duration) (context.Context, func()) {
		ctx, cancel := context.WithCancelCause(context.Background())
		timer := time.AfterFunc(d, func() { cancel(errConnCause) })
		return ctx, func() { timer.Stop(); cancel(nil) }
	}},
}

func TestContextOverSendsNothing(t *testing.T) {
	t.Parallel()
	server := connServe(t, connMiss)
	db := connOpen(t, server.addr(), memcacheddriver.WithTTLQuery())
	for _, state := range []string{"no connection", "an idle connection"} {
		connsBefore, before := server.got()
		for _, end := range connEnds {
			ctx, stop := end.make(0)
			<-ctx.Done()
			for _, call := range connCalls() {
				err := call.run(ctx, db)
				assert.ErrorIs(t, err, ctx.Err(), "%s, %s, %s", call.name, end.name, state)
				assert.ErrorIs(t, err, end.err, "%s, %s, %s", call.name, end.name, state)
			}
			stop()
		}
		conns, received := server.got()
		assert.Equal(t, connsBefore, conns, "dials with %s", state)
		assert.Equal(t, before, received, "bytes sent with %s", state)

		// The next round has an idle connection and knows the meta protocol.
		_, err := db.Exists(context.Background(), "k")
		require.NoError(t, err)
	}
	connRequireIdle(t, db)
}

// What ends between the two requests of a swap.
func TestContextOverInTheMiddleOfASwap(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	db := connOpen(t, server.Addr())
	require.NoError(t, db.Set(context.Background(), "k", []byte("old"), 0))
	ctx, cancel := context.WithCancel(context.Background())
	err := db.CompareAndSwap(ctx, "k", func([]byte) ([]byte, error) {
		cancel()
		return []byte("new"), nil
	})
	require.ErrorIs(t, err, context.Canceled)
	value, err := db.Get(context.Background(), "k")
	require.NoError(t, err)
	require.Equal(t, "old", string(value))
}

// Not parallel: it counts goroutines.
func TestContextNeedsNoGoroutine(t *testing.T) {
	const callers = 50
	server := memcachedtest.Start(t)
	db := connOpen(t, server.Addr(), memcacheddriver.WithTTLQuery(), memcacheddriver.WithTimeout(never))
	_, err := db.Exists(context.Background(), "k")
	require.NoError(t, err)
	server.Stop()
	for _, call := range connCalls() {
		before := runtime.NumGoroutine()
		ctx, cancel := context.WithTimeout(context.Background(), never)
		var calls sync.WaitGroup
		for range callers {
			calls.Go(func() {
				if err := call.run(ctx, db); !errors.Is(err, context.Canceled) {
					t.Errorf("%s: %v", call.name, err)
				}
			})
		}
		connPoll(t, call.name+": all callers hang", func() bool { return connStats(t, db).InUse == callers })
		// Whatever helped to connect has a moment to end.
		connPoll(t, fmt.Sprintf("%s: no goroutine but the %d callers and the %d before", call.name, callers, before), func() bool {
			return runtime.NumGoroutine() <= before+callers
		})
		cancel()
		calls.Wait()
	}
}

// The value may be changed as soon as a call has returned, however it ended. The
// race detector sees who still reads it, and the server who sent it late.
func TestContextGivesTheBufferBack(t *testing.T) {
	t.Parallel()
	plain := memcachedtest.Start(t)
	secure, config := memcachedtest.StartTLS(t)
	for name, open := range map[string]func(t *testing.T) *memcacheddriver.MemcachedDB{
		"plain": func(t *testing.T) *memcacheddriver.MemcachedDB { return connOpen(t, plain.Addr()) },
		"TLS": func(t *testing.T) *memcacheddriver.MemcachedDB {
			return connOpen(t, secure.Addr(), driver.WithTLSConfig(config))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := open(t)
			const size = 300_000
			limit := 1500 // µs; a call over TLS has a handshake to do where the last was cut off
			if name == "TLS" {
				limit = 30_000
			}
			cut, whole := 0, 0
			for end := time.Now().Add(700 * time.Millisecond); time.Now().Before(end); {
				key := fmt.Sprint("k", rand.IntN(4))
				value := bytes.Repeat([]byte{'a' + byte(rand.IntN(26))}, size)
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(limit))*time.Microsecond)
				var err error
				switch rand.IntN(3) {
				case 0:
					err = db.Set(ctx, key, value, 0)
				case 1:
					err = db.MSet(ctx, map[string][]byte{key: value, key + "+": value}, 0)
				case 2:
					err = db.Do(ctx, func(c *memcache.Client) error {
						return c.Set(&memcache.Item{Key: key, Value: value})
					})
				}
				cancel()
				for i := range value {
					value[i] = '#'
				}
				switch {
				case err == nil:
					whole++
				case errors.Is(err, context.DeadlineExceeded):
					cut++
				default:
					t.Fatal(err)
				}
				stored, err := db.Get(context.Background(), key)
				if err == kv.ErrNotFound {
					continue
				}
				require.NoError(t, err)
				require.Len(t, stored, size)
				if n := bytes.Count(stored, stored[:1]); n != size || stored[0] == '#' {
					t.Fatalf("a torn value: %d of %d bytes are %q", n, size, stored[0])
				}
			}
			assert.NotZero(t, cut, "no call was cut off")
			assert.NotZero(t, whole, "every call was cut off")
			connRequireIdle(t, db)
		})
	}
}

// The first bytes of a call whose context ends as it begins: an abort that comes
// before the socket is known, or between two deadlines, must stick.
func TestContextEndsAtAnyMoment(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	db := connOpen(t, server.Addr(), memcacheddriver.WithTTLQuery(), memcacheddriver.WithTimeout(never), driver.WithDialTimeout(never))
	_, err := db.Exists(context.Background(), "k")
	require.NoError(t, err)
	connFill(t, db, 4)
	server.Stop()
	var calls sync.WaitGroup
	for range 4 {
		calls.Go(func() {
			for range 300 {
				ctx, cancel := context.WithCancel(context.Background())
				spin := rand.IntN(3000)
				go func() {
					for range spin {
						runtime.Gosched()
					}
					cancel()
				}()
				all := connCalls()
				call := all[rand.IntN(len(all))]
				if err := call.run(ctx, db); !errors.Is(err, context.Canceled) {
					t.Errorf("%s: %v", call.name, err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { calls.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(never / 2):
		db.Close()
		t.Fatal("a call did not end with its context")
	}
	connRequireIdle(t, db)
}

func TestContextOfDo(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	db := connOpen(t, server.Addr())
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	t.Run("fn's error comes back as it is", func(t *testing.T) {
		mine := errors.New("mine")
		require.Same(t, mine, db.Do(ctx, func(*memcache.Client) error { return mine }))
	})
	t.Run("a panic and Goexit lose nothing", func(t *testing.T) {
		for range 3 {
			require.PanicsWithValue(t, "mine", func() {
				_ = db.Do(ctx, func(c *memcache.Client) error {
					_ = c.Set(&memcache.Item{Key: "k", Value: []byte("v")})
					panic("mine")
				})
			})
			var gone sync.WaitGroup
			gone.Go(func() {
				_ = db.Do(ctx, func(c *memcache.Client) error {
					_, _ = c.Get("k")
					runtime.Goexit()
					return nil
				})
			})
			gone.Wait()
		}
		connRequireIdle(t, db)
		require.NoError(t, db.Set(ctx, "k", []byte("v"), 0))
	})
	t.Run("many goroutines, one key", func(t *testing.T) {
		const n = 16
		require.NoError(t, db.Set(ctx, "n", []byte("0"), 0))
		for range 5 {
			err := db.Do(ctx, func(c *memcache.Client) error {
				var all sync.WaitGroup
				for range n {
					all.Go(func() {
						for range 20 {
							if _, err := c.Increment("n", 1); err != nil {
								t.Error(err)
							}
						}
					})
				}
				all.Wait()
				return nil
			})
			require.NoError(t, err)
		}
		value, err := db.Get(ctx, "n")
		require.NoError(t, err)
		require.Equal(t, fmt.Sprint(5*n*20), string(value))
		connRequireIdle(t, db)
		require.LessOrEqual(t, connStats(t, db).Idle, 10)
	})
	t.Run("many goroutines, cut off", func(t *testing.T) {
		server := memcachedtest.Start(t)
		db := connOpen(t, server.Addr(), memcacheddriver.WithTimeout(never))
		connFill(t, db, 4)
		server.Stop()
		ctx, cancel := context.WithCancel(context.Background())
		err := db.Do(ctx, func(c *memcache.Client) error {
			var all sync.WaitGroup
			for range 16 {
				all.Go(func() {
					if _, err := c.Get("k"); !errors.Is(err, context.Canceled) {
						t.Errorf("Get: %v", err)
					}
				})
			}
			connPoll(t, "all hang", func() bool { return connStats(t, db).InUse == 16 })
			cancel()
			all.Wait()
			return nil
		})
		require.NoError(t, err)
		connRequireIdle(t, db)
	})
}
