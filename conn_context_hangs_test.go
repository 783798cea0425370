package memcacheddriver_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// connHung are servers that hang, in all ways that a server can, and the
// options to reach them.
func connHung(t *testing.T) map[string]func(t *testing.T) *memcacheddriver.MemcachedDB {
	open := func(t *testing.T, addr string, opts ...driver.Option) *memcacheddriver.MemcachedDB {
		opts = append(opts, memcacheddriver.WithTTLQuery(), memcacheddriver.WithTimeout(never), driver.WithDialTimeout(never))
		return connOpen(t, addr, opts...)
	}
	return map[string]func(t *testing.T) *memcacheddriver.MemcachedDB{
		"a stopped server": func(t *testing.T) *memcacheddriver.MemcachedDB {
			server := memcachedtest.Start(t)
			db := open(t, server.Addr())
			server.Stop()
			return db
		},
		"a stopped server with idle connections": func(t *testing.T) *memcacheddriver.MemcachedDB {
			server := memcachedtest.Start(t)
			db := open(t, server.Addr())
			_, err := db.Exists(context.Background(), "k")
			require.NoError(t, err)
			connFill(t, db, 8)
			server.Stop()
			return db
		},
		"a stopped server over TLS": func(t *testing.T) *memcacheddriver.MemcachedDB {
			server, config := memcachedtest.StartTLS(t)
			db := open(t, server.Addr(), driver.WithTLSConfig(config))
			_, err := db.Exists(context.Background(), "k")
			require.NoError(t, err)
			connFill(t, db, 8)
			server.Stop()
			return db
		},
		"connecting": func(t *testing.T) *memcacheddriver.MemcachedDB {
			return open(t, connBlackHole(t))
		},
		"the TLS handshake": func(t *testing.T) *memcacheddriver.MemcachedDB {
			return open(t, connServe(t, connHang).addr(), driver.WithTLSConfig(&tls.Config{}))
		},
		"authentication": func(t *testing.T) *memcacheddriver.MemcachedDB {
			return open(t, connServe(t, connHang).addr(), memcacheddriver.WithCredentials("user", "password"))
		},
		"the answer to the credentials": func(t *testing.T) *memcacheddriver.MemcachedDB {
			server := connServe(t, func(c net.Conn, r *bufio.Reader) {
				if _, err := r.ReadString('\n'); err == nil {
					fmt.Fprint(c, "CLIENT_ERROR unauthenticated\r\n")
				}
				connHang(c, r)
			})
			return open(t, server.addr(), memcacheddriver.WithCredentials("user", "password"))
		},
	}
}

// Not parallel: it measures time.
func TestContextEndsEveryCallThatHangs(t *testing.T) {
	const (
		tries  = 5
		rounds = 4 // a busy machine gets another chance for the median
	)
	for name, hung := range connHung(t) {
		t.Run(name, func(t *testing.T) {
			db := hung(t)
			for i, call := range connCalls() {
				end := connEnds[i%len(connEnds)]
				var median time.Duration
				for range rounds {
					var late []time.Duration
					for range tries {
						const d = 3 * time.Millisecond
						start := time.Now()
						ctx, stop := end.make(d)
						err := call.run(ctx, db)
						over := time.Since(start) - d
						require.ErrorIs(t, err, ctx.Err(), "%s, %s", call.name, end.name)
						require.ErrorIs(t, err, end.err, "%s, %s", call.name, end.name)
						stop()
						require.Less(t, over, 500*time.Millisecond, "%s came back late", call.name)
						late = append(late, over)
					}
					slices.Sort(late)
					if median = late[tries/2]; median < 20*time.Millisecond {
						break
					}
				}
				assert.Less(t, median, 20*time.Millisecond, "median lateness of %s", call.name)
			}
			connRequireIdle(t, db)
			s := connStats(t, db)
			assert.Equal(t, memcacheddriver.ServerUp, s.State, "the caller's deadlines counted against the server")
			assert.Zero(t, s.DialErrors)
			assert.Zero(t, s.Timeouts)
			assert.GreaterOrEqual(t, s.Cancelled, uint64(len(connCalls())*tries/2)) // some end before they reach it
		})
	}
}

