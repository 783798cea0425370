package memcacheddriver_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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

// Calls of all kinds from many goroutines while the list changes all the time: none
// fails, none gets another key's value, and who has left keeps no connection.
func TestSetServersUnderLoad(t *testing.T) {
	t.Parallel()
	for _, distribution := range []memcacheddriver.Distribution{memcacheddriver.Modulo, memcacheddriver.Ketama} {
		t.Run(string(distribution), func(t *testing.T) {
			t.Parallel()
			servers, addrs := drivertest.StartServers(t, 4)
			counts := connections(t, servers)
			db := drivertest.Open(t, addrs[0], memcacheddriver.WithDistribution(distribution), memcacheddriver.WithTTLQuery())
			lists := []string{
				addrs[0], addrs[0] + "," + addrs[1], strings.Join(addrs, ","), strings.Join(addrs[1:], ","),
				addrs[3] + ":3," + addrs[0], addrs[0] + "," + addrs[0] + "," + addrs[2], addrs[1],
			}
			load(t, db, func() {
				for until := time.Now().Add(3 * time.Second); time.Now().Before(until); {
					require.NoError(t, db.SetServers(lists[rand.IntN(len(lists))]))
					time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
				}
				require.NoError(t, db.SetServers(addrs[0]+","+addrs[1]))
				for _, left := range counts[2:] {
					memcachedtest.Eventually(t, func() bool { return left() == 0 }, "no connection is left to a server that left, under load")
				}
			})
		})
	}
}

func connections(t *testing.T, servers []*memcachedtest.Server) (counts []func() int) {
	for _, s := range servers {
		counts = append(counts, drivertest.Connections(t, s))
	}
	return counts
}

// load has many callers while fn runs, none of which fails.
func load(t *testing.T, db *memcacheddriver.MemcachedDB, fn func()) {
	keys := drivertest.Keys(200)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var callers sync.WaitGroup
	var calls atomic.Int64
	for range 24 {
		callers.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				useAll(t, db, keys)
				calls.Add(1)
			}
		})
	}
	fn()
	cancel()
	callers.Wait()
	require.GreaterOrEqual(t, calls.Load(), int64(24), "each has called all the while")
	drivertest.RequireIdle(t, db)
}

// useAll does every call there is, for one key and for many.
func useAll(t *testing.T, db *memcacheddriver.MemcachedDB, keys []string) {
	ctx := context.Background()
	number := drivertest.Key()
	for _, call := range drivertest.Calls {
		if err := call.Run(ctx, db, number); err != nil && !errors.Is(err, kv.ErrConflict) {
			t.Errorf("%s: %v", call.Name, err)
		}
	}
	some := make([]string, 8)
	for i := range some {
		some[i] = keys[rand.IntN(len(keys))]
	}
	err := db.MSet(ctx, drivertest.Pairs(some), time.Hour)
	assert.NoError(t, err)
	values, err := db.MGet(ctx, some)
	assert.NoError(t, err)
	drivertest.AssertValues(t, some, values)
	for _, key := range some {
		value, err := db.Get(ctx, key)
		if err != kv.ErrNotFound && assert.NoError(t, err) {
			assert.Equal(t, string(drivertest.Value(key)), string(value))
		}
	}
	items, err := db.Client().GetMulti(some)
	assert.NoError(t, err)
	for key, item := range items {
		assert.Equal(t, string(drivertest.Value(key)), string(item.Value))
	}
}

// Sockets, health, counters and what is remembered for a server outlive a change.
func TestSetServersKeepsWhoStays(t *testing.T) {
	t.Parallel()
	servers, addrs := drivertest.StartServers(t, 3)
	logged := drivertest.NewLog()
	db := drivertest.Open(t, addrs[0], memcacheddriver.WithServerFailureLimit(1, drivertest.Never), driver.WithLogger(logged))
	drivertest.Fill(t, db, 5)
	before := db.Stats()[0]

	require.NoError(t, db.SetServers(addrs[1]+","+addrs[0]))
	logged.Await(t, 1, "info", "2 servers from now on; came: "+addrs[1]+"; left: none")
	require.Equal(t, before, db.Stats()[1])
	require.Equal(t, memcacheddriver.ServerStats{Addr: addrs[1], State: memcacheddriver.ServerUp}, drivertest.ConnStats(db)[0])

	servers[0].Kill()
	require.Error(t, db.Ping(t.Context()))
	require.Equal(t, memcacheddriver.ServerDown, db.Stats()[1].State)
	require.NoError(t, db.SetServers(addrs[0]+":2,"+addrs[2]))
	logged.Await(t, 1, "info", "2 servers from now on; came: "+addrs[2]+"; left: "+addrs[1])
	require.Equal(t, memcacheddriver.ServerDown, db.Stats()[0].State)
	require.Equal(t, before.Dials+1, db.Stats()[0].Dials)

	require.NoError(t, db.SetServers(addrs[1]))
	require.NoError(t, db.SetServers(addrs[0]))
	require.Equal(t, memcacheddriver.ServerUp, db.Stats()[0].State, "who comes back is taken to be well")
}

