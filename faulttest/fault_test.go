package faulttest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

// Slow is not dead, and deadlines end the wait. Not parallel: it measures time.
func TestLatency(t *testing.T) {
	n := newNetwork(t)
	db := open(t, n.Listen, memcacheddriver.WithServerFailureLimit(1, never))
	require.NoError(t, db.Set(context.Background(), "k", []byte("v"), 0))
	n.toxic(t, "latency", "downstream", map[string]any{"latency": 100, "jitter": 20})
	for name, call := range calls(db) {
		require.NoError(t, call(context.Background()), name)
	}
	for name, call := range calls(db) {
		var late []time.Duration
		for range 5 {
			const d = 10 * time.Millisecond
			ctx, cancel := context.WithTimeout(context.Background(), d)
			start := time.Now()
			err := call(ctx)
			late = append(late, time.Since(start)-d)
			cancel()
			require.ErrorIs(t, err, context.DeadlineExceeded, name)
		}
		slices.Sort(late)
		require.Less(t, late[len(late)/2], 60*time.Millisecond, "%s waited for the reply", name)
	}
	// The replies of all those are on their way: none reaches another call.
	for range 3 {
		for name, call := range calls(db) {
			require.NoError(t, call(context.Background()), name)
		}
	}
	s := db.Stats()[0]
	require.Equal(t, memcacheddriver.ServerUp, s.State)
	require.Zero(t, s.Timeouts)
	requireIdle(t, db)
}

// A batch costs one trip, not one for each key.
func TestLatencyOfABatch(t *testing.T) {
	n := newNetwork(t)
	db := open(t, n.Listen)
	require.NoError(t, db.Ping(context.Background()))
	n.toxic(t, "latency", "downstream", map[string]any{"latency": 50})
	pairs := make(map[string][]byte)
	var keys []string
	for i := range 200 {
		keys = append(keys, fmt.Sprint("k", i))
		pairs[keys[i]] = []byte("v")
	}
	start := time.Now()
	require.NoError(t, db.MSet(context.Background(), pairs, 0))
	values, err := db.MGet(context.Background(), keys)
	require.NoError(t, err)
	require.NotContains(t, values, []byte(nil))
	require.Less(t, time.Since(start), 2*time.Second) // 20 s in as many trips as keys
}

// A network that swallows everything: timeouts, then down, then back at once,
// though the connections from before look sound.
func TestBlackHole(t *testing.T) {
	for _, direction := range []string{"downstream", "upstream"} {
		t.Run(direction, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			const retry = 30 * time.Millisecond
			db := open(t, n.Listen, memcacheddriver.WithTimeout(100*time.Millisecond), memcacheddriver.WithServerFailureLimit(3, retry))
			require.NoError(t, db.Set(context.Background(), "k", []byte("v"), 0))
			end := n.toxic(t, "timeout", direction, map[string]any{"timeout": 0})
			for range 3 {
				_, err := db.Get(context.Background(), "k")
				require.ErrorContains(t, err, "read timeout")
				require.NotErrorIs(t, err, memcacheddriver.ErrServerDown)
			}
			for name, call := range calls(db) {
				start := time.Now()
				err := call(context.Background())
				if !errors.Is(err, memcacheddriver.ErrServerDown) {
					require.ErrorContains(t, err, "read timeout", name) // the probe
					continue
				}
				require.Less(t, time.Since(start), 80*time.Millisecond, "%s was refused, but not at once", name)
			}
			require.Equal(t, memcacheddriver.ServerDown, db.Stats()[0].State)
			end()
			poll(t, "it comes back", func() bool { _, err := db.Get(context.Background(), "k"); return err == nil })
			require.Equal(t, memcacheddriver.ServerUp, db.Stats()[0].State)
			for name, call := range calls(db) {
				require.NoError(t, call(context.Background()), name)
			}
			requireIdle(t, db)
		})
	}
}

// A caller's deadline in a black hole is not the server's failure.
func TestBlackHoleAndDeadlines(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	db := open(t, n.Listen, memcacheddriver.WithTimeout(never), memcacheddriver.WithServerFailureLimit(1, never))
	require.NoError(t, db.Set(context.Background(), "k", []byte("v"), 0))
	end := n.toxic(t, "timeout", "downstream", map[string]any{"timeout": 0})
	for range 5 {
		for name, call := range calls(db) {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
			require.ErrorIs(t, call(ctx), context.DeadlineExceeded, name)
			cancel()
		}
	}
	require.Equal(t, memcacheddriver.ServerUp, db.Stats()[0].State)
	end()
	for name, call := range calls(db) {
		require.NoError(t, call(context.Background()), name)
	}
	requireIdle(t, db)
}

// Resets are failures; behind them nothing is left.
func TestReset(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	const retry = 30 * time.Millisecond
	db := open(t, n.Listen, memcacheddriver.WithServerFailureLimit(3, retry))
	require.NoError(t, db.Set(context.Background(), "k", []byte("v"), 0))
	end := n.toxic(t, "reset_peer", "downstream", map[string]any{"timeout": 0})
	failed := 0
	for range 6 {
		for _, call := range calls(db) {
			if call(context.Background()) != nil {
				failed++
			}
		}
	}
	require.Positive(t, failed)
	require.NotEqual(t, memcacheddriver.ServerUp, db.Stats()[0].State)
	end()
	poll(t, "it comes back", func() bool { _, err := db.Get(context.Background(), "k"); return err == nil })
	for range 3 {
		for name, call := range calls(db) {
			require.NoError(t, call(context.Background()), name)
		}
	}
	requireIdle(t, db)
}

