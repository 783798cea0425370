package systemtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/bradfitz/gomemcache/memcache"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// network is a memcached behind a proxy.
type network struct {
	*toxiproxy.Proxy
	server *memcachedtest.Server
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	server := memcachedtest.Start(t)
	proxy := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), t.Name(), "127.0.0.1:0", server.Addr())
	require.NoError(t, proxy.Start())
	t.Cleanup(proxy.Stop)
	return &network{proxy, server}
}

// toxic puts a fault on what the server sends ("downstream") or gets
// ("upstream") and returns how to end it.
func (n *network) toxic(t *testing.T, kind, direction string, attributes map[string]any) (end func()) {
	t.Helper()
	spec, err := json.Marshal(map[string]any{"name": kind + direction, "type": kind, "stream": direction, "attributes": attributes})
	require.NoError(t, err)
	_, err = n.Toxics.AddToxicJson(strings.NewReader(string(spec)))
	require.NoError(t, err)
	return func() { require.NoError(t, n.Toxics.RemoveToxic(context.Background(), kind+direction)) }
}

// networkCalls are some of each kind, which look at what they get: it must be
// the reply to what they asked. The key k has the value v.
var networkCalls = map[string]func(ctx context.Context, db *memcacheddriver.MemcachedDB) error{
	"Get": func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
		v, err := db.Get(ctx, "k")
		if err == nil && string(v) != "v" {
			err = fmt.Errorf("the value is %q", v)
		}
		return err
	},
	"Set": func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
		return db.Set(ctx, "k", []byte("v"), 0)
	},
	"MGet": func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
		v, err := db.MGet(ctx, []string{"k", "absent"})
		if err == nil && (string(v[0]) != "v" || v[1] != nil) {
			err = fmt.Errorf("the values are %q", v)
		}
		return err
	},
	"MSet": func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
		return db.MSet(ctx, map[string][]byte{"k": []byte("v"), "m": []byte("w")}, 0)
	},
	"Exists": func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
		n, err := db.Exists(ctx, "k")
		if err == nil && n != 1 {
			err = fmt.Errorf("%d keys exist", n)
		}
		return err
	},
	"CompareAndSwap": func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
		return db.CompareAndSwap(ctx, "k", func(b []byte) ([]byte, error) { return b, nil })
	},
	"Do": func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
		return db.Do(ctx, func(c *memcache.Client) error {
			items, err := c.GetMulti([]string{"k", "absent"})
			if err == nil && (len(items) != 1 || string(items["k"].Value) != "v") {
				err = fmt.Errorf("the items are %v", items)
			}
			return err
		})
	},
	"Ping": func(ctx context.Context, db *memcacheddriver.MemcachedDB) error { return db.Ping(ctx) },
}

func requireAllWork(t *testing.T, db *memcacheddriver.MemcachedDB) {
	t.Helper()
	for name, call := range networkCalls {
		require.NoError(t, call(t.Context(), db), name)
	}
}

// get is for polling.
func get(t *testing.T, db *memcacheddriver.MemcachedDB) func() bool {
	return func() bool { return networkCalls["Get"](t.Context(), db) == nil }
}

// Slow is not dead, and deadlines end the wait.
func TestSlowIsNotDown(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	const rounds = 2
	conns := rounds * len(networkCalls)
	db := drivertest.Open(t, n.Listen, memcacheddriver.WithMaxIdleConns(conns), memcacheddriver.WithTimeout(drivertest.Never),
		memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
	require.NoError(t, db.Set(t.Context(), "k", []byte("v"), 0))
	end := n.toxic(t, "latency", "downstream", map[string]any{"latency": 100, "jitter": 20})
	requireAllWork(t, db)
	end()

	drivertest.Fill(t, db, conns)
	dials := drivertest.Dials(db)
	const latency = 2 * time.Second
	end = n.toxic(t, "latency", "downstream", map[string]any{"latency": latency.Milliseconds()})
	for range rounds {
		for name, call := range networkCalls {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			start := time.Now()
			err := call(ctx, db)
			took := time.Since(start)
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded, name)
			require.Less(t, took, latency, "%s waited for the reply", name)
		}
	}
	require.Equal(t, dials, drivertest.Dials(db), "a call was cut off while it dialled, not while it waited for its reply")
	end()
	// The replies of all those are on their way: none reaches another call.
	for range 3 {
		requireAllWork(t, db)
	}
	s := drivertest.Stat(t, db)
	require.Equal(t, memcacheddriver.ServerUp, s.State)
	require.Zero(t, s.Timeouts)
	drivertest.RequireIdle(t, db)
}

// A batch costs one trip, not one for each key.
func TestABatchCostsOneTrip(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	db := drivertest.Open(t, n.Listen, memcacheddriver.WithTimeout(drivertest.Never))
	require.NoError(t, db.Ping(t.Context()))
	n.toxic(t, "latency", "downstream", map[string]any{"latency": 300})
	keys := drivertest.Keys(200)
	start := time.Now()
	require.NoError(t, db.MSet(t.Context(), drivertest.Pairs(keys), 0))
	values, err := db.MGet(t.Context(), keys)
	require.NoError(t, err)
	require.Equal(t, len(keys), drivertest.AssertValues(t, keys, values))
	require.Less(t, time.Since(start), 10*time.Second) // 2 min in as many trips as keys
}

