package memcacheddriver_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// A call that picked its server before it left and came back leaves nothing behind that
// leads later ones elsewhere.
func TestACallOutlivesItsServersAbsence(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	answer := make(chan struct{})
	fake := memcachedtest.StartFake(t, memcachedtest.Script{
		"ms": memcachedtest.Say("HD c7\r\n"),
		"mg": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
			asked.Add(1)
			c.Wait(answer)
			c.Say("EN\r\n")
		},
	})
	other := memcachedtest.StartFake(t, nil)
	db := drivertest.Open(t, fake.Addr())
	require.NoError(t, db.Set(t.Context(), "k", []byte("v"), 30*time.Millisecond))
	memcachedtest.Eventually(t, func() bool { return asked.Load() == 1 }, "the remover asks")
	var calls sync.WaitGroup
	for range 6 {
		calls.Go(func() { _, _ = db.Get(t.Context(), "k") })
	}
	memcachedtest.Eventually(t, func() bool { return asked.Load() == 7 }, "the calls remove what is over first")
	require.NoError(t, db.SetServers(other.Addr()))
	require.NoError(t, db.SetServers(fake.Addr()))
	close(answer)
	calls.Wait()

	before := fake.Accepted()
	for range 50 {
		_, err := db.Get(t.Context(), "k")
		require.Equal(t, kv.ErrNotFound, err)
	}
	require.LessOrEqual(t, fake.Accepted()-before, 1)
}

// A server that comes back while calls are under way on it has no more connections than it
// may have.
func TestAServerThatComesBackKeepsTheLimit(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	answer := make(chan struct{})
	fake := memcachedtest.StartFake(t, memcachedtest.Script{"delete": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
		asked.Add(1)
		c.Wait(answer)
		c.Say("DELETED\r\n")
	}})
	other := memcachedtest.StartFake(t, nil)
	db := drivertest.Open(t, fake.Addr(), memcacheddriver.WithMaxOpenConns(2))
	var calls sync.WaitGroup
	for i := range 5 {
		for range 4 {
			calls.Go(func() { _, _ = db.Delete(t.Context(), "k", "l") })
		}
		memcachedtest.Eventually(t, func() bool { return asked.Load() >= 2 }, "two have a connection each")
		time.Sleep(20 * time.Millisecond) // the others wait, or would have one, too
		if i < 4 {
			require.NoError(t, db.SetServers(other.Addr()))
			require.NoError(t, db.SetServers(fake.Addr()))
		}
	}
	open := fake.Open()
	close(answer)
	calls.Wait()
	require.Equal(t, 2, open)
}

func TestChangesFailNoCallOfAServerWithALimit(t *testing.T) {
	t.Parallel()
	a, b := memcachedtest.Start(t, "-c", "100"), memcachedtest.Start(t)
	db := drivertest.Open(t, a.Addr()+","+b.Addr(), memcacheddriver.WithMaxOpenConns(64))
	keys := drivertest.Keys(20)
	pairs := make(map[string][]byte)
	for _, k := range keys {
		pairs[k] = make([]byte, 10<<10)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	var calls, failed atomic.Int32
	for range 256 {
		callers.Go(func() {
			for ctx.Err() == nil {
				calls.Add(1)
				if err := db.MSet(context.Background(), pairs, time.Hour); err != nil {
					failed.Add(1)
				}
			}
		})
	}
	for range 60 {
		time.Sleep(30 * time.Millisecond)
		require.NoError(t, db.SetServers(b.Addr()))
		require.NoError(t, db.SetServers(a.Addr()+","+b.Addr()))
	}
	cancel()
	callers.Wait()
	require.Zero(t, failed.Load(), "of %d", calls.Load())
}

// A value under a second ends in time on a server that is away meanwhile.
func TestAValueUnderASecondOfAServerThatComesBack(t *testing.T) {
	t.Parallel()
	_, addrs := drivertest.StartServers(t, 2)
	db := drivertest.Open(t, addrs[0])
	require.NoError(t, db.Set(t.Context(), "k", []byte("v"), 50*time.Millisecond))
	backstop := time.Now().Add(1500 * time.Millisecond) // its server would end it after 2 to 3 s
	require.NoError(t, db.SetServers(addrs[1]))
	require.NoError(t, db.SetServers(addrs[0]))
	memcachedtest.Eventually(t, func() bool {
		_, there := drivertest.ServerTTL(t, addrs[0], "k")
		return !there
	}, "it is removed")
	require.True(t, time.Now().Before(backstop), "by the driver")
	_, err := db.Get(t.Context(), "k")
	require.Equal(t, kv.ErrNotFound, err)
}

// Close cuts what is under way on servers that have left, too.
func TestCloseWhileServersChange(t *testing.T) {
	t.Parallel()
	slow := func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		switch n := rand.IntN(100); {
		case n == 0:
			c.Hang()
		case n < 10:
			time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
		}
		c.Default(cmd)
	}
	var fakes []*memcachedtest.Fake
	for range 3 {
		fakes = append(fakes, memcachedtest.StartFake(t, memcachedtest.Script{"get": slow, "gets": slow, "delete": slow, "set": slow, "mg": slow, "ms": slow, "md": slow}))
	}
	a, b, c := fakes[0].Addr(), fakes[1].Addr(), fakes[2].Addr()
	lists := []string{a, b, c, a + "," + b, b + ":3," + c, c + "," + b + "," + a}
	end := time.Now().Add(2 * time.Second)
	for time.Now().Before(end) {
		db := memcacheddriver.New()
		require.NoError(t, db.Open(context.Background(), a, memcacheddriver.WithTTLQuery(), memcacheddriver.WithTimeout(drivertest.Never), driver.WithDialTimeout(drivertest.Never)))
		var all sync.WaitGroup
		stop := make(chan struct{})
		client := db.Client()
		for range 20 {
			all.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					call := drivertest.Calls[rand.IntN(len(drivertest.Calls))]
					_ = call.Run(context.Background(), db, drivertest.Key())
					_, _ = client.GetMulti([]string{"a", "b", "c"})
					_ = db.Do(context.Background(), func(c *memcache.Client) error { _, err := c.Get("k"); return err })
				}
			})
		}
		for range 3 {
			all.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					_ = db.SetServers(lists[rand.IntN(len(lists))])
					time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
				}
			})
		}
		time.Sleep(time.Duration(rand.IntN(30)) * time.Millisecond)
		require.NoError(t, db.Close())
		close(stop)
		drivertest.NoDeadlock("what Close cuts", all.Wait)
		memcachedtest.Eventually(t, func() bool { return fakes[0].Open()+fakes[1].Open()+fakes[2].Open() == 0 }, "all sockets are closed")
	}
}
