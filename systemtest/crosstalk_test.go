package systemtest

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
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestNoReplyReachesAnotherCall(t *testing.T) {
	t.Parallel()
	crosstalkFor(t, 2*time.Second)
}

func TestSoakNoReplyReachesAnotherCall(t *testing.T) {
	t.Parallel()
	crosstalkFor(t, drivertest.Soak(t))
}

// crosstalkFor lets calls be cut off at every point of their exchange, for a time
// and until there are enough of them, and looks for a reply that reached another
// call.
func crosstalkFor(t *testing.T, d time.Duration) {
	const keys = 200
	_, addrs := drivertest.StartServers(t, 2)
	// A busy machine must not make a timeout of a wait.
	db := drivertest.Open(t, strings.Join(addrs, ","), memcacheddriver.WithMaxIdleConns(32), memcacheddriver.WithTimeout(drivertest.Never))
	bg := t.Context()
	for i := range keys {
		require.NoError(t, db.Set(bg, crosstalkKey(i), crosstalkValue(crosstalkKey(i)), 0))
	}

	const enough = 100
	var done, cut atomic.Int64
	start := time.Now()
	ended := func() bool {
		passed := time.Since(start)
		return t.Failed() || passed > drivertest.Never || passed > d && done.Load() > enough && cut.Load() > enough
	}
	var callers sync.WaitGroup
	caller := func(makeCtx func() (context.Context, context.CancelFunc), call func(ctx context.Context) error) {
		callers.Go(func() {
			for !ended() {
				ctx, cancel := makeCtx()
				err := call(ctx)
				switch {
				case err == nil:
					done.Add(1)
				case ctx.Err() != nil && errors.Is(err, ctx.Err()):
					cut.Add(1)
				default:
					t.Errorf("neither done nor cut off by its context (%v): %v", ctx.Err(), err)
				}
				cancel()
			}
		})
	}
	hurried := func() (context.Context, context.CancelFunc) {
		return context.WithTimeout(bg, time.Duration(rand.IntN(400))*time.Microsecond)
	}
	patient := func() (context.Context, context.CancelFunc) { return bg, func() {} }
	randomKey := func() string { return crosstalkKey(rand.IntN(keys)) }
	some := func() []string {
		list := make([]string, 1+rand.IntN(20))
		for i, k := range rand.Perm(keys)[:len(list)] {
			list[i] = crosstalkKey(k)
		}
		return list
	}
	for range 8 {
		caller(hurried, func(ctx context.Context) error {
			key := randomKey()
			value, err := db.Get(ctx, key)
			return crosstalkCheck(key, value, err)
		})
		caller(hurried, func(ctx context.Context) error {
			key := randomKey()
			return db.Set(ctx, key, crosstalkValue(key), 0)
		})
		caller(hurried, func(ctx context.Context) error {
			list := some()
			values, err := db.MGet(ctx, list)
			for i, v := range values {
				if v == nil && err != nil {
					continue // cut off before it came
				}
				if err := crosstalkCheck(list[i], v, nil); err != nil {
					return err
				}
			}
			return err
		})
		caller(hurried, func(ctx context.Context) error {
			pairs := make(map[string][]byte)
			for _, key := range some() {
				pairs[key] = crosstalkValue(key)
			}
			return db.MSet(ctx, pairs, 0)
		})
	}
	// On the same sockets, calls that nobody cuts off: each must succeed.
	for range 2 {
		caller(patient, func(ctx context.Context) error {
			key := randomKey()
			value, err := db.Get(ctx, key)
			return crosstalkCheck(key, value, err)
		})
		caller(patient, func(context.Context) error {
			list := some()
			items, err := db.Client().GetMulti(list)
			for _, key := range list {
				if err == nil && items[key] == nil {
					return fmt.Errorf("%s is missing", key)
				}
				if err == nil {
					err = crosstalkCheck(key, items[key].Value, nil)
				}
			}
			return err
		})
		caller(hurried, func(ctx context.Context) error {
			return db.Do(ctx, func(c *memcache.Client) error {
				key, other := randomKey(), randomKey()
				item, err := c.Get(key)
				if err != nil {
					return err
				}
				if err := crosstalkCheck(key, item.Value, nil); err != nil {
					return err
				}
				return c.Set(&memcache.Item{Key: other, Value: crosstalkValue(other)})
			})
		})
	}
	callers.Wait()

	t.Logf("%d calls done, %d cut off", done.Load(), cut.Load())
	require.Greater(t, done.Load(), int64(enough))
	require.Greater(t, cut.Load(), int64(enough))
	drivertest.RequireIdle(t, db)
	for _, s := range db.Stats() {
		require.Equal(t, memcacheddriver.ServerUp, s.State)
		require.Zero(t, s.Timeouts)
		require.Zero(t, s.DialErrors)
		require.LessOrEqual(t, s.Idle, 32)
	}
	for i := range keys {
		value, err := db.Get(bg, crosstalkKey(i))
		require.NoError(t, crosstalkCheck(crosstalkKey(i), value, err))
	}
}

