package pool_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// requireRefused checks the error of a client whose Do is over.
func requireRefused(t *testing.T, err error, what string) {
	t.Helper()
	require.ErrorIs(t, err, net.ErrClosed, what)
	require.ErrorContains(t, err, "after its function had returned", what)
	require.NotErrorIs(t, err, context.Canceled, what)
}

// However the function ended, and whether or not it had used the client.
func TestTheClientOfADoIsRefusedAfterIt(t *testing.T) {
	t.Parallel()
	item := &memcache.Item{Key: "k", Value: []byte("v")}
	uses := map[string]func(c *memcache.Client) error{
		"Get":      func(c *memcache.Client) error { _, err := c.Get("k"); return err },
		"Set":      func(c *memcache.Client) error { return c.Set(item) },
		"GetMulti": func(c *memcache.Client) error { _, err := c.GetMulti([]string{"k", "l"}); return err },
		"Ping":     (*memcache.Client).Ping,
	}
	var cancel func()
	for name, end := range map[string]func() error{
		"it returns":              func() error { return nil },
		"it fails":                func() error { return errors.New("mine") },
		"its context ends":        func() error { cancel(); return nil },
		"it panics":               func() error { panic("mine") },
		"it calls runtime.Goexit": func() error { runtime.Goexit(); return nil },
	} {
		for _, used := range []bool{true, false} {
			server := memcachedtest.StartFake(t, nil)
			db := drivertest.Open(t, server.Addr(), memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
			drivertest.Fill(t, db, 1)
			var kept *memcache.Client
			var ctx context.Context
			ctx, cancel = context.WithCancel(t.Context())
			var do sync.WaitGroup
			do.Go(func() {
				defer func() { _ = recover() }()
				_ = db.Do(ctx, func(c *memcache.Client) error {
					kept = c
					if used {
						assert.NoError(t, uses["Set"](c))
					}
					return end()
				})
			})
			do.Wait()
			cancel()
			drivertest.RequireIdle(t, db)
			stats, received := drivertest.Stat(t, db), server.Received()
			for what, use := range uses {
				for range 2 {
					requireRefused(t, use(kept), name+", "+what)
				}
			}
			require.Equal(t, stats, drivertest.Stat(t, db), "%s: a refused call was counted, or took a connection", name)
			require.Equal(t, received, server.Received(), name)
			require.NoError(t, db.Ping(t.Context()), name)
		}
	}
}

// What a goroutine waits for on the network when the function returns is cut off,
// and its connection is closed.
func TestTheClientOfADoIsCutOffByItsReturn(t *testing.T) {
	t.Parallel()
	for name, open := range openHung {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := open(t)
			before := drivertest.Stat(t, db)
			left := make(chan error, 1)
			start := time.Now()
			require.NoError(t, db.Do(t.Context(), func(c *memcache.Client) error {
				go func() {
					_, err := c.Get("k")
					left <- err
				}()
				memcachedtest.Eventually(t, func() bool {
					s := drivertest.Stat(t, db)
					return s.Dials+uint64(s.InUse) > before.Dials
				}, "it has a connection, or makes one")
				time.Sleep(rest) // it hangs by now
				return nil
			}))
			drivertest.RequireIdle(t, db)
			requireRefused(t, <-left, name)
			require.Less(t, time.Since(start), drivertest.Never/4)
			s := drivertest.Stat(t, db)
			assert.Equal(t, memcacheddriver.ServerUp, s.State, "the end of a Do counted against the server")
			assert.Zero(t, s.DialErrors)
			assert.Zero(t, s.Timeouts)
			assert.LessOrEqual(t, s.Idle, max(before.Idle-1, 0), "a connection in the middle of a reply was given back")
		})
	}
}

