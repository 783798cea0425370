package pool_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
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
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// contextEnds are the ways in which a context ends, after d.
var contextEnds = []struct {
	name string
	in   func(d time.Duration) (ctx context.Context, stop func())
}{
	{"deadline", func(d time.Duration) (context.Context, func()) {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		return ctx, cancel
	}},
	{"cancel", func(d time.Duration) (context.Context, func()) {
		ctx, cancel := context.WithCancel(context.Background())
		timer := time.AfterFunc(d, cancel)
		return ctx, func() { timer.Stop(); cancel() }
	}},
	{"cancel with a cause", func(d time.Duration) (context.Context, func()) {
		ctx, cancel := context.WithCancelCause(context.Background())
		timer := time.AfterFunc(d, func() { cancel(errors.New("the user went away")) })
		return ctx, func() { timer.Stop(); cancel(nil) }
	}},
}

func TestEndedContextSendsNothing(t *testing.T) {
	t.Parallel()
	server := memcachedtest.StartFake(t, nil)
	db := drivertest.Open(t, server.Addr(), memcacheddriver.WithTTLQuery())
	for _, idle := range []int{0, 1} {
		drivertest.Fill(t, db, idle)
		conns, received := server.Accepted(), server.Received()
		for _, end := range contextEnds {
			ctx, stop := end.in(0)
			<-ctx.Done()
			for _, call := range drivertest.Calls {
				err := call.Run(ctx, db, "k")
				if assert.ErrorIs(t, err, ctx.Err(), "%s, %s, %d idle", call.Name, end.name, idle) {
					assert.True(t, strings.HasPrefix(err.Error(), "memcacheddriver: "), "%s, %s: %v", call.Name, end.name, err)
				}
			}
			assert.ErrorIs(t, db.Do(ctx, func(*memcache.Client) error { t.Error("called"); return nil }), ctx.Err(), end.name)
			stop()
		}
		assert.Equal(t, conns, server.Accepted(), "%d idle", idle)
		assert.Equal(t, received, server.Received(), "%d idle", idle)
		assert.Equal(t, idle, drivertest.Stat(t, db).Idle)
	}
}

// Not parallel: it counts goroutines. A dial has one, as it goes on without the call.
func TestContextNeedsNoGoroutine(t *testing.T) {
	const callers = 8 // more would share a socket
	var hanging atomic.Int32
	hang := func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
		hanging.Add(1)
		c.Hang()
	}
	server := memcachedtest.StartFake(t, nil)
	before := runtime.NumGoroutine()
	for _, call := range drivertest.Calls {
		server.SetScript(nil)
		db := drivertest.Open(t, server.Addr(), memcacheddriver.WithTTLQuery(), memcacheddriver.WithTimeout(drivertest.Never),
			driver.WithDialTimeout(drivertest.Never), memcacheddriver.WithMaxIdleConns(callers))
		drivertest.Fill(t, db, callers)
		server.SetScript(memcachedtest.Script{"*": hang})
		for _, where := range []string{"the request", "the dial"} {
			own := 0
			if where == "the dial" {
				own = callers
			}
			hanging.Store(0)
			ctx, cancel := context.WithTimeout(context.Background(), drivertest.Never)
			var calls sync.WaitGroup
			for range callers {
				calls.Go(func() {
					assert.ErrorIs(t, call.Run(ctx, db, "k"), context.Canceled, "%s in %s", call.Name, where)
				})
			}
			memcachedtest.Eventually(t, func() bool { return hanging.Load() == callers }, "%s: all hang in %s", call.Name, where)
			// The callers and the server's connections, once what helped to connect
			// has ended.
			memcachedtest.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+2*callers+own },
				"%s: no goroutines but the callers hang in %s", call.Name, where)
			cancel()
			calls.Wait()
		}
		require.NoError(t, db.Close())
	}
}

// The value may be changed as soon as a call has returned, however it ended. The
// race detector sees who still reads it, and the server who sent it late.
func TestEndedContextGivesTheBufferBack(t *testing.T) {
	t.Parallel()
	plain := memcachedtest.Start(t)
	secure, config := memcachedtest.StartTLS(t)
	for name, db := range map[string]*memcacheddriver.MemcachedDB{
		"plain": drivertest.Open(t, plain.Addr()),
		"TLS":   drivertest.Open(t, secure.Addr(), driver.WithTLSConfig(config)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const size = 300_000
			keys := drivertest.Keys(4)
			limit := time.Millisecond // follows the machine: about half of the calls are cut off
			for cut, whole := 0, 0; cut < 30 || whole < 30; {
				key := keys[rand.IntN(len(keys))]
				value := bytes.Repeat([]byte{'a' + byte(rand.IntN(26))}, size)
				ctx, cancel := context.WithTimeout(context.Background(), rand.N(limit))
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
				if err == nil {
					whole++
					limit -= limit / 10
				} else {
					require.ErrorIs(t, err, context.DeadlineExceeded)
					cut++
					limit += limit / 8
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
			drivertest.RequireIdle(t, db)
		})
	}
}

// An abort must stick that comes before the socket is known, or between two
// deadlines.
func TestContextEndsAtAnyMoment(t *testing.T) {
	t.Parallel()
	server := memcachedtest.StartFake(t, hangsAfterDial)
	db := drivertest.Open(t, server.Addr(), memcacheddriver.WithTTLQuery(),
		memcacheddriver.WithTimeout(drivertest.Never), driver.WithDialTimeout(drivertest.Never))
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
				call := drivertest.Calls[rand.IntN(len(drivertest.Calls))]
				assert.ErrorIs(t, call.Run(ctx, db, "k"), context.Canceled, call.Name)
			}
		})
	}
	start := time.Now()
	calls.Wait()
	require.Less(t, time.Since(start), drivertest.Never, "a call did not end with its context")
	drivertest.RequireIdle(t, db)
}

// GetMulti and MGet move the deadline on for every value that comes: that must
// not undo the abort.
func TestContextEndsABatchThatProgresses(t *testing.T) {
	t.Parallel()
	values := func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		for i := 0; c.Say("VALUE " + cmd.Args[i%len(cmd.Args)] + " 0 1 1\r\nv\r\n"); i++ {
			time.Sleep(time.Millisecond)
		}
	}
	server := memcachedtest.StartFake(t, memcachedtest.Script{"get": values, "gets": values})
	db := drivertest.Open(t, server.Addr(), memcacheddriver.WithTimeout(drivertest.Never))
	keys := drivertest.Keys(100)
	for name, call := range map[string]func(ctx context.Context) error{
		"GetMulti": func(ctx context.Context) error {
			return db.Do(ctx, func(c *memcache.Client) error {
				_, err := c.GetMulti(keys)
				return err
			})
		},
		"MGet": func(ctx context.Context) error {
			_, err := db.MGet(ctx, keys)
			return err
		},
	} {
		for range 5 {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
			start := time.Now()
			err := call(ctx)
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded, name)
			require.Less(t, time.Since(start), drivertest.Never/2, name)
		}
	}
	drivertest.RequireIdle(t, db)
}