// A value under a second of a server that stays is removed in time, and none of its
// calls sees it, though its key belongs to another server meanwhile.
func TestSetServersKeepsWhatIsToBeRemoved(t *testing.T) {
	t.Parallel()
	_, addrs := drivertest.StartServers(t, 2)
	db := drivertest.Open(t, addrs[0])
	key := drivertest.KeysOf(t, addrs, 1)[1][0]
	require.NoError(t, db.Set(t.Context(), key, []byte("v"), 50*time.Millisecond))
	require.NoError(t, db.SetServers(strings.Join(addrs, ",")))
	memcachedtest.Eventually(t, func() bool {
		_, ok := drivertest.ServerTTL(t, addrs[0], key)
		return !ok
	}, "it is removed from where it was written")
	require.NoError(t, db.SetServers(addrs[0]))
	_, err := db.Get(t.Context(), key)
	require.Equal(t, kv.ErrNotFound, err)
}

// What is under way ends where it began, without a connection being kept.
func TestACallEndsOnTheServerThatLeft(t *testing.T) {
	t.Parallel()
	asked, answer := make(chan bool), make(chan struct{})
	slow := memcachedtest.StartFake(t, memcachedtest.Script{"gets": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
		asked <- true
		c.Wait(answer)
		c.Say(memcachedtest.Value("k", "old") + "END\r\n")
	}})
	server := memcachedtest.StartFake(t, memcachedtest.Script{"gets": memcachedtest.Say(memcachedtest.Value("k", "new") + "END\r\n")})
	db := drivertest.Open(t, slow.Addr())
	client := db.Client()
	results := make(chan string, 3)
	result := func(value []byte, err error) {
		assert.NoError(t, err)
		results <- string(value)
	}
	go func() { result(db.Get(t.Context(), "k")) }()
	<-asked
	go func() {
		item, err := client.Get("k")
		result(item.Value, err)
	}()
	<-asked
	proceed := make(chan bool)
	go func() {
		_ = db.Do(t.Context(), func(c *memcache.Client) error {
			item, err := c.Get("k")
			result(item.Value, err)
			<-proceed
			item, err = c.Get("k")
			result(item.Value, err)
			return err
		})
	}()
	<-asked
	require.NoError(t, db.SetServers(server.Addr()))
	value, err := db.Get(t.Context(), "k")
	require.NoError(t, err)
	require.Equal(t, "new", string(value))
	item, err := client.Get("k")
	require.NoError(t, err)
	require.Equal(t, "new", string(item.Value))
	close(answer)
	for range 3 {
		require.Equal(t, "old", <-results)
	}
	proceed <- true
	require.Equal(t, "new", <-results, "a Do follows")
	memcachedtest.Eventually(t, func() bool { return slow.Open() == 0 }, "no connection is left")
	drivertest.RequireIdle(t, db)
}

// The CAS number of one server means nothing to another one.
func TestASwapDoesNotOutliveItsServer(t *testing.T) {
	t.Parallel()
	_, addrs := drivertest.StartServers(t, 2)
	db, other := drivertest.Open(t, addrs[0]), drivertest.Open(t, addrs[1])
	key := drivertest.Key()
	require.NoError(t, db.Set(t.Context(), key, []byte("1"), 0)) // both have the same number
	require.NoError(t, other.Set(t.Context(), key, []byte("5"), 0))
	err := db.CompareAndSwap(t.Context(), key, func([]byte) ([]byte, error) {
		return []byte("2"), db.SetServers(addrs[1])
	})
	require.ErrorIs(t, err, kv.ErrConflict)
	require.Equal(t, []string{key}, drivertest.RequireOpError(t, err).Keys)
	for db, want := range map[*memcacheddriver.MemcachedDB]string{db: "5", drivertest.Open(t, addrs[0]): "1"} {
		value, err := db.Get(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, want, string(value))
	}
}