// Goroutines that are left behind by contexts that end and by functions that
// return reach no other call's replies, and keep no connection.
func TestClientsLeftBehindHurtNobody(t *testing.T) {
	t.Parallel()
	db := drivertest.Open(t, memcachedtest.Start(t).Addr())
	value := func(c *memcache.Client, key string) error {
		item, err := c.Get(key)
		if err == nil && string(item.Value) != string(drivertest.Value(key)) {
			t.Errorf("the value of %s is %q", key, item.Value)
		}
		return err
	}
	left, stop := sync.WaitGroup{}, make(chan struct{})
	var lenders, others sync.WaitGroup
	for range 4 {
		lenders.Go(func() {
			for end := time.Now().Add(2 * drivertest.Soak(t)); time.Now().Before(end); {
				ctx, cancel := context.WithTimeout(t.Context(), rand.N(2*time.Millisecond))
				_ = db.Do(ctx, func(c *memcache.Client) error {
					for range 3 {
						left.Go(func() {
							key := drivertest.Key()
							for err := error(nil); err == nil; {
								if err = c.Set(&memcache.Item{Key: key, Value: drivertest.Value(key)}); err == nil {
									err = value(c, key)
								}
								if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, context.DeadlineExceeded) {
									t.Errorf("left behind: %v", err)
								}
								if rand.IntN(2) == 0 {
									time.Sleep(rand.N(2 * time.Millisecond))
								}
							}
						})
					}
					switch rand.IntN(3) {
					case 0:
						<-ctx.Done()
					case 1:
						time.Sleep(rand.N(time.Millisecond))
					}
					return nil
				})
				cancel()
			}
		})
		others.Go(func() {
			key := drivertest.Key()
			for {
				select {
				case <-stop:
					return
				default:
				}
				if !assert.NoError(t, db.Set(t.Context(), key, drivertest.Value(key), 0)) {
					return
				}
				values, err := db.MGet(t.Context(), []string{key, key})
				assert.NoError(t, err)
				assert.Equal(t, 2, drivertest.AssertValues(t, []string{key, key}, values))
				assert.NoError(t, db.Do(t.Context(), func(c *memcache.Client) error { return value(c, key) }))
			}
		})
	}
	lenders.Wait()
	left.Wait()
	close(stop)
	others.Wait()
	drivertest.RequireIdle(t, db)
	assert.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
}

// A client that is left behind is refused without end, and without leaving anything.
func TestRefusalsOfAClientLeftBehindAreForgotten(t *testing.T) {
	db := drivertest.Open(t, memcachedtest.StartFake(t, nil).Addr())
	var client *memcache.Client
	require.NoError(t, db.Do(t.Context(), func(c *memcache.Client) error { client = c; return nil }))
	assert.Less(t, drivertest.AllocatedBy(func() {
		for range 10_000 {
			_, err := client.Get("k")
			require.ErrorIs(t, err, net.ErrClosed)
		}
	}), 10_000*2048, "10 KB of buffers are made for each")
}

// The reply to the second one reaches no other call.
func TestRequestsThatADoPipelinesByHand(t *testing.T) {
	t.Parallel()
	goOn := make(chan struct{})
	f := memcachedtest.StartFake(t, memcachedtest.Script{"delete": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		switch cmd.Args[0] {
		case "second":
			c.Wait(goOn)
			c.Say("DELETED\r\n")
		case "first":
			c.Say("DELETED\r\n")
		default:
			c.Say("NOT_FOUND\r\n")
		}
	}})
	db := drivertest.Open(t, f.Addr(), memcacheddriver.WithMaxOpenConns(1))
	addr := drivertest.Stat(t, db).Addr
	_ = db.Do(t.Context(), func(c *memcache.Client) error {
		conn, err := c.DialContext(t.Context(), "tcp", addr)
		if err != nil {
			return err
		}
		if _, err := conn.Write([]byte("delete first\r\ndelete second\r\n")); err == nil {
			_, _ = conn.Read(make([]byte, 64))
		}
		other := make(chan error)
		go func() { other <- db.Client().Delete("third") }()
		time.Sleep(rest)
		close(goOn)
		assert.Equal(t, memcache.ErrCacheMiss, <-other)
		return nil
	})
}
