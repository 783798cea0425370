package memcacheddriver_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestNotOpen(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	never := memcacheddriver.New()
	closed := memcacheddriver.New()
	require.NoError(t, closed.Open(ctx, memcachedtest.Addr(t)))
	require.NoError(t, closed.Ping(ctx))
	client := closed.Client()
	require.NoError(t, closed.Close())

	for state, db := range map[string]*memcacheddriver.MemcachedDB{"never opened": never, "closed": closed} {
		for name, call := range calls {
			assert.ErrorIs(t, call(ctx, db, "key"), memcacheddriver.ErrNotOpen, "%s of a driver %s", name, state)
		}
		assert.ErrorIs(t, db.Ping(ctx), memcacheddriver.ErrNotOpen, state)
		assert.ErrorIs(t, db.Do(ctx, func(*memcache.Client) error { t.Error("called"); return nil }), memcacheddriver.ErrNotOpen, state)
		_, err := db.Client().Get("key")
		assert.ErrorIs(t, err, memcacheddriver.ErrNotOpen, "%s: a client of now", state)
		assert.ErrorIs(t, db.Client().Ping(), memcacheddriver.ErrNotOpen, state)
		_, err = db.MGet(ctx, nil)
		assert.ErrorIs(t, err, memcacheddriver.ErrNotOpen, "%s: MGet of nothing", state)
		assert.Nil(t, db.Stats(), state)
		assert.NoError(t, db.Close(), state)
		assert.Equal(t, "memcached", db.Info().Name, state)
	}
	_, err := client.Get("key")
	assert.ErrorIs(t, err, memcacheddriver.ErrNotOpen, "a client of before Close")
}

func TestOpenAndClose(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	addr := memcachedtest.Addr(t)
	db := memcacheddriver.New()
	require.Error(t, db.Open(ctx, ""))
	require.NoError(t, db.Open(ctx, addr), "a failed Open left the driver open")
	require.ErrorIs(t, db.Open(ctx, addr), memcacheddriver.ErrAlreadyOpen)
	require.NoError(t, db.Ping(ctx), "the second Open broke the first")
	require.NoError(t, db.Close())
	require.NoError(t, db.Close())
	require.NoError(t, db.Open(ctx, addr), "a closed driver can be opened again")
	require.NoError(t, db.Ping(ctx))
	require.NoError(t, db.Close())
}

// A service starts while its caches are down, and while their names are not
// known.
func TestOpenDialsNothing(t *testing.T) {
	t.Parallel()
	var accepted atomic.Int32
	addr := startScripted(t, func(c net.Conn) {
		accepted.Add(1)
		answer(c, func(string) string { return "VERSION 1.6.0\r\n" })
	})
	db := openDB(t, addr)
	assert.Zero(t, db.Stats()[0].Dials)
	require.NoError(t, db.Ping(t.Context()))
	assert.EqualValues(t, 1, accepted.Load(), "Ping needs one connection, and Open none")

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	down := memcacheddriver.New()
	require.NoError(t, down.Open(ended, "no-such-host.invalid,127.0.0.1:1,/no/such/socket"))
	require.NoError(t, down.Close())
}

func TestOpenCloseAndCallsAtOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	addr := memcachedtest.Addr(t)
	db := memcacheddriver.New()
	key := newKey()
	allowed := func(err error) bool {
		return err == nil || err == kv.ErrNotFound || errors.Is(err, kv.ErrNotSupported) || errors.Is(err, kv.ErrConflict) ||
			errors.Is(err, memcacheddriver.ErrNotOpen)
	}
	var opened, served atomic.Int32
	stop := make(chan struct{})
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			for range 100 {
				switch err := db.Open(ctx, addr); {
				case err == nil:
					opened.Add(1)
				case !errors.Is(err, memcacheddriver.ErrAlreadyOpen):
					t.Error(err)
				}
				time.Sleep(200 * time.Microsecond)
				assert.NoError(t, db.Close())
			}
		})
	}
	var callers sync.WaitGroup
	for name, call := range calls {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				err := call(ctx, db, key)
				if !allowed(err) {
					t.Errorf("%s: %v", name, err)
					return
				}
				if err == nil {
					served.Add(1)
				}
				db.Stats()
				if err := db.Client().Set(&memcache.Item{Key: key, Value: []byte("1")}); !allowed(err) {
					t.Errorf("the client: %v", err)
					return
				}
			}
		})
	}
	all.Wait()
	close(stop)
	callers.Wait()
	require.NoError(t, db.Close())
	assert.Positive(t, opened.Load())
	assert.Positive(t, served.Load(), "no call got through: nothing was tested")
}

// Close cuts what waits for a server.
func TestCloseCutsCalls(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 64)
	addr := startScripted(t, func(c net.Conn) {
		answer(c, func(string) string { asked <- struct{}{}; return "\r" })
	})
	db := openDB(t, addr, memcacheddriver.WithTimeout(time.Minute))
	got := make(chan error, 3)
	go func() { _, err := db.Get(t.Context(), "key"); got <- err }()
	go func() { _, err := db.MGet(t.Context(), []string{"a", "b"}); got <- err }()
	go func() { _, err := db.Client().Get("key"); got <- err }()
	for range 3 {
		<-asked
	}
	require.NoError(t, db.Close())
	for range 3 {
		assert.ErrorIs(t, <-got, memcacheddriver.ErrNotOpen)
	}
}
