package pool_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// Each event changes its own figures and no other ones.
func TestStatsTellEachEvent(t *testing.T) {
	t.Parallel()
	get := func(t *testing.T, db *memcacheddriver.MemcachedDB) error {
		_, err := db.Get(t.Context(), "k")
		return err
	}
	fails := func(t *testing.T, db *memcacheddriver.MemcachedDB) {
		t.Helper()
		err := get(t, db)
		require.Error(t, err)
		require.NotEqual(t, kv.ErrNotFound, err)
		require.NotErrorIs(t, err, context.DeadlineExceeded, "that would be the caller's")
	}
	hangs := memcachedtest.Script{"get": memcachedtest.Hang, "gets": memcachedtest.Hang}
	const short = time.Second // long enough for an answer

	type stats = memcacheddriver.ServerStats
	for name, c := range map[string]struct {
		opts []driver.Option
		do   func(t *testing.T, f *memcachedtest.Fake, db *memcacheddriver.MemcachedDB)
		want stats
	}{
		"nothing": {
			do:   func(*testing.T, *memcachedtest.Fake, *memcacheddriver.MemcachedDB) {},
			want: stats{},
		},
		"four calls at the same time": {
			do: func(t *testing.T, _ *memcachedtest.Fake, db *memcacheddriver.MemcachedDB) {
				drivertest.Fill(t, db, 4)
			},
			want: stats{Dials: 4, Idle: 4},
		},
		"a restart": {
			do: func(t *testing.T, f *memcachedtest.Fake, db *memcacheddriver.MemcachedDB) {
				drivertest.Fill(t, db, 4)
				f.Close()
				memcachedtest.StartFakeOn(t, f.Addr(), nil)
				time.Sleep(rest)
				require.Equal(t, kv.ErrNotFound, get(t, db))
			},
			want: stats{Dials: 5, Idle: 1, StaleConns: 4},
		},
		"a call that its caller ends, and one that was over before": {
			do: func(t *testing.T, f *memcachedtest.Fake, db *memcacheddriver.MemcachedDB) {
				ctx, cancel := context.WithCancel(t.Context())
				f.SetScript(memcachedtest.Script{"*": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
					if cmd.Name == "version" || cmd.Name == "mn" {
						c.Default(cmd)
						return
					}
					cancel()
					c.Hang()
				}})
				for range 2 {
					_, err := db.Get(ctx, "k")
					require.ErrorIs(t, err, context.Canceled)
				}
			},
			want: stats{Dials: 1, Cancelled: 1},
		},
		"a caller that ends while it dials": {
			do: func(t *testing.T, f *memcachedtest.Fake, db *memcacheddriver.MemcachedDB) {
				ctx, cancel := context.WithCancel(t.Context())
				f.SetScript(memcachedtest.Script{"version": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
					cancel()
					c.Hang()
				}})
				_, err := db.Get(ctx, "k")
				require.ErrorIs(t, err, context.Canceled)
			},
			want: stats{Dials: 1, Cancelled: 1, Dialing: 1}, // for who comes next
		},
		"a timeout, and a call that goes well": {
			opts: []driver.Option{memcacheddriver.WithTimeout(short)},
			do: func(t *testing.T, f *memcachedtest.Fake, db *memcacheddriver.MemcachedDB) {
				f.SetScript(hangs)
				fails(t, db)
				f.SetScript(nil)
				require.Equal(t, kv.ErrNotFound, get(t, db))
			},
			want: stats{Dials: 2, Timeouts: 1, Idle: 1},
		},
		"a server that falls silent, as the next dial finds": {
			opts: []driver.Option{memcacheddriver.WithTimeout(short)},
			do: func(t *testing.T, f *memcachedtest.Fake, db *memcacheddriver.MemcachedDB) {
				require.Equal(t, kv.ErrNotFound, get(t, db))
				f.SetScript(memcachedtest.Script{"*": memcachedtest.Hang})
				fails(t, db)
				fails(t, db)
			},
			want: stats{Dials: 2, DialErrors: 1, Timeouts: 2, State: memcacheddriver.ServerDown},
		},
		"a stale connection, two dials that fail, and three calls that are refused": {
			do: func(t *testing.T, f *memcachedtest.Fake, db *memcacheddriver.MemcachedDB) {
				require.Equal(t, kv.ErrNotFound, get(t, db))
				f.Close()
				time.Sleep(rest)
				for range 2 {
					fails(t, db)
				}
				for range 3 {
					require.ErrorIs(t, get(t, db), memcacheddriver.ErrServerDown)
				}
			},
			want: stats{Dials: 3, DialErrors: 2, StaleConns: 1, State: memcacheddriver.ServerDown},
		},
		"a dial that times out": {
			opts: []driver.Option{driver.WithDialTimeout(short)},
			do: func(t *testing.T, f *memcachedtest.Fake, db *memcacheddriver.MemcachedDB) {
				// A server that has answered before is not dialled anew without the
				// question; the second call finds no idle connection.
				release := drivertest.Hold(t, db, 1)
				f.SetScript(memcachedtest.Script{"version": memcachedtest.Hang})
				fails(t, db)
				release()
			},
			want: stats{Dials: 2, DialErrors: 1, Timeouts: 1, Idle: 1},
		},
		"down, and back": {
			opts: []driver.Option{memcacheddriver.WithServerFailureLimit(2, time.Nanosecond)},
			do: func(t *testing.T, f *memcachedtest.Fake, db *memcacheddriver.MemcachedDB) {
				f.Close()
				for range 3 {
					fails(t, db)
				}
				require.Equal(t, memcacheddriver.ServerDown, drivertest.Stat(t, db).State)
				memcachedtest.StartFakeOn(t, f.Addr(), nil)
				require.Equal(t, kv.ErrNotFound, get(t, db))
			},
			want: stats{Dials: 4, DialErrors: 3, Idle: 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := memcachedtest.StartFake(t, nil)
			db := drivertest.Open(t, f.Addr(), append([]driver.Option{
				memcacheddriver.WithTimeout(drivertest.Never), memcacheddriver.WithServerFailureLimit(2, drivertest.Never),
			}, c.opts...)...)
			c.do(t, f, db)
			c.want.Addr = f.Addr()
			if c.want.State == "" {
				c.want.State = memcacheddriver.ServerUp
			}
			require.Equal(t, []stats{c.want}, drivertest.ConnStats(db))
		})
	}
}
