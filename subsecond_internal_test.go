package memcacheddriver

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/remover"
)

// openRemoving opens a driver whose values under a second are removed by remove
// when their time is over, unless a call does it.
func openRemoving(t *testing.T, addr string, remove func([]pipeline.KeyCAS) error) *MemcachedDB {
	t.Helper()
	db := New()
	require.NoError(t, db.Open(t.Context(), addr, WithTTLQuery()))
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	db.session.Load().nodes.Load().all[0].remover = remover.New(remove)
	return db
}

var errNotRemoved = errors.New("not removed")

// over sets key to a value whose time is over.
func over(t *testing.T, db *MemcachedDB, key string) {
	t.Helper()
	require.NoError(t, db.Set(t.Context(), key, []byte("1"), time.Millisecond))
	memcachedtest.Eventually(t, func() bool { return len(db.session.Load().nodes.Load().all[0].remover.Over(key)) > 0 }, "its time is over")
}

// All calls agree that a value is over that the server still has.
func TestEveryCallSeesThatATimeIsOver(t *testing.T) {
	t.Parallel()
	addr := memcachedtest.Start(t).Addr()
	db := openRemoving(t, addr, func([]pipeline.KeyCAS) error { return errNotRemoved })
	is := func(want any, got any, err error) error {
		if err == nil && want != got {
			err = fmt.Errorf("%v", got)
		}
		return err
	}
	isMiss := func(err error) error {
		if err != kv.ErrNotFound {
			return fmt.Errorf("no miss: %w", err)
		}
		return nil
	}
	same := func(v []byte) ([]byte, error) { return v, nil }
	for name, call := range map[string]func(ctx context.Context, key string) error{
		"Get": func(ctx context.Context, key string) error {
			_, err := db.Get(ctx, key)
			return isMiss(err)
		},
		"MGet of one": func(ctx context.Context, key string) error {
			values, err := db.MGet(ctx, []string{key})
			return is(true, values[0] == nil, err)
		},
		"MGet": func(ctx context.Context, key string) error {
			values, err := db.MGet(ctx, []string{"there", key})
			return is(true, values[0] != nil && values[1] == nil, err)
		},
		"Exists": func(ctx context.Context, key string) error {
			n, err := db.Exists(ctx, key, "there")
			return is(int64(1), n, err)
		},
		"TTL": func(ctx context.Context, key string) error {
			_, err := db.TTL(ctx, key)
			return isMiss(err)
		},
		"SetNX": func(ctx context.Context, key string) error {
			ok, err := db.SetNX(ctx, key, nil, 0)
			return is(true, ok, err)
		},
		"SetNX under a second": func(ctx context.Context, key string) error {
			ok, err := db.SetNX(ctx, key, nil, 900*time.Millisecond)
			return is(true, ok, err)
		},
		"SetXX": func(ctx context.Context, key string) error {
			ok, err := db.SetXX(ctx, key, nil, 0)
			return is(false, ok, err)
		},
		"SetXX under a second": func(ctx context.Context, key string) error {
			ok, err := db.SetXX(ctx, key, nil, 900*time.Millisecond)
			return is(false, ok, err)
		},
		"Delete": func(ctx context.Context, key string) error {
			n, err := db.Delete(ctx, key)
			return is(int64(0), n, err)
		},
		"Delete of two": func(ctx context.Context, key string) error {
			n, err := db.Delete(ctx, "absent", key)
			return is(int64(0), n, err)
		},
		"Expire":                func(ctx context.Context, key string) error { return isMiss(db.Expire(ctx, key, time.Hour)) },
		"Expire under a second": func(ctx context.Context, key string) error { return isMiss(db.Expire(ctx, key, time.Millisecond)) },
		"CompareAndSwap":        func(ctx context.Context, key string) error { return isMiss(db.CompareAndSwap(ctx, key, same)) },
		"CompareAndSwap, over meanwhile": func(ctx context.Context, key string) error {
			if err := db.Set(ctx, key, []byte("1"), 300*time.Millisecond); err != nil {
				return err
			}
			return isMiss(db.CompareAndSwap(ctx, key, func(v []byte) ([]byte, error) {
				time.Sleep(310 * time.Millisecond)
				return v, nil
			}, CASTTL(time.Hour)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, db.Set(t.Context(), "there", []byte("1"), 0))
			over(t, db, "k")
			assert.NoError(t, call(t.Context(), "k"))
		})
	}
}

// What was written since under the same key is not taken for the one that is over,
// nor what another client has given a longer life.
func TestAnOverTimeIsOneValues(t *testing.T) {
	t.Parallel()
	addr := memcachedtest.Start(t).Addr()
	ctx, other := t.Context(), openRemoving(t, addr, nil)
	db := openRemoving(t, addr, func([]pipeline.KeyCAS) error { return errNotRemoved })
	for name, rescue := range map[string]func() error{
		"set":    func() error { return other.Set(ctx, "k", []byte("2"), time.Hour) },
		"expire": func() error { return other.Expire(ctx, "k", time.Hour) },
	} {
		over(t, db, "k")
		require.NoError(t, rescue(), name)
		_, err := db.Get(ctx, "k")
		assert.NoError(t, err, name)
		over(t, db, "k")
		require.NoError(t, rescue(), name)
		assert.NoError(t, db.Expire(ctx, "k", time.Hour), name)
	}
}