// A client's connection to a server that has left and come back is to the one that came.
func TestTheNativeClientFollows(t *testing.T) {
	t.Parallel()
	_, addrs := drivertest.StartServers(t, 2)
	db := drivertest.Open(t, addrs[0])
	client := db.Client()
	key := drivertest.Key()
	for round := range uint64(3) {
		for _, addr := range addrs {
			require.NoError(t, db.SetServers(addr))
			require.NoError(t, client.Set(&memcache.Item{Key: key, Value: []byte(addr)}))
			item, err := client.Get(key)
			require.NoError(t, err)
			require.Equal(t, addr, string(item.Value))
			_, stored := drivertest.ServerTTL(t, addr, key)
			require.True(t, stored, "it is there")
			require.Equal(t, round+1, drivertest.Stat(t, db).Dials)
		}
	}
	require.NoError(t, db.Close())
	_, err := client.Get(key)
	require.ErrorIs(t, err, memcacheddriver.ErrNotOpen)
}

func TestSetServersRefusesNonsense(t *testing.T) {
	t.Parallel()
	db := memcacheddriver.New()
	require.ErrorIs(t, db.SetServers("mc1"), memcacheddriver.ErrNotOpen)
	require.NoError(t, db.Open(t.Context(), "memcached://ann:secret@localhost:1"))
	for servers, want := range map[string]error{
		"":                     memcacheddriver.ErrInvalidDSN,
		"mc1,":                 memcacheddriver.ErrInvalidDSN,
		"mc1:11211:0":          memcacheddriver.ErrInvalidDSN,
		"mc1?timeout=1s":       memcacheddriver.ErrInvalidDSN,
		"ann:secret@localhost": memcacheddriver.ErrInvalidDSN,
		"memcached://mc1":      memcacheddriver.ErrInvalidDSN,    // the text says how
		"mc1:11211":            memcacheddriver.ErrInvalidOption, // the credentials would go there
	} {
		err := db.SetServers(servers)
		require.ErrorIs(t, err, want, servers)
		require.NotContains(t, err.Error(), "secret")
		require.Equal(t, "setservers", drivertest.RequireOpError(t, err).Op)
		require.Equal(t, "localhost:1", db.Stats()[0].Addr, "nothing has changed")
	}
	require.ErrorContains(t, db.SetServers("memcached://localhost:1"), "without memcached://")
	require.NoError(t, db.SetServers(" localhost:2 , [::1]:3:2,/run/m"))
	require.Len(t, db.Stats(), 3)
	require.NoError(t, db.Close())
	require.ErrorIs(t, db.SetServers("localhost"), memcacheddriver.ErrNotOpen)
}

// A key's server is the one that gomemcache, with the server listed as often as it
// weighs, picks, or by ketama the one that the names alone say.
func TestDistribution(t *testing.T) {
	t.Parallel()
	_, addrs := drivertest.StartServers(t, 3)
	keys := drivertest.KeysOf(t, []string{addrs[0], addrs[1], addrs[1], addrs[2]}, 20)
	where := func(db *memcacheddriver.MemcachedDB) (all []string) {
		for _, key := range append(append(keys[0], keys[1]...), keys[3]...) {
			require.NoError(t, db.Set(t.Context(), key, []byte("v"), 0))
			at := "nowhere"
			for _, addr := range addrs {
				if strings.HasPrefix(drivertest.AskServer(t, addr, "get "+key), "VALUE") {
					at = addr
				}
			}
			n, err := db.Delete(t.Context(), key)
			require.NoError(t, err)
			require.EqualValues(t, 1, n)
			all = append(all, at)
		}
		return all
	}
	var want []string
	for _, addr := range addrs {
		for range 20 {
			want = append(want, addr)
		}
	}
	for _, list := range []string{"%[1]s,%[2]s:2,%[3]s", "%[1]s,%[2]s,%[2]s,%[3]s", "%[1]s:1,%[2]s:1,%[2]s,%[3]s:1"} {
		require.Equal(t, want, where(drivertest.Open(t, fmt.Sprintf(list, addrs[0], addrs[1], addrs[2]))), list)
	}
	ketama := where(drivertest.Open(t, fmt.Sprintf("%s,%s:2,%s?distribution=ketama", addrs[0], addrs[1], addrs[2])))
	require.NotEqual(t, want, ketama)
	require.Equal(t, ketama, where(drivertest.Open(t, fmt.Sprintf("%[3]s,%[2]s,%[2]s,%[1]s", addrs[0], addrs[1], addrs[2]),
		memcacheddriver.WithDistribution(memcacheddriver.Ketama))), "the order is of no importance, and twice is weight 2")
	err := memcacheddriver.New().Open(t.Context(), "mc1", memcacheddriver.WithDistribution("crc32"))
	require.ErrorIs(t, err, memcacheddriver.ErrInvalidOption)
}
