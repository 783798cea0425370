package pool_test

import (
	"context"
	"crypto/tls"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// Not parallel: it measures time.
func TestContextEndsEveryCallThatHangs(t *testing.T) {
	for name, open := range openHung {
		t.Run(name, func(t *testing.T) {
			db := open(t)
			tries := 0
			for i, call := range drivertest.Calls {
				end := contextEnds[i%len(contextEnds)]
				// Most calls come back in a moment; a busy machine delays some.
				for prompt, calls := 0, 0; prompt < 3; calls++ {
					require.Less(t, calls, 30, "%s comes back late", call.Name)
					const d = 3 * time.Millisecond
					start := time.Now()
					ctx, stop := end.in(d)
					err := call.Run(ctx, db, "k")
					late := time.Since(start) - d
					require.ErrorIs(t, err, ctx.Err(), "%s, %s", call.Name, end.name)
					stop()
					require.Less(t, late, drivertest.Never/4, call.Name)
					if late < 20*time.Millisecond {
						prompt++
					}
					tries++
				}
			}
			drivertest.RequireIdle(t, db)
			s := drivertest.Stat(t, db)
			assert.Equal(t, memcacheddriver.ServerUp, s.State, "the caller's deadlines counted against the server")
			assert.Zero(t, s.DialErrors)
			assert.Zero(t, s.Timeouts)
			assert.LessOrEqual(t, s.Cancelled, uint64(tries))
			assert.GreaterOrEqual(t, s.Cancelled, uint64(len(drivertest.Calls))) // some end before they reach it
		})
	}
}

// A TLS connection says goodbye when it is closed, which must not wait for a
// server that reads nothing. On a Unix socket, because a TCP connection on
// loopback finds room for the goodbye even then. Not parallel: it measures time.
func TestContextAndCloseEndAWriteOverTLS(t *testing.T) {
	for name, end := range map[string]func(db *memcacheddriver.MemcachedDB, cancel func()){
		"cancelled": func(_ *memcacheddriver.MemcachedDB, cancel func()) { cancel() },
		"closed":    func(db *memcacheddriver.MemcachedDB, _ func()) { db.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			reading := make(chan struct{})
			dir, err := os.MkdirTemp("", "memcached") // t.TempDir's name is too long for a socket
			require.NoError(t, err)
			t.Cleanup(func() { os.RemoveAll(dir) })
			addr := filepath.Join(dir, "s")
			_, config := memcachedtest.StartFakeTLSOn(t, addr, memcachedtest.Script{
				"mn": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
					c.Say("MN\r\n")
					close(reading)
					c.Wait(nil)
				},
			})
			config.ServerName = "localhost"
			db := drivertest.Open(t, addr, driver.WithTLSConfig(config), memcacheddriver.WithTimeout(drivertest.Never))
			pairs := make(map[string][]byte) // more than all socket buffers hold
			for _, key := range drivertest.Keys(32) {
				pairs[key] = make([]byte, 900_000)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stored := make(chan error, 1)
			go func() { stored <- db.MSet(ctx, pairs, 0) }()
			<-reading
			time.Sleep(200 * time.Millisecond) // the buffers fill up
			start := time.Now()
			end(db, cancel)
			require.Error(t, <-stored)
			require.Less(t, time.Since(start), 4*time.Second, "crypto/tls waits 5 s for its goodbye")
		})
	}
}

// A caller's deadline is also the dialler's, which may notice it first: it must
// not count against the server then.
func TestContextDeadlineWhileDiallingIsNotTheServers(t *testing.T) {
	t.Parallel()
	db := openPatient(t, memcachedtest.BlackHole(t))
	var calls sync.WaitGroup
	for range 8 {
		calls.Go(func() {
			for range 100 {
				ctx, cancel := context.WithTimeout(context.Background(), rand.N(3*time.Millisecond))
				_, err := db.Get(ctx, "k")
				cancel()
				assert.ErrorIs(t, err, context.DeadlineExceeded)
			}
		})
	}
	calls.Wait()
	s := drivertest.Stat(t, db)
	assert.Equal(t, memcacheddriver.ServerUp, s.State)
	assert.Zero(t, s.DialErrors)
	assert.Zero(t, s.Timeouts)
}

// brokenClock is a context whose deadline has passed while it does not end, as of
// a clock that is a test's own.
type brokenClock struct{ context.Context }

func (brokenClock) Deadline() (time.Time, bool) { return time.Now().Add(-time.Second), true }

// What ends a call is the end of its context, whatever that says of its deadline,
// and else the driver's own timeouts.
func TestADeadlineThatPassesWithoutAnEndEndsNoCall(t *testing.T) {
	t.Parallel()
	fake := func(script memcachedtest.Script) string { return memcachedtest.StartFake(t, script).Addr() }
	silent := memcachedtest.Script{"*": memcachedtest.Hang}
	refuses := memcachedtest.StartFake(t, nil)
	refuses.Close()
	const d = 30 * time.Millisecond
	for name, c := range map[string]struct {
		addr string
		opts []driver.Option
		want string // "" is no error
	}{
		"a server":                          {addr: fake(nil)},
		"one that refuses":                  {addr: refuses.Addr(), want: "is memcached running there?"},
		"one that hangs up":                 {addr: fake(memcachedtest.Script{"*": memcachedtest.HangUp}), want: "the server closed the connection"},
		"one that is silent":                {addr: fake(silent), want: "timeout of 30ms"},
		"one that is silent over TLS":       {fake(silent), []driver.Option{driver.WithTLSConfig(&tls.Config{})}, "dial timeout of 30ms"},
		"one that is silent to who logs in": {fake(silent), []driver.Option{rightCredentials}, "dial timeout of 30ms"},
		"a black hole":                      {addr: memcachedtest.BlackHole(t), want: "dial timeout of 30ms"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opts := append(c.opts, memcacheddriver.WithTTLQuery(), memcacheddriver.WithServerFailureLimit(0, 0))
			if strings.Contains(c.want, "timeout") {
				opts = append(opts, driver.WithDialTimeout(d), memcacheddriver.WithTimeout(d))
			}
			db := drivertest.Open(t, c.addr, opts...)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			for _, call := range drivertest.Calls {
				if call.Name == "TTL" {
					continue // a machine that is too busy for the question does without meta
				}
				err := call.Run(brokenClock{ctx}, db, "k")
				if c.want == "" {
					assert.NoError(t, err, call.Name)
					continue
				}
				assert.ErrorContains(t, err, c.want, call.Name)
				assert.NotErrorIs(t, err, context.DeadlineExceeded, call.Name)
			}
			assert.Zero(t, drivertest.Stat(t, db).Cancelled)
		})
	}
}