// A server that does not answer for a value whose time is over does not give it
// either.
func TestATimeThatIsOverIsNotGivenWhereItsRemovalFails(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	db := openRemoving(t, server.Addr(), func([]pipeline.KeyCAS) error { return errNotRemoved })
	require.NoError(t, db.Set(t.Context(), "l", nil, 0)) // the connection is there
	over(t, db, "k")
	server.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := db.MGet(ctx, []string{"k", "l"})
	assert.ErrorIs(t, err, context.DeadlineExceeded)
	server.Cont()
	values, err := db.MGet(t.Context(), []string{"k", "l"})
	require.NoError(t, err)
	assert.Equal(t, [][]byte{nil, {}}, values)
}

// An Expire while the value is being removed must not return nil for a value that
// then goes.
func TestExpireOfAValueThatIsBeingRemoved(t *testing.T) {
	t.Parallel()
	addr := memcachedtest.Start(t).Addr()
	for _, ttl := range []time.Duration{time.Hour, 900 * time.Millisecond} {
		begun, proceed := make(chan bool), make(chan bool)
		db := openRemoving(t, addr, nil)
		s := db.session.Load()
		removing := remover.New(func(values []pipeline.KeyCAS) error {
			begun <- true
			<-proceed
			return s.pool.Do(context.Background(), func(l *pool.Lane) error { return removeSubsecond(l.Conn(s.pick("k").server), values) })
		})
		s.pick("k").remover = removing
		require.NoError(t, db.Set(t.Context(), "k", []byte("1"), time.Millisecond))
		<-begun
		assert.Equal(t, kv.ErrNotFound, db.Expire(t.Context(), "k", ttl))
		require.NoError(t, db.Set(t.Context(), "k", []byte("2"), time.Hour))
		close(proceed)
		removing.Wait()
		value, err := db.Get(t.Context(), "k")
		require.NoError(t, err)
		assert.Equal(t, "2", string(value))
	}
}

// Where another server has come that cannot be asked for the value, it does not
// have it.
func TestAnOverTimeEndsWithTheServer(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	db := openRemoving(t, server.Addr(), func([]pipeline.KeyCAS) error { return errNotRemoved })
	over(t, db, "k")
	server.Kill()
	memcachedtest.StartClassicOn(t, server.Addr(), memcachedtest.Start(t).Addr())
	memcachedtest.Eventually(t, func() bool { return db.Ping(t.Context()) == nil }, "the other server answers")
	_, err := db.Get(t.Context(), "k")
	assert.Equal(t, kv.ErrNotFound, err)
}

// Nor does it hinder a call on a connection on which nobody knows whether it can be
// asked; but there it is not forgotten.
func TestAnOverTimeOutlivesAConnectionThatWasNotAsked(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"ms": memcachedtest.Say("HD c5\r\n")})
	db := openRemoving(t, f.Addr(), func([]pipeline.KeyCAS) error { return errNotRemoved })
	over(t, db, "k")
	f.SetScript(memcachedtest.Script{"mg": memcachedtest.HangUp, "mn": memcachedtest.HangUp})
	_, err := db.Get(t.Context(), "k")
	assert.Equal(t, kv.ErrNotFound, err)
	assert.NotEmpty(t, db.session.Load().nodes.Load().all[0].remover.Over("k"))
	assert.Equal(t, kv.ErrNotFound, db.Expire(t.Context(), "k", time.Hour))
}

// What a call asks first is sent again as its own request would be.
func TestAnOverTimeIsAskedForAgain(t *testing.T) {
	t.Parallel()
	hungUp := false
	f := memcachedtest.StartFake(t, memcachedtest.Script{
		"ms": memcachedtest.Say("HD c5\r\n"),
		"mg": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			if !hungUp {
				hungUp = true
				c.Close()
				return
			}
			c.Say("HD c5 t3\r\n")
		},
		"md": memcachedtest.Say("HD\r\n"),
	})
	db := openRemoving(t, f.Addr(), func([]pipeline.KeyCAS) error { return errNotRemoved })
	over(t, db, "k")
	_, err := db.Get(t.Context(), "k")
	assert.Equal(t, kv.ErrNotFound, err)
	assert.Equal(t, 1, f.Count("md"))
}

// A Set replaces what is over: it asks for nothing first.
func TestASetOfAKeyThatIsOverIsOneExchange(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"ms": memcachedtest.Say("HD c5\r\n")})
	db := openRemoving(t, f.Addr(), func([]pipeline.KeyCAS) error { return errNotRemoved })
	over(t, db, "k")
	require.NoError(t, db.Set(t.Context(), "k", nil, 0))
	assert.Zero(t, f.Count("mg"))
	assert.Equal(t, 1, f.Count("set"))
}
