package memcacheddriver_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestCloseClosesAllConnections(t *testing.T) {
	t.Parallel()
	for name, start := range connRestarts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, opts := start(t)
			before := connBaseline(t, server)
			db := connOpen(t, server.Addr(), opts...)
			connFill(t, db, 8)
			_, err := db.Client().GetMulti([]string{"a", "b"})
			require.NoError(t, err)
			connPoll(t, "the server has eight", func() bool { return connCount(t, server) == before+8 })
			require.NoError(t, db.Close())
			connPoll(t, "the server has lost all", func() bool { return connCount(t, server) == before })
			require.NoError(t, db.Close(), "once more")
		})
	}
}

// Close cuts what hangs, wherever it does.
func TestCloseCutsWhatIsInFlight(t *testing.T) {
	t.Parallel()
	for name, hung := range connHung(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := hung(t)
			client := db.Client()
			calls := append(connCalls(), connCall{"native", func(context.Context, *memcacheddriver.MemcachedDB) error {
				_, err := client.Get("k")
				return err
			}}, connCall{"native GetMulti", func(context.Context, *memcacheddriver.MemcachedDB) error {
				_, err := client.GetMulti([]string{"k", "l"})
				return err
			}})
			type result struct {
				name string
				err  error
			}
			results := make(chan result, 2*len(calls))
			var begun atomic.Int32
			for i, call := range append(calls, calls...) {
				ctx := context.Background()
				if i%2 == 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithCancel(ctx)
					defer cancel()
				}
				go func() {
					begun.Add(1)
					results <- result{call.name, call.run(ctx, db)}
				}()
			}
			connPoll(t, "all have begun", func() bool { return int(begun.Load()) == 2*len(calls) })
			time.Sleep(20 * time.Millisecond) // most hang by now; what does not is refused
			start := time.Now()
			require.NoError(t, db.Close())
			for range 2 * len(calls) {
				select {
				case r := <-results:
					require.ErrorIs(t, r.err, memcacheddriver.ErrNotOpen, r.name)
				case <-time.After(never / 4):
					t.Fatal("a call outlived Close")
				}
			}
			require.Less(t, time.Since(start), 3*time.Second)
		})
	}
}

func TestCloseRefusesWhatComesLater(t *testing.T) {
	t.Parallel()
	server := connServe(t, connMiss)
	db := connOpen(t, server.addr(), memcacheddriver.WithTTLQuery())
	require.NoError(t, db.Ping(context.Background()))
	kept := db.Client()
	_, err := kept.Get("k")
	require.Equal(t, memcache.ErrCacheMiss, err)
	require.NoError(t, db.Close())
	_, before := server.got()
	for _, call := range connCalls() {
		require.ErrorIs(t, call.run(context.Background(), db), memcacheddriver.ErrNotOpen, call.name)
	}
	require.ErrorIs(t, db.Do(context.Background(), func(*memcache.Client) error {
		t.Error("called")
		return nil
	}), memcacheddriver.ErrNotOpen)
	for _, client := range []*memcache.Client{kept, db.Client()} {
		_, err := client.Get("k")
		require.ErrorIs(t, err, memcacheddriver.ErrNotOpen)
		require.ErrorIs(t, client.Set(&memcache.Item{Key: "k"}), memcacheddriver.ErrNotOpen)
		require.ErrorIs(t, client.Ping(), memcacheddriver.ErrNotOpen)
	}
	_, after := server.got()
	require.Equal(t, before, after)

	require.NoError(t, db.Open(context.Background(), server.addr()))
	require.NoError(t, db.Ping(context.Background()), "it can be opened again")
	_, err = kept.Get("k")
	require.ErrorIs(t, err, memcacheddriver.ErrNotOpen, "but not the client of before")
}

// Close in the middle of a Do: the rest of it fails.
func TestCloseWithinDo(t *testing.T) {
	t.Parallel()
	db := connOpen(t, memcachedtest.Start(t).Addr())
	err := db.Do(context.Background(), func(c *memcache.Client) error {
		if err := c.Set(&memcache.Item{Key: "k", Value: []byte("v")}); err != nil {
			return err
		}
		db.Close()
		for range 3 {
			if _, err := c.Get("k"); !errors.Is(err, memcacheddriver.ErrNotOpen) {
				t.Errorf("Get behind Close: %v", err)
			}
		}
		return nil
	})
	require.NoError(t, err)
}

// Open and Close while calls run and dial: none fails otherwise than by being
// closed, and no connection is left behind.
func TestCloseRacesWithCalls(t *testing.T) {
	t.Parallel()
	a := memcachedtest.Start(t)
	b, config := memcachedtest.StartTLS(t)
	for server, opts := range map[*memcachedtest.Server][]driver.Option{a: nil, b: {driver.WithTLSConfig(config)}} {
		before := connBaseline(t, server)
		db := memcacheddriver.New()
		done := make(chan struct{})
		var callers sync.WaitGroup
		var succeeded atomic.Int32
		for i := range 8 {
			callers.Go(func() {
				all := connCalls()
				for n := i; ; n++ {
					select {
					case <-done:
						return
					default:
					}
					var err error
					if n%4 == 0 {
						_, err = db.Client().Get("k")
						if err == memcache.ErrCacheMiss {
							err = nil
						}
					} else {
						err = all[n%len(all)].run(context.Background(), db)
					}
					switch {
					case err == nil:
						succeeded.Add(1)
					case errors.Is(err, memcacheddriver.ErrNotOpen), err == kv.ErrNotFound, errors.Is(err, kv.ErrConflict), errors.Is(err, kv.ErrNotSupported):
					default:
						t.Errorf("%s: %v", all[n%len(all)].name, err)
						return
					}
				}
			})
		}
		for range 60 {
			require.NoError(t, db.Open(context.Background(), server.Addr()+"?ttl_query=true", opts...))
			time.Sleep(3 * time.Millisecond)
			require.NoError(t, db.Close())
		}
		close(done)
		callers.Wait()
		require.NotZero(t, succeeded.Load())
		connPoll(t, "the server has lost all connections", func() bool { return connCount(t, server) == before })
	}
}

// A store closes its driver, and Close names no connection error.
func TestCloseOfTheStore(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	before := connBaseline(t, server)
	store, err := memcacheddriver.OpenStore(context.Background(), server.Addr())
	require.NoError(t, err)
	require.NoError(t, store.Set(context.Background(), "k", "v"))
	client := memcacheddriver.UnwrapClient(store)
	require.NoError(t, store.Close())
	_, err = client.Get("k")
	require.ErrorIs(t, err, memcacheddriver.ErrNotOpen)
	require.False(t, strings.Contains(err.Error(), "use of closed"), "%v", err)
	connPoll(t, "the server has lost all", func() bool { return connCount(t, server) == before })
}
