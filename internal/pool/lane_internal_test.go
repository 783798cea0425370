package pool

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

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
				if err := p.Do(context.Background(), func(l *Lane) error {
					if l.aborted.Load() || len(l.done) > 0 || l.watched.Load() {
						return errors.New("the lane is another call's")
					}
					return get(l)
				}); err != nil {
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
	st := p.List().Servers[0].Stats()
	require.Zero(t, st.InUse)
	require.Zero(t, st.Timeouts)
	require.Equal(t, Up, st.State)
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
	}
	require.NotSame(t, lanes[0], lanes[1])
	require.NotSame(t, lanes[1], lanes[2])
	require.Zero(t, p.List().Servers[0].Stats().InUse)
	require.Zero(t, p.List().Servers[0].Stats().Idle)
}

// A lane keeps no connection that its client has closed.
func TestLaneForgetsClosedConnections(t *testing.T) {
	p := open(t, nil)
	_ = p.Do(context.Background(), func(l *Lane) error {
		client := l.Client(l.list.Servers[0])
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() { _, _ = client.Get("k") })
		}
		all.Wait()
		require.Len(t, l.conns, 1)
		return nil
	})
}

// However short its pieces: only the first of a request needs no room.
func TestContextEndsAWriteInPieces(t *testing.T) {
	fake := memcachedtest.StartFake(t, memcachedtest.Script{"set": memcachedtest.Hang})
	p := open(t, func(cfg *Config) { cfg.Servers = entries(fake.Addr()) })
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	piece := []byte("set k 0 0 1000\r\n" + strings.Repeat("v", 1000) + "\r\n")
	err := p.Do(ctx, func(l *Lane) error {
		c := l.Conn(p.List().Servers[0])
		err := c.Begin()
		for err == nil {
			_, err = c.Send(piece)
		}
		return err
	})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Less(t, time.Since(start), p.cfg.WriteTimeout/2)
}