func crosstalkKey(i int) string { return fmt.Sprint("crosstalk-", i) }

// crosstalkValue makes a value that names its key at both ends, of any length.
func crosstalkValue(key string) []byte {
	return []byte(key + ":" + strings.Repeat(key+" ", rand.IntN(100)) + ":" + key)
}

func crosstalkCheck(key string, value []byte, err error) error {
	if err != nil {
		return err
	}
	parts := strings.Split(string(value), ":")
	if len(parts) != 3 || parts[0] != key || parts[2] != key || strings.ReplaceAll(parts[1], key+" ", "") != "" {
		return fmt.Errorf("the value of %s is %.100q", key, value)
	}
	return nil
}

// A reply that comes late, after its call was cut off, meets nobody.
func TestALateReplyReachesNoCall(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	db := drivertest.Open(t, server.Addr(), memcacheddriver.WithTTLQuery(), memcacheddriver.WithTimeout(drivertest.Never))
	bg := t.Context()
	key, other, absent := drivertest.Key(), drivertest.Key(), drivertest.Key()
	for _, call := range drivertest.Calls {
		if strings.Contains(call.Name, "under a second") {
			continue // the removal of the value is one more call, at any time
		}
		require.NoError(t, db.Set(bg, key, []byte("1"), 0))
		require.NoError(t, db.Set(bg, other, drivertest.Value(other), 0))
		dials := drivertest.Dials(db)
		server.Stop()
		ctx, cancel := context.WithTimeout(bg, 20*time.Millisecond)
		require.ErrorIs(t, call.Run(ctx, db, key), context.DeadlineExceeded, call.Name)
		cancel()
		server.Cont()
		require.Equal(t, dials, drivertest.Dials(db), "%s was cut off while it dialled", call.Name)
		for range 5 {
			value, err := db.Get(bg, other)
			require.NoError(t, err)
			require.Equal(t, string(drivertest.Value(other)), string(value), call.Name)
			values, err := db.MGet(bg, []string{absent, other})
			require.NoError(t, err)
			require.Equal(t, [][]byte{nil, drivertest.Value(other)}, values, call.Name)
		}
	}
}

// A server that says more than it was asked for must not be believed: the rest
// of a reply is no answer to the next call.
func TestWhatNobodyAskedForAnswersNoCall(t *testing.T) {
	t.Parallel()
	for name, get := range map[string]func(t *testing.T, db *memcacheddriver.MemcachedDB) ([]byte, error){
		"Get": func(t *testing.T, db *memcacheddriver.MemcachedDB) ([]byte, error) { return db.Get(t.Context(), "k") },
		"MGet": func(t *testing.T, db *memcacheddriver.MemcachedDB) ([]byte, error) {
			values, err := db.MGet(t.Context(), []string{"k", "l"})
			return values[0], err
		},
		"native": func(t *testing.T, db *memcacheddriver.MemcachedDB) ([]byte, error) {
			item, err := db.Client().Get("k")
			if err != nil {
				return nil, err
			}
			return item.Value, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var replies atomic.Int64
			reply := func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
				text := "VALUE k 0 5 1\r\nright\r\nEND\r\n"
				if replies.Add(1)%2 == 0 {
					text += "VALUE k 0 5 1\r\nwrong\r\nEND\r\n"
				}
				c.Say(text)
			}
			f := memcachedtest.StartFake(t, memcachedtest.Script{"get": reply, "gets": reply})
			db := drivertest.Open(t, f.Addr())
			right := 0
			for range 6 {
				value, err := get(t, db)
				if err == nil {
					require.Equal(t, "right", string(value))
					right++
				}
			}
			// A reply with too much after it may be refused as well.
			require.GreaterOrEqual(t, right, 3)
			require.EqualValues(t, 6, replies.Load())
		})
	}
}
