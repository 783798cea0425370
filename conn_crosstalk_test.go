package memcacheddriver_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// TestSoakCrosstalk lets calls be cut off at every point of their exchange and
// looks for a reply that reached another call. MEMCACHED_SOAK, a duration, makes
// it longer.
func TestSoakCrosstalk(t *testing.T) {
	duration := 2500 * time.Millisecond
	if v := os.Getenv("MEMCACHED_SOAK"); v != "" {
		var err error
		duration, err = time.ParseDuration(v)
		require.NoError(t, err, "MEMCACHED_SOAK")
	}
	const keys = 200
	a, b := memcachedtest.Start(t), memcachedtest.Start(t)
	db := connOpen(t, a.Addr()+","+b.Addr(), memcacheddriver.WithMaxIdleConns(32))
	bg := context.Background()
	for i := range keys {
		require.NoError(t, db.Set(bg, soakKey(i), soakValue(soakKey(i)), 0))
	}

	var done, cut atomic.Int64
	end := time.Now().Add(duration)
	var callers sync.WaitGroup
	caller := func(makeCtx func() (context.Context, context.CancelFunc), call func(ctx context.Context) error) {
		callers.Go(func() {
			for time.Now().Before(end) && !t.Failed() {
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
	randomKey := func() string { return soakKey(rand.IntN(keys)) }
	some := func() []string {
		list := make([]string, 1+rand.IntN(20))
		for i, k := range rand.Perm(keys)[:len(list)] {
			list[i] = soakKey(k)
		}
		return list
	}
	for range 8 {
		caller(hurried, func(ctx context.Context) error {
			key := randomKey()
			value, err := db.Get(ctx, key)
			return soakCheck(key, value, err)
		})
		caller(hurried, func(ctx context.Context) error {
			key := randomKey()
			return db.Set(ctx, key, soakValue(key), 0)
		})
		caller(hurried, func(ctx context.Context) error {
			list := some()
			values, err := db.MGet(ctx, list)
			for i, v := range values {
				if v == nil && err != nil {
					continue // cut off before it came
				}
				if err := soakCheck(list[i], v, nil); err != nil {
					return err
				}
			}
			return err
		})
		caller(hurried, func(ctx context.Context) error {
			pairs := make(map[string][]byte)
			for _, key := range some() {
				pairs[key] = soakValue(key)
			}
			return db.MSet(ctx, pairs, 0)
		})
	}
	// On the same sockets, calls that nobody cuts off: each must succeed.
	for range 2 {
		caller(patient, func(ctx context.Context) error {
			key := randomKey()
			value, err := db.Get(ctx, key)
			return soakCheck(key, value, err)
		})
		caller(patient, func(context.Context) error {
			list := some()
			items, err := db.Client().GetMulti(list)
			for _, key := range list {
				if err == nil && items[key] == nil {
					return fmt.Errorf("%s is missing", key)
				}
				if err == nil {
					err = soakCheck(key, items[key].Value, nil)
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
				if err := soakCheck(key, item.Value, nil); err != nil {
					return err
				}
				return c.Set(&memcache.Item{Key: other, Value: soakValue(other)})
			})
		})
	}
	callers.Wait()

	t.Logf("%d calls done, %d cut off", done.Load(), cut.Load())
	require.Greater(t, done.Load(), int64(100))
	require.Greater(t, cut.Load(), int64(100))
	connRequireIdle(t, db)
	for _, s := range db.Stats() {
		require.Equal(t, memcacheddriver.ServerUp, s.State)
		require.Zero(t, s.Timeouts)
		require.Zero(t, s.DialErrors)
		require.LessOrEqual(t, s.Idle, 32)
	}
	for i := range keys {
		value, err := db.Get(bg, soakKey(i))
		require.NoError(t, soakCheck(soakKey(i), value, err))
	}
}

func soakKey(i int) string { return fmt.Sprint("soak-", i) }

// soakValue makes a value that names its key at both ends, of any length.
func soakValue(key string) []byte {
	return []byte(key + ":" + strings.Repeat(key+" ", rand.IntN(100)) + ":" + key)
}

func soakCheck(key string, value []byte, err error) error {
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
func TestCrosstalkLateReply(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	db := connOpen(t, server.Addr())
	bg := context.Background()
	require.NoError(t, db.Set(bg, "a", []byte("of a"), 0))
	require.NoError(t, db.Set(bg, "b", []byte("of b"), 0))
	for _, cut := range []func(ctx context.Context) error{
		func(ctx context.Context) error { _, err := db.Get(ctx, "a"); return err },
		func(ctx context.Context) error { _, err := db.MGet(ctx, []string{"a", "c"}); return err },
		func(ctx context.Context) error {
			return db.Do(ctx, func(c *memcache.Client) error { _, err := c.Get("a"); return err })
		},
	} {
		server.Stop()
		ctx, cancel := context.WithTimeout(bg, 20*time.Millisecond)
		require.ErrorIs(t, cut(ctx), context.DeadlineExceeded)
		cancel()
		server.Cont()
		for range 20 {
			value, err := db.Get(bg, "b")
			require.NoError(t, err)
			require.Equal(t, "of b", string(value))
			values, err := db.MGet(bg, []string{"c", "b"})
			require.NoError(t, err)
			require.Equal(t, [][]byte{nil, []byte("of b")}, values)
		}
	}
}

// A server that says more than it was asked for must not be believed: the rest
// of a reply is no answer to the next call.
func TestCrosstalkReplyThatNobodyAskedFor(t *testing.T) {
	t.Parallel()
	server := connServe(t, func(c net.Conn, r *bufio.Reader) {
		for n := 1; ; n++ {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			key := strings.Fields(line)[1]
			reply := fmt.Sprintf("VALUE %s 0 7 1\r\nright%02d\r\nEND\r\n", key, n)
			if n == 2 {
				reply += fmt.Sprintf("VALUE %s 0 5 1\r\nwrong\r\nEND\r\n", key)
			}
			fmt.Fprint(c, reply)
		}
	})
	for name, get := range map[string]func(db *memcacheddriver.MemcachedDB) ([]byte, error){
		"Get": func(db *memcacheddriver.MemcachedDB) ([]byte, error) { return db.Get(context.Background(), "k") },
		"MGet": func(db *memcacheddriver.MemcachedDB) ([]byte, error) {
			values, err := db.MGet(context.Background(), []string{"k", "l"})
			return values[0], err
		},
		"native": func(db *memcacheddriver.MemcachedDB) ([]byte, error) {
			item, err := db.Client().Get("k")
			if err != nil {
				return nil, err
			}
			return item.Value, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			db := connOpen(t, server.addr())
			for range 5 {
				value, err := get(db)
				if err != nil && err != kv.ErrNotFound {
					continue // refused: as good
				}
				require.Contains(t, string(value), "right")
			}
		})
	}
}
