package pool_test

import (
	"context"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestCloseClosesAllConnections(t *testing.T) {
	t.Parallel()
	for name, start := range ways {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, opts := start(t)
			count := drivertest.Connections(t, server)
			db := drivertest.Open(t, server.Addr(), opts...)
			drivertest.Fill(t, db, 8)
			_, err := db.Client().GetMulti([]string{"a", "b"})
			require.NoError(t, err)
			memcachedtest.Eventually(t, func() bool { return count() == 8 }, "the server has eight")
			require.NoError(t, db.Close())
			memcachedtest.Eventually(t, func() bool { return count() == 0 }, "the server has lost all")
			require.NoError(t, db.Close(), "once more")
		})
	}
}

func TestCloseCutsWhatIsInFlight(t *testing.T) {
	t.Parallel()
	for name, open := range openHung {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := open(t)
			client := db.Client()
			calls := append([]drivertest.Call{
				{Name: "native Get", Run: func(context.Context, *memcacheddriver.MemcachedDB, string) error {
					_, err := client.Get("k")
					return err
				}},
				{Name: "native GetMulti", Run: func(context.Context, *memcacheddriver.MemcachedDB, string) error {
					_, err := client.GetMulti([]string{"k", "l"})
					return err
				}},
			}, drivertest.Calls...)
			type result struct {
				name string
				err  error
			}
			results := make(chan result, 2*len(calls))
			begun := make(chan struct{}, 2*len(calls))
			cancellable, cancel := context.WithCancel(context.Background())
			defer cancel()
			for _, call := range calls {
				for _, ctx := range []context.Context{context.Background(), cancellable} {
					go func() {
						begun <- struct{}{}
						results <- result{call.Name, call.Run(ctx, db, "k")}
					}()
				}
			}
			for range 2 * len(calls) {
				<-begun
			}
			time.Sleep(2 * rest) // most hang by now; what does not is refused
			require.NoError(t, db.Close())
			for range 2 * len(calls) {
				select {
				case r := <-results:
					assert.ErrorIs(t, r.err, memcacheddriver.ErrNotOpen, r.name)
				case <-time.After(drivertest.Never / 4):
					t.Fatal("a call outlived Close")
				}
			}
		})
	}
}

// The rest of a Do in which Close comes fails.
func TestCloseWithinDo(t *testing.T) {
	t.Parallel()
	db := drivertest.Open(t, memcachedtest.StartFake(t, nil).Addr())
	require.NoError(t, db.Do(t.Context(), func(c *memcache.Client) error {
		if err := c.Set(&memcache.Item{Key: "k", Value: []byte("v")}); err != nil {
			return err
		}
		require.NoError(t, db.Close())
		for range 3 {
			_, err := c.Get("k")
			assert.ErrorIs(t, err, memcacheddriver.ErrNotOpen)
		}
		return nil
	}))
}
