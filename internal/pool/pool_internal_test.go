package pool

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// open returns a pool for an empty server.
func open(t *testing.T, change func(*Config)) *Pool {
	t.Helper()
	cfg := Config{
		Addrs:       []Addr{{"tcp", memcachedtest.StartFake(t, nil).Addr()}},
		DialTimeout: time.Minute, ReadTimeout: time.Minute, WriteTimeout: time.Minute,
		MaxIdle: 4, FailureLimit: 3, RetryAfter: time.Minute,
		Infof: func(string, ...any) {}, Warnf: func(string, ...any) {},
	}
	if change != nil {
		change(&cfg)
	}
	p := New(cfg)
	t.Cleanup(p.Close)
	return p
}

func get(l *Lane) error {
	if _, err := l.Client.Get("k"); err != memcache.ErrCacheMiss {
		return err
	}
	return nil
}

// An abort that comes as a call ends must not reach the next call on the lane or
// on its socket.
func TestAbortRacesWithTheEndOfACall(t *testing.T) {
	p := open(t, nil)
	var callers sync.WaitGroup
	for range 2 {
		callers.Go(func() {
			aborted := 0
			for i := range 2000 {
				ctx, cancel := context.WithCancel(context.Background())
				spin := rand.IntN(20)
				gone := make(chan struct{})
				err := p.Do(ctx, func(l *Lane) error {
					err := get(l)
					go func() {
						for range spin {
							runtime.Gosched()
						}
						cancel()
						close(gone)
					}()
					for range rand.IntN(20) {
						runtime.Gosched()
					}
					return err
				})
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("call %d: %v", i, err)
				}
				if ctx.Err() != nil {
					aborted++
				}
				// The next one, which nobody cancels, while the abort may still come.
				if err := p.Do(context.Background(), get); err != nil {
					t.Errorf("the call after call %d: %v", i, err)
				}
				<-gone
			}
			if aborted == 0 {
				t.Error("no context ended before its call did")
			}
		})
	}
	callers.Wait()
	st := p.Servers[0].Stats()
	require.Zero(t, st.InUse)
	require.Zero(t, st.Timeouts)
	require.Equal(t, Up, st.State)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.lanes {
		require.False(t, l.aborted.Load())
		require.Empty(t, l.done)
		require.Equal(t, context.Background(), l.ctx)
	}
}

// A lane that fn left by a panic or runtime.Goexit is not used again: nobody
// knows who still has it.
func TestLaneOfAPanicIsNotReused(t *testing.T) {
	p := open(t, nil)
	var lanes []*Lane
	for range 3 {
		func() {
			defer func() { _ = recover() }()
			_ = p.Do(context.Background(), func(l *Lane) error {
				lanes = append(lanes, l)
				_ = get(l)
				panic("mine")
			})
		}()
		require.Empty(t, p.lanes)
	}
	require.NotSame(t, lanes[0], lanes[1])
	require.NotSame(t, lanes[1], lanes[2])
	require.Zero(t, p.Servers[0].Stats().InUse)
	require.Zero(t, p.Servers[0].Stats().Idle)
}

// Lanes are kept for as many calls as sockets are, and the last one goes first.
func TestLanesAreBounded(t *testing.T) {
	p := open(t, nil)
	var all, calls sync.WaitGroup
	all.Add(16)
	for range 16 {
		calls.Go(func() {
			_ = p.Do(context.Background(), func(l *Lane) error {
				all.Done()
				all.Wait()
				return get(l)
			})
		})
	}
	calls.Wait()
	require.Len(t, p.lanes, 4)
	require.LessOrEqual(t, p.Servers[0].Stats().Idle, 4)
	last := p.lanes[3]
	_ = p.Do(context.Background(), func(l *Lane) error {
		require.Same(t, last, l)
		return nil
	})
}

// A lane keeps no connection that its client has closed.
func TestLaneForgetsClosedConnections(t *testing.T) {
	p := open(t, nil)
	_ = p.Do(context.Background(), func(l *Lane) error {
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() { _ = get(l) })
		}
		all.Wait()
		require.Len(t, l.conns, 1)
		return nil
	})
}

// A socket that becomes idle while a sweep is under way must not be forgotten.
func TestSweepRacesWithIdling(t *testing.T) {
	const limit = 5 * time.Millisecond
	p := open(t, func(cfg *Config) { cfg.MaxIdleTime = limit })
	for range 60 {
		require.NoError(t, p.Do(context.Background(), get))
		// Idle for about as long as the sweep waits.
		time.Sleep(limit - time.Millisecond + time.Duration(rand.IntN(2000))*time.Microsecond)
		require.NoError(t, p.Do(context.Background(), get))
		deadline := time.Now().Add(5 * time.Second)
		for p.Servers[0].Stats().Idle > 0 {
			require.True(t, time.Now().Before(deadline), "no sweep came")
			time.Sleep(time.Millisecond)
		}
	}
}
