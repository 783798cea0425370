package pool

import (
	"context"
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
		Servers:     entries(memcachedtest.StartFake(t, nil).Addr()),
		DialTimeout: time.Minute, ReadTimeout: time.Minute, WriteTimeout: time.Minute,
		MaxOpen: 64, MaxIdle: 4, FailureLimit: 3, RetryAfter: time.Minute,
		Infof: func(string, ...any) {}, Warnf: func(string, ...any) {},
	}
	if change != nil {
		change(&cfg)
	}
	p := New(cfg)
	t.Cleanup(p.Close)
	return p
}

func entries(addrs ...string) (list []Entry) {
	for _, a := range addrs {
		list = append(list, Entry{addr(a), 1})
	}
	return list
}

func get(l *Lane) error {
	if _, err := l.Client(l.list.Servers[0]).Get("k"); err != memcache.ErrCacheMiss {
		return err
	}
	return nil
}

func TestIdleSocketsAreBounded(t *testing.T) {
	p := open(t, nil)
	var all, calls sync.WaitGroup
	all.Add(16)
	for range 16 {
		calls.Go(func() {
			_ = p.Do(context.Background(), func(l *Lane) error {
				err := get(l)
				all.Done()
				all.Wait() // all have a connection each
				return err
			})
		})
	}
	calls.Wait()
	require.Equal(t, 4, p.List().Servers[0].Stats().Idle)
}