// A network that swallows everything: timeouts, then down, then back at once,
// though the connections from before look sound.
func TestABlackHoleIsDownUntilItEnds(t *testing.T) {
	for _, direction := range []string{"downstream", "upstream"} {
		t.Run(direction, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			db := drivertest.Open(t, n.Listen, memcacheddriver.WithTimeout(300*time.Millisecond),
				memcacheddriver.WithServerFailureLimit(3, 500*time.Millisecond))
			require.NoError(t, db.Set(t.Context(), "k", []byte("v"), 0))
			end := n.toxic(t, "timeout", direction, map[string]any{"timeout": 0})
			for range 3 {
				_, err := db.Get(t.Context(), "k")
				require.ErrorContains(t, err, "read timeout")
				require.NotErrorIs(t, err, memcacheddriver.ErrServerDown)
			}
			refused := 0
			for name, call := range networkCalls {
				dials := drivertest.Dials(db)
				err := call(t.Context(), db)
				if !errors.Is(err, memcacheddriver.ErrServerDown) {
					require.ErrorContains(t, err, "read timeout", name) // the probe
					continue
				}
				refused++
				require.Equal(t, dials, drivertest.Dials(db), "%s was refused, but only after it had dialled", name)
			}
			require.Positive(t, refused)
			require.Equal(t, memcacheddriver.ServerDown, drivertest.Stat(t, db).State)
			end()
			memcachedtest.Eventually(t, get(t, db), "it comes back")
			require.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
			requireAllWork(t, db)
			drivertest.RequireIdle(t, db)
		})
	}
}

