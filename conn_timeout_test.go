package memcacheddriver_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// connTimedOut checks that a call ended by the named timeout of d.
func connTimedOut(t *testing.T, db *memcacheddriver.MemcachedDB, name string, d time.Duration, call func() error) {
	t.Helper()
	before := connStats(t, db)
	start := time.Now()
	err := call()
	took := time.Since(start)
	require.ErrorContains(t, err, name+" timeout of "+d.String())
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	var timeout net.Error
	require.True(t, errors.As(err, &timeout) && timeout.Timeout())
	require.NotErrorIs(t, err, context.DeadlineExceeded, "that would be the caller's")
	require.ErrorContains(t, err, before.Addr)
	require.GreaterOrEqual(t, took, d)
	require.Less(t, took, d+10*time.Second)
	require.Equal(t, before.Timeouts+1, connStats(t, db).Timeouts)
	connRequireIdle(t, db)
}

// Each timeout is its own: the others would take for ever.
func TestTimeoutsAreEachTheirOwn(t *testing.T) {
	t.Parallel()
	const d = 60 * time.Millisecond
	open := func(t *testing.T, addr string, dial, read, write time.Duration, opts ...driver.Option) *memcacheddriver.MemcachedDB {
		return connOpen(t, addr, append(opts, driver.WithDialTimeout(dial), driver.WithReadTimeout(read), driver.WithWriteTimeout(write),
			memcacheddriver.WithServerFailureLimit(0, 0))...)
	}
	get := func(db *memcacheddriver.MemcachedDB) func() error {
		return func() error { _, err := db.Get(context.Background(), "k"); return err }
	}
	native := func(db *memcacheddriver.MemcachedDB) func() error {
		return func() error { _, err := db.Client().Get("k"); return err }
	}
	for name, opt := range map[string]struct {
		addr func() string
		opts []driver.Option
	}{
		"connecting":     {func() string { return connBlackHole(t) }, nil},
		"TLS":            {func() string { return connServe(t, connHang).addr() }, []driver.Option{driver.WithTLSConfig(&tls.Config{})}},
		"authentication": {func() string { return connServe(t, connHang).addr() }, []driver.Option{memcacheddriver.WithCredentials("u", "p")}},
	} {
		t.Run("dial, "+name, func(t *testing.T) {
			db := open(t, opt.addr(), d, never, never, opt.opts...)
			connTimedOut(t, db, "dial", d, get(db))
			connTimedOut(t, db, "dial", d, native(db))
			require.Equal(t, uint64(2), connStats(t, db).DialErrors)
		})
	}
	t.Run("read", func(t *testing.T) {
		db := open(t, connServe(t, connHang).addr(), never, d, never)
		connTimedOut(t, db, "read", d, get(db))
		connTimedOut(t, db, "read", d, native(db))
		connTimedOut(t, db, "read", d, func() error { return db.MSet(context.Background(), map[string][]byte{"a": nil, "b": nil}, 0) })
		require.Zero(t, connStats(t, db).DialErrors)
	})
	t.Run("write", func(t *testing.T) {
		server := connServe(t, func(c net.Conn, r *bufio.Reader) { // says what it speaks, then reads nothing
			if b, _ := r.Peek(len("version")); string(b) == "version" {
				_, _ = r.ReadString('\n')
				_, _ = r.ReadString('\n')
				fmt.Fprint(c, "VERSION 1.6.18\r\nMN\r\n")
			}
			time.Sleep(time.Second)
		})
		db := open(t, server.addr(), never, never, d)
		huge := make([]byte, 64<<20) // more than the buffers hold
		connTimedOut(t, db, "write", d, func() error { return db.Set(context.Background(), "k", huge, 0) })
		connTimedOut(t, db, "write", d, func() error { return db.Client().Set(&memcache.Item{Key: "k", Value: huge}) })
		connTimedOut(t, db, "write", d, func() error {
			return db.MSet(context.Background(), map[string][]byte{"a": huge, "b": huge}, 0)
		})
	})
	t.Run("WithTimeout sets read and write", func(t *testing.T) {
		db := connOpen(t, connServe(t, connHang).addr(), driver.WithReadTimeout(never), memcacheddriver.WithTimeout(d))
		connTimedOut(t, db, "read", d, get(db))
		db = connOpen(t, connServe(t, connHang).addr()+"?timeout=1m&read_timeout="+d.String())
		connTimedOut(t, db, "read", d, get(db))
	})
}

// connDrip sends reply for ever, byte by byte.
func connDrip(c net.Conn, reply string) {
	for i := 0; ; i++ {
		if _, err := io.WriteString(c, reply[i%len(reply):i%len(reply)+1]); err != nil {
			return
		}
		time.Sleep(15 * time.Millisecond)
	}
}

// A byte now and then prolongs nothing, in a call of one key nor in a batch.
func TestTimeoutIsNotProlongedByBytes(t *testing.T) {
	t.Parallel()
	const d = 150 * time.Millisecond
	server := connServe(t, func(c net.Conn, r *bufio.Reader) {
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			if strings.HasPrefix(line, "mn") {
				fmt.Fprint(c, "MN\r\n")
				continue
			}
			if strings.HasPrefix(line, "get") {
				fmt.Fprint(c, "VALUE "+strings.Fields(line)[1]+" 0 100000 1\r\n")
			}
			connDrip(c, "S")
		}
	})
	db := connOpen(t, server.addr(), memcacheddriver.WithTTLQuery(), memcacheddriver.WithServerFailureLimit(0, 0),
		driver.WithDialTimeout(never), driver.WithWriteTimeout(never), driver.WithReadTimeout(d))
	calls := connCalls()
	calls = append(calls,
		connCall{"native Get", func(context.Context, *memcacheddriver.MemcachedDB) error { _, err := db.Client().Get("k"); return err }},
		connCall{"native Set", func(context.Context, *memcacheddriver.MemcachedDB) error {
			return db.Client().Set(&memcache.Item{Key: "k"})
		}},
		connCall{"native GetMulti", func(context.Context, *memcacheddriver.MemcachedDB) error {
			_, err := db.Client().GetMulti([]string{"k", "l", "m"})
			return err
		}},
		connCall{"GetMulti in Do", func(ctx context.Context, _ *memcacheddriver.MemcachedDB) error {
			return db.Do(ctx, func(c *memcache.Client) error {
				_, err := c.GetMulti([]string{"k", "l", "m"})
				return err
			})
		}},
	)
	for _, call := range calls {
		t.Run(call.name, func(t *testing.T) {
			connTimedOut(t, db, "read", d, func() error { return call.run(context.Background(), db) })
		})
	}
}