// The proxy goes and comes: idle connections that it closed cost no call.
func TestProxyRestart(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	db := open(t, n.Listen)
	for range 3 {
		require.NoError(t, db.Set(context.Background(), "k", []byte("v"), 0))
		n.Stop()
		require.NoError(t, n.Start())
		time.Sleep(100 * time.Millisecond) // toxiproxy closes in the background
		for name, call := range calls(db) {
			require.NoError(t, call(context.Background()), name)
		}
	}
	require.Zero(t, db.Stats()[0].DialErrors)
	require.GreaterOrEqual(t, db.Stats()[0].StaleConns, uint64(3))
}

// Replies and requests in small pieces with pauses: all is well as long as each
// reply comes in time.
func TestSlicedIntoPieces(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	db := open(t, n.Listen)
	for _, direction := range []string{"downstream", "upstream"} {
		n.toxic(t, "slicer", direction, map[string]any{"average_size": 3, "size_variation": 2, "delay": 50})
	}
	require.NoError(t, db.Set(context.Background(), "k", []byte("v"), 0))
	for name, call := range calls(db) {
		require.NoError(t, call(context.Background()), name)
	}
	value := []byte(strings.Repeat("END\r\nVALUE k 0 1\r\n", 20))
	pairs := map[string][]byte{"a": value, "b": {}, "c": value}
	require.NoError(t, db.MSet(context.Background(), pairs, 0))
	values, err := db.MGet(context.Background(), []string{"a", "b", "missing", "c"})
	require.NoError(t, err)
	require.Equal(t, [][]byte{value, {}, nil, value}, values)
	items, err := db.Client().GetMulti([]string{"a", "b", "missing", "c"})
	require.NoError(t, err)
	require.Len(t, items, 3)
	require.Equal(t, value, items["c"].Value)
	requireIdle(t, db)
}

// A drip: a value that needs much longer than the timeout. One key is cut off
// by the read timeout however steadily the bytes come.
func TestDrip(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	const d = 300 * time.Millisecond
	db := open(t, n.Listen, driver.WithReadTimeout(d), memcacheddriver.WithServerFailureLimit(0, 0))
	direct := open(t, n.server.Addr())
	require.NoError(t, direct.Set(context.Background(), "big", make([]byte, 500_000), 0))
	require.NoError(t, direct.Set(context.Background(), "k", []byte("v"), 0))
	end := n.toxic(t, "bandwidth", "downstream", map[string]any{"rate": 20}) // KB/s: 25 s
	for name, call := range map[string]func() error{
		"Get":        func() error { _, err := db.Get(context.Background(), "big"); return err },
		"MGet":       func() error { _, err := db.MGet(context.Background(), []string{"big", "k"}); return err },
		"native Get": func() error { _, err := db.Client().Get("big"); return err },
		"native GetMulti": func() error {
			_, err := db.Client().GetMulti([]string{"big", "k"})
			return err
		},
	} {
		start := time.Now()
		require.ErrorContains(t, call(), "read timeout of "+d.String(), name)
		require.Less(t, time.Since(start), 5*time.Second, name)
	}
	end()
	poll(t, "it comes whole", func() bool {
		value, err := db.Get(context.Background(), "big")
		return err == nil && len(value) == 500_000
	})
	requireIdle(t, db)
}

// A connection that ends in the middle of a reply.
func TestCutInTheMiddle(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	db := open(t, n.Listen, memcacheddriver.WithServerFailureLimit(0, 0))
	value := []byte(strings.Repeat("v", 1000))
	require.NoError(t, db.MSet(context.Background(), map[string][]byte{"a": value, "b": value}, 0))
	for _, limit := range []int{1, 10, 500, 1100, 1500} {
		end := n.toxic(t, "limit_data", "downstream", map[string]any{"bytes": limit})
		values, err := db.MGet(context.Background(), []string{"a", "b"})
		require.Error(t, err, "limit %d", limit)
		for _, v := range values {
			require.True(t, v == nil || string(v) == string(value), "half a value")
		}
		got, err := db.Get(context.Background(), "a")
		if err == nil {
			require.Equal(t, value, got)
		} else if limit < 1000 {
			require.NotEqual(t, kv.ErrNotFound, err)
		}
		end()
		poll(t, "it works again", func() bool {
			got, err := db.Get(context.Background(), "a")
			return err == nil && string(got) == string(value)
		})
	}
	requireIdle(t, db)
}

// All at once, with calls from many goroutines: errors there may be, a wrong
// value or a lost connection never.
func TestNoCrosstalkInABadNetwork(t *testing.T) {
	t.Parallel()
	n := newNetwork(t)
	db := open(t, n.Listen, memcacheddriver.WithTimeout(200*time.Millisecond), memcacheddriver.WithServerFailureLimit(3, time.Millisecond))
	n.toxic(t, "latency", "downstream", map[string]any{"latency": 1, "jitter": 1})
	n.toxic(t, "slicer", "downstream", map[string]any{"average_size": 40, "size_variation": 30, "delay": 20})
	stop := make(chan struct{})
	var callers, faults sync.WaitGroup
	var mu sync.Mutex
	good := 0
	for range 8 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				key := fmt.Sprint("key", rand.IntN(50))
				value := strings.Repeat(key+" ", 1+rand.IntN(50))
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(60_000))*time.Microsecond)
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
					mu.Lock()
					good++
					mu.Unlock()
				}
			}
		})
	}
	faults.Go(func() {
		for range 8 {
			// A toxic that comes and goes under load makes toxiproxy hang.
			time.Sleep(100 * time.Millisecond)
			n.Stop()
			if err := n.Start(); err != nil {
				t.Error(err)
			}
		}
	})
	faults.Wait()
	close(stop)
	callers.Wait()
	require.Positive(t, good)
	requireIdle(t, db)
	poll(t, "it works", func() bool { return db.Ping(context.Background()) == nil })
}
