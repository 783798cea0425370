package memcacheddriver_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// benchIdle is as many as there are callers, at most.
const benchIdle = 256

// benchCall is a call of ours and the same of bare gomemcache.
type benchCall struct {
	name       string
	ours, bare func() error
}

// benchCalls are Get and Set with both kinds of context, on a server of their
// own.
func benchCalls(t testing.TB) []benchCall {
	t.Helper()
	addr := memcachedtest.Start(t).Addr()
	db := drivertest.Open(t, addr, memcacheddriver.WithMaxIdleConns(benchIdle))
	bare := memcache.New(addr)
	bare.MaxIdleConns = benchIdle
	cancellable, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		bare.Close()
	})
	value := make([]byte, 100)
	require.NoError(t, db.Set(context.Background(), "bench", value, 0))
	bareGet := func() error { _, err := bare.Get("bench"); return err }
	bareSet := func() error { return bare.Set(&memcache.Item{Key: "bench", Value: value}) }
	get := func(ctx context.Context) func() error {
		return func() error { _, err := db.Get(ctx, "bench"); return err }
	}
	set := func(ctx context.Context) func() error {
		return func() error { return db.Set(ctx, "bench", value, 0) }
	}
	return []benchCall{
		{"Get/background", get(context.Background()), bareGet},
		{"Get/cancellable", get(cancellable), bareGet},
		{"Set/background", set(context.Background()), bareSet},
		{"Set/cancellable", set(cancellable), bareSet},
	}
}

// Both sides take turns, and the ratio of their medians is what counts. An op of
// the benchmark's own is a turn of each.
func BenchmarkAgainstGomemcache(b *testing.B) {
	for _, call := range benchCalls(b) {
		for _, goroutines := range []int{1, 8, 64, 256} {
			b.Run(fmt.Sprintf("%s/%d", call.name, goroutines), func(b *testing.B) {
				const calls = 2048 // in one turn
				turn := func(call func() error) time.Duration {
					var all sync.WaitGroup
					failed := make(chan error, goroutines)
					start := time.Now()
					for range goroutines {
						all.Go(func() {
							for range calls / goroutines {
								if err := call(); err != nil {
									failed <- err
									return
								}
							}
						})
					}
					all.Wait()
					took := time.Since(start)
					select {
					case err := <-failed:
						b.Fatal(err)
					default:
					}
					return took
				}
				turn(call.ours)
				turn(call.bare)
				var ours, bare []time.Duration
				for i := 0; b.Loop(); i++ {
					if i%2 == 0 {
						ours = append(ours, turn(call.ours))
						bare = append(bare, turn(call.bare))
					} else {
						bare = append(bare, turn(call.bare))
						ours = append(ours, turn(call.ours))
					}
				}
				slices.Sort(ours)
				slices.Sort(bare)
				o, g := float64(ours[len(ours)/2]), float64(bare[len(bare)/2])
				b.ReportMetric(o/calls, "ours-ns/call")
				b.ReportMetric(g/calls, "gomemcache-ns/call")
				b.ReportMetric(o/g, "ratio")
			})
		}
	}
}

// Not parallel: AllocsPerRun counts what others allocate too.
func TestOnlyAContextThatCanEndAllocatesMoreThanGomemcache(t *testing.T) {
	more := map[string]float64{"Get/background": 0, "Set/background": 0, "Get/cancellable": 2, "Set/cancellable": 2}
	for _, call := range benchCalls(t) {
		t.Run(call.name, func(t *testing.T) {
			var failed error
			// The lowest of some: under the race detector sync.Pool, which fmt
			// uses, forgets at random.
			allocs := func(call func() error) float64 {
				lowest := math.Inf(1)
				for range 60 {
					lowest = min(lowest, testing.AllocsPerRun(3, func() { failed = errors.Join(failed, call()) }))
				}
				return lowest
			}
			ours, bare := allocs(call.ours), allocs(call.bare)
			require.NoError(t, failed)
			t.Logf("%v allocations, gomemcache %v", ours, bare)
			require.LessOrEqual(t, ours, bare+more[call.name])
		})
	}
}

// A Do has a client of its own.
func BenchmarkDo(b *testing.B) {
	db := drivertest.Open(b, memcachedtest.Start(b).Addr())
	require.NoError(b, db.Set(b.Context(), "n", []byte("1"), 0))
	b.ReportAllocs()
	for b.Loop() {
		require.NoError(b, db.Do(b.Context(), func(c *memcache.Client) error {
			_, err := c.Increment("n", 1)
			return err
		}))
	}
}