// A caller's deadline in a black hole is not the server's failure.
func TestDeadlinesInABlackHoleAreNoFailures(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	db := drivertest.Open(t, n.Listen, memcacheddriver.WithTimeout(drivertest.Never), memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
	require.NoError(t, db.Set(t.Context(), "k", []byte("v"), 0))
	end := n.toxic(t, "timeout", "downstream", map[string]any{"timeout": 0})
	for range 5 { // the first time on an idle connection, then in the dial
		for name, call := range networkCalls {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
			require.ErrorIs(t, call(ctx, db), context.DeadlineExceeded, name)
			cancel()
		}
	}
	require.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
	end()
	requireAllWork(t, db)
	drivertest.RequireIdle(t, db)
}

// Resets are failures; after them nothing is left.
func TestResetsAreFailures(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	db := drivertest.Open(t, n.Listen, memcacheddriver.WithServerFailureLimit(3, 30*time.Millisecond))
	require.NoError(t, db.Set(t.Context(), "k", []byte("v"), 0))
	end := n.toxic(t, "reset_peer", "downstream", map[string]any{"timeout": 0})
	failed := 0
	for range 6 {
		for _, call := range networkCalls {
			if call(t.Context(), db) != nil {
				failed++
			}
		}
	}
	require.Positive(t, failed)
	require.NotEqual(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
	end()
	memcachedtest.Eventually(t, get(t, db), "it comes back")
	for range 3 {
		requireAllWork(t, db)
	}
	drivertest.RequireIdle(t, db)
}

// The proxy goes and comes: idle connections that it closed cost no call.
func TestConnectionsThatAProxyClosedCostNoCall(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	db := drivertest.Open(t, n.Listen)
	for range 3 {
		require.NoError(t, db.Set(t.Context(), "k", []byte("v"), 0))
		n.Stop()
		require.NoError(t, n.Start())
		time.Sleep(300 * time.Millisecond) // toxiproxy closes in the background
		requireAllWork(t, db)
	}
	require.Zero(t, drivertest.Stat(t, db).DialErrors)
	require.GreaterOrEqual(t, drivertest.Stat(t, db).StaleConns, uint64(3))
}

// Replies and requests in small pieces with pauses: all is well as long as each
// reply comes in time.
func TestPiecesMakeAReply(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	db := drivertest.Open(t, n.Listen)
	for _, direction := range []string{"downstream", "upstream"} {
		n.toxic(t, "slicer", direction, map[string]any{"average_size": 3, "size_variation": 2, "delay": 50})
	}
	require.NoError(t, db.Set(t.Context(), "k", []byte("v"), 0))
	requireAllWork(t, db)
	value := []byte(strings.Repeat("END\r\nVALUE k 0 1\r\n", 20))
	pairs := map[string][]byte{"a": value, "b": {}, "c": value}
	require.NoError(t, db.MSet(t.Context(), pairs, 0))
	values, err := db.MGet(t.Context(), []string{"a", "b", "missing", "c"})
	require.NoError(t, err)
	require.Equal(t, [][]byte{value, {}, nil, value}, values)
	items, err := db.Client().GetMulti([]string{"a", "b", "missing", "c"})
	require.NoError(t, err)
	require.Len(t, items, 3)
	require.Equal(t, value, items["c"].Value)
	drivertest.RequireIdle(t, db)
}

// A drip: a value that needs much longer than the timeout is cut off by it,
// however steadily the bytes come.
func TestADripEndsAtTheReadTimeout(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	const d = 300 * time.Millisecond
	db := drivertest.Open(t, n.Listen, driver.WithReadTimeout(d), memcacheddriver.WithServerFailureLimit(0, 0))
	patient := drivertest.Open(t, n.Listen, memcacheddriver.WithTimeout(drivertest.Never))
	direct := drivertest.Open(t, n.server.Addr())
	middling := []byte(strings.Repeat("END\r\n", 4000))
	require.NoError(t, direct.Set(t.Context(), "big", make([]byte, 500_000), 0))
	require.NoError(t, direct.Set(t.Context(), "middling", middling, 0))
	require.NoError(t, direct.Set(t.Context(), "k", []byte("v"), 0))
	n.toxic(t, "bandwidth", "downstream", map[string]any{"rate": 20}) // KB/s: 25 s
	for name, call := range map[string]func() error{
		"Get":        func() error { _, err := db.Get(t.Context(), "big"); return err },
		"MGet":       func() error { _, err := db.MGet(t.Context(), []string{"big", "k"}); return err },
		"native Get": func() error { _, err := db.Client().Get("big"); return err },
		"native GetMulti": func() error {
			_, err := db.Client().GetMulti([]string{"big", "k"})
			return err
		},
	} {
		start := time.Now()
		require.ErrorContains(t, call(), "read timeout of "+d.String(), name)
		require.Less(t, time.Since(start), 15*time.Second, name)
	}
	value, err := patient.Get(t.Context(), "middling") // 1 s
	require.NoError(t, err)
	require.Equal(t, middling, value)
	memcachedtest.Eventually(t, get(t, db), "what is small comes in time")
	drivertest.RequireIdle(t, db)
}

// A connection that ends in the middle of a reply.
func TestHalfAReplyIsAnError(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	db := drivertest.Open(t, n.Listen, memcacheddriver.WithServerFailureLimit(0, 0))
	value := []byte(strings.Repeat("v", 1000))
	require.NoError(t, db.MSet(t.Context(), map[string][]byte{"a": value, "b": value}, 0))
	for _, limit := range []int{1, 10, 500, 1100, 1500} {
		end := n.toxic(t, "limit_data", "downstream", map[string]any{"bytes": limit})
		values, err := db.MGet(t.Context(), []string{"a", "b"})
		require.Error(t, err, "limit %d", limit)
		for _, v := range values {
			require.True(t, v == nil || string(v) == string(value), "half a value")
		}
		got, err := db.Get(t.Context(), "a")
		if err == nil {
			require.Equal(t, value, got)
		} else {
			require.NotEqual(t, kv.ErrNotFound, err)
		}
		end()
		memcachedtest.Eventually(t, func() bool {
			got, err := db.Get(t.Context(), "a")
			return err == nil && string(got) == string(value)
		}, "it works again")
	}
	drivertest.RequireIdle(t, db)
}

// All at once, with calls from many goroutines: errors there may be, a wrong
// value or a lost connection never.
func TestNoCrosstalkInABadNetwork(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	db := drivertest.Open(t, n.Listen, memcacheddriver.WithTimeout(200*time.Millisecond), memcacheddriver.WithServerFailureLimit(3, time.Millisecond))
	n.toxic(t, "latency", "downstream", map[string]any{"latency": 1, "jitter": 1})
	n.toxic(t, "slicer", "downstream", map[string]any{"average_size": 40, "size_variation": 30, "delay": 20})
	var stopped atomic.Bool
	var good atomic.Int64
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for !stopped.Load() {
				key := fmt.Sprint("key", rand.IntN(50))
				value := strings.Repeat(key+" ", 1+rand.IntN(50))
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(60_000))*time.Microsecond)
				var got []byte
				var err error
				switch rand.IntN(3) {
				case 0:
					err = db.Set(ctx, key, []byte(value), 0)
				case 1:
					got, err = db.Get(ctx, key)
				case 2:
					var values [][]byte
					values, err = db.MGet(ctx, []string{"missing", key})
					got = values[1]
				}
				cancel()
				if strings.ReplaceAll(string(got), key+" ", "") != "" {
					t.Errorf("the value of %s is %q", key, got)
					return
				}
				if err == nil {
					good.Add(1)
				}
			}
		})
	}
	for range 8 {
		// A toxic that comes and goes under load makes toxiproxy hang.
		time.Sleep(100 * time.Millisecond)
		n.Stop()
		assert.NoError(t, n.Start())
	}
	stopped.Store(true)
	callers.Wait()
	require.Positive(t, good.Load())
	drivertest.RequireIdle(t, db)
	memcachedtest.Eventually(t, func() bool { return db.Ping(t.Context()) == nil }, "it works")
}