// A TLS connection says goodbye when it is closed, which must not wait for a
// server that reads nothing. On a Unix socket, because a TCP connection on
// loopback finds room for the goodbye even then. Not parallel: it measures time.
func TestContextEndsAWriteOverTLS(t *testing.T) {
	for name, end := range map[string]func(db *memcacheddriver.MemcachedDB, cancel func()){
		"cancelled": func(_ *memcacheddriver.MemcachedDB, cancel func()) { cancel() },
		"closed":    func(db *memcacheddriver.MemcachedDB, _ func()) { db.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			db := connOpen(t, connServeTLSAndStop(t), driver.WithTLSConfig(&tls.Config{InsecureSkipVerify: true}),
				memcacheddriver.WithTimeout(never))
			pairs := make(map[string][]byte) // more than all socket buffers hold
			for i := range 32 {
				pairs[fmt.Sprint("k", i)] = make([]byte, 900_000)
			}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			var ended time.Time
			timer := time.AfterFunc(200*time.Millisecond, func() {
				ended = time.Now()
				end(db, cancel)
			})
			defer timer.Stop()
			require.Error(t, db.MSet(ctx, pairs, 0))
			require.Less(t, time.Since(ended), time.Second)
		})
	}
}

// connServeTLSAndStop starts a server on a Unix socket that does the handshake
// and then reads nothing.
func connServeTLSAndStop(t *testing.T) (addr string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "memcached") // a short name: it has to fit
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	addr = filepath.Join(dir, "s")
	ln, err := net.Listen("unix", addr)
	require.NoError(t, err)
	certificate := httptest.NewTLSServer(nil)
	config := certificate.TLS.Clone()
	config.NextProtos = nil
	certificate.Close()
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			if err := tls.Server(c, config).Handshake(); err != nil {
				t.Error(err)
			}
		}
	})
	t.Cleanup(func() {
		ln.Close()
		running.Wait()
	})
	return addr
}

// A caller's deadline is also the dialler's, which may notice it first: it must
// not count against the server then.
func TestContextDeadlineWhileDiallingIsNotTheServers(t *testing.T) {
	t.Parallel()
	db := connOpen(t, connBlackHole(t), memcacheddriver.WithServerFailureLimit(1, never))
	var calls sync.WaitGroup
	for range 8 {
		calls.Go(func() {
			for range 100 {
				d := time.Duration(rand.IntN(3000)) * time.Microsecond
				ctx, cancel := context.WithTimeout(context.Background(), d)
				_, err := db.Get(ctx, "k")
				cancel()
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Get with a deadline of %v: %v", d, err)
					return
				}
			}
		})
	}
	calls.Wait()
	s := connStats(t, db)
	assert.Equal(t, memcacheddriver.ServerUp, s.State)
	assert.Zero(t, s.DialErrors)
	assert.Zero(t, s.Timeouts)
}

// GetMulti moves the deadline forward for every value that comes: it must not
// undo the abort.
func TestContextEndsAGetMultiThatMoves(t *testing.T) {
	t.Parallel()
	server := connServe(t, func(c net.Conn, r *bufio.Reader) {
		line, err := r.ReadString('\n')
		for i := 0; err == nil; i++ {
			_, err = fmt.Fprintf(c, "VALUE %s 0 1 1\r\nv\r\n", strings.Fields(line)[1+i%500])
			time.Sleep(time.Millisecond)
		}
	})
	keys := make([]string, 500)
	for i := range keys {
		keys[i] = fmt.Sprint("k", i)
	}
	db := connOpen(t, server.addr(), memcacheddriver.WithTimeout(never))
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
			require.Less(t, time.Since(start), 5*time.Second, name)
		}
	}
	connRequireIdle(t, db)
}