// A server that is slow but keeps answering does not time out, as long as each
// reply comes in time.
func TestTimeoutIsForEachReplyOfABatch(t *testing.T) {
	t.Parallel()
	const (
		keys  = 14
		pause = 50 * time.Millisecond
		d     = 400 * time.Millisecond // less than all replies take, much more than one
	)
	server := connServe(t, func(c net.Conn, r *bufio.Reader) {
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			fields := strings.Fields(line)
			switch fields[0] {
			case "get", "gets":
				for _, key := range fields[1:] {
					time.Sleep(pause)
					fmt.Fprintf(c, "VALUE %s 0 1 1\r\nv\r\n", key)
				}
				fmt.Fprint(c, "END\r\n")
			case "set":
				if _, err := r.ReadString('\n'); err != nil {
					return
				}
				time.Sleep(pause)
				fmt.Fprint(c, "STORED\r\n")
			case "version":
				fmt.Fprint(c, "VERSION 1.6.18\r\n")
			case "mn":
				fmt.Fprint(c, "MN\r\n")
			case "mg":
				time.Sleep(pause)
				fmt.Fprint(c, "HD\r\n")
			case "delete":
				time.Sleep(pause)
				fmt.Fprint(c, "DELETED\r\n")
			}
		}
	})
	db := connOpen(t, server.addr(), driver.WithDialTimeout(never), driver.WithWriteTimeout(never), driver.WithReadTimeout(d))
	var names []string
	for i := range keys {
		names = append(names, fmt.Sprint("k", i))
	}
	ctx := context.Background()
	for name, call := range map[string]func() (int, error){
		"MGet": func() (int, error) {
			n := 0
			values, err := db.MGet(ctx, names)
			for _, v := range values {
				n += len(v)
			}
			return n, err
		},
		"Delete": func() (int, error) { n, err := db.Delete(ctx, names...); return int(n), err },
		"Exists": func() (int, error) { n, err := db.Exists(ctx, names...); return int(n), err },
		"native GetMulti": func() (int, error) {
			items, err := db.Client().GetMulti(names)
			return len(items), err
		},
		"GetMulti in Do": func() (n int, err error) {
			err = db.Do(ctx, func(c *memcache.Client) error {
				items, err := c.GetMulti(names)
				n = len(items)
				return err
			})
			return n, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			n, err := call()
			require.NoError(t, err)
			require.Equal(t, keys, n)
			require.Greater(t, time.Since(start), d)
		})
	}
}

// Values without end, each complete: more than were asked for are no progress.
func TestTimeoutOfRepliesWithoutEnd(t *testing.T) {
	t.Parallel()
	const d = 150 * time.Millisecond
	server := connServe(t, func(c net.Conn, r *bufio.Reader) {
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			fields := strings.Fields(line)
			if fields[0] == "version" || fields[0] == "mn" {
				fmt.Fprint(c, map[string]string{"version": "VERSION 1.4.0\r\n", "mn": "ERROR\r\n"}[fields[0]])
				continue
			}
			for err == nil {
				_, err = fmt.Fprintf(c, "VALUE %s 0 1 1\r\nv\r\n", fields[1])
				time.Sleep(20 * time.Millisecond)
			}
		}
	})
	for name, call := range map[string]func(ctx context.Context, db *memcacheddriver.MemcachedDB) error{
		"Get": func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.Get(ctx, "k")
			return err
		},
		"Exists": func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.Exists(ctx, "k")
			return err
		},
		"MGet": func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.MGet(ctx, []string{"k", "l"})
			return err
		},
		"GetMulti": func(_ context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.Client().GetMulti([]string{"k", "l"})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := connOpen(t, server.addr(), memcacheddriver.WithTimeout(d))
			// The way out of a call that does not end.
			ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
			defer cancel()
			err := call(ctx, db)
			require.Error(t, err)
			require.NoError(t, ctx.Err(), "the call did not end by itself")
		})
	}
}

// A hung server costs a single-key call one read timeout, over a real network
// stack too.
func TestTimeoutOfAStoppedServer(t *testing.T) {
	t.Parallel()
	const d = 100 * time.Millisecond
	server := memcachedtest.Start(t)
	db := connOpen(t, server.Addr(), memcacheddriver.WithTimeout(d), memcacheddriver.WithServerFailureLimit(0, 0))
	require.NoError(t, db.Set(context.Background(), "k", []byte("v"), 0))
	server.Stop()
	connTimedOut(t, db, "read", d, func() error { _, err := db.Get(context.Background(), "k"); return err })
	connTimedOut(t, db, "read", d, func() error { _, err := db.MGet(context.Background(), []string{"k", "l"}); return err })
	server.Cont()
	for range 5 {
		value, err := db.Get(context.Background(), "k")
		require.NoError(t, err)
		require.Equal(t, "v", string(value))
	}
}
