package memcacheddriver_test

import (
	"crypto/tls"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/xraph/go-utils/log"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/codec"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/middleware"
)

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// Which timeout ends a call shows in its error. One of an hour would be the
// test's end.
func TestTimeouts(t *testing.T) {
	t.Parallel()
	silent := startScripted(t, silence)
	deaf := startScripted(t, func(net.Conn) { <-t.Context().Done() }) // reads nothing

	read := func(db *memcacheddriver.MemcachedDB) error {
		_, err := db.Get(t.Context(), "key")
		return err
	}
	// More than any socket buffer.
	write := func(db *memcacheddriver.MemcachedDB) error {
		return db.Set(t.Context(), "key", make([]byte, 32<<20), 0)
	}
	dial := read // of a server that does not answer to TLS or authentication

	for _, c := range []struct {
		name string
		addr string
		dsn  string // its parameters
		opts []driver.Option
		call func(*memcacheddriver.MemcachedDB) error
		says string
	}{
		{"WithTimeout: read", silent, "", []driver.Option{memcacheddriver.WithTimeout(ms(31))}, read, "read timeout of 31ms"},
		{"WithTimeout: write", deaf, "", []driver.Option{memcacheddriver.WithTimeout(ms(31))}, write, "write timeout of 31ms"},
		{"WithReadTimeout", silent, "", []driver.Option{driver.WithReadTimeout(ms(32)), driver.WithWriteTimeout(time.Hour)}, read, "read timeout of 32ms"},
		{"WithWriteTimeout", deaf, "", []driver.Option{driver.WithWriteTimeout(ms(33)), driver.WithReadTimeout(time.Hour)}, write, "write timeout of 33ms"},
		{"WithDialTimeout: TLS", silent, "", []driver.Option{
			driver.WithDialTimeout(ms(34)), memcacheddriver.WithTimeout(time.Hour), driver.WithTLSConfig(&tls.Config{}),
		}, dial, "dial timeout of 34ms"},
		{"WithDialTimeout: authentication", silent, "", []driver.Option{
			driver.WithDialTimeout(ms(34)), memcacheddriver.WithTimeout(time.Hour), memcacheddriver.WithCredentials("ann", "hunter2"),
		}, dial, "dial timeout of 34ms"},

		{"the last one counts: WithReadTimeout", silent, "", []driver.Option{memcacheddriver.WithTimeout(time.Hour), driver.WithReadTimeout(ms(35))}, read, "read timeout of 35ms"},
		{"the last one counts: WithTimeout", silent, "", []driver.Option{driver.WithReadTimeout(time.Hour), memcacheddriver.WithTimeout(ms(36))}, read, "read timeout of 36ms"},

		{"DSN: timeout is for reading", silent, "?timeout=37ms", nil, read, "read timeout of 37ms"},
		{"DSN: timeout is for writing", deaf, "?timeout=37ms", nil, write, "write timeout of 37ms"},
		{"DSN: read_timeout", silent, "?read_timeout=38ms", nil, read, "read timeout of 38ms"},
		{"DSN: write_timeout", deaf, "?write_timeout=39ms", nil, write, "write timeout of 39ms"},
		{"DSN: dial_timeout", silent, "?dial_timeout=40ms&tls=true", nil, dial, "dial timeout of 40ms"},

		{"an option beats the DSN: WithTimeout", silent, "?timeout=1h", []driver.Option{memcacheddriver.WithTimeout(ms(41))}, read, "read timeout of 41ms"},
		{"an option beats the DSN: the special one", silent, "?read_timeout=1h", []driver.Option{memcacheddriver.WithTimeout(ms(42))}, read, "read timeout of 42ms"},
		{"an option beats the DSN: WithWriteTimeout", deaf, "?write_timeout=1h", []driver.Option{driver.WithWriteTimeout(ms(43))}, write, "write timeout of 43ms"},
		{"an option beats the DSN: WithDialTimeout", silent, "?dial_timeout=1h&tls=true", []driver.Option{driver.WithDialTimeout(ms(44))}, dial, "dial timeout of 44ms"},
		{"an option for one leaves the other to the DSN", silent, "?timeout=45ms", []driver.Option{driver.WithWriteTimeout(time.Hour)}, read, "read timeout of 45ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := openDB(t, c.addr+c.dsn, c.opts...)
			err := c.call(db)
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			assert.Contains(t, err.Error(), c.says)
			assert.EqualValues(t, 1, db.Stats()[0].Timeouts)
		})
	}
}

// 0 stands for the default, also against the DSN.
func TestZeroIsTheDefault(t *testing.T) {
	t.Parallel()
	addr := startScripted(t, silence)
	for name, c := range map[string]struct {
		dsn  string
		opts []driver.Option
	}{
		"nothing":                   {"", nil},
		"an option":                 {"", []driver.Option{memcacheddriver.WithTimeout(0)}},
		"the DSN":                   {"?timeout=0&read_timeout=0s", nil},
		"an option beats the DSN":   {"?timeout=1ms", []driver.Option{memcacheddriver.WithTimeout(0)}},
		"an option beats another":   {"", []driver.Option{driver.WithReadTimeout(1), memcacheddriver.WithTimeout(0)}},
		"a nil option is no option": {"", []driver.Option{nil, memcacheddriver.WithTimeout(0), nil}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := openDB(t, addr+c.dsn, c.opts...)
			_, err := db.Get(t.Context(), "key")
			require.Error(t, err)
			assert.Contains(t, err.Error(), "read timeout of 3s")
		})
	}
}

// useAtOnce makes n calls that have a connection at the same time.
func useAtOnce(t *testing.T, db *memcacheddriver.MemcachedDB, n int) {
	t.Helper()
	var ready, all sync.WaitGroup
	ready.Add(n)
	for range n {
		all.Go(func() {
			assert.NoError(t, db.Do(t.Context(), func(c *memcache.Client) error {
				err := c.Ping()
				ready.Done()
				ready.Wait()
				return err
			}))
		})
	}
	all.Wait()
}

func TestMaxIdleConns(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	connections := func() int {
		n, err := strconv.Atoi(server.Stats(t)["curr_connections"])
		require.NoError(t, err)
		return n
	}
	atRest := connections()
	for name, c := range map[string]struct {
		dsn  string
		opts []driver.Option
		want int
	}{
		"WithMaxIdleConns":        {"", []driver.Option{memcacheddriver.WithMaxIdleConns(3)}, 3},
		"WithPoolSize":            {"", []driver.Option{driver.WithPoolSize(4)}, 4},
		"the last one":            {"", []driver.Option{driver.WithPoolSize(4), memcacheddriver.WithMaxIdleConns(2)}, 2},
		"max_idle_conns":          {"?max_idle_conns=5", nil, 5},
		"pool_size":               {"?pool_size=6", nil, 6},
		"an option beats the DSN": {"?max_idle_conns=5", []driver.Option{memcacheddriver.WithMaxIdleConns(1)}, 1},
		"the default":             {"?max_idle_conns=0", nil, 10},
		"0 beats the DSN":         {"?max_idle_conns=5", []driver.Option{memcacheddriver.WithMaxIdleConns(0)}, 10},
		"more than are used":      {"?max_idle_conns=64", nil, 12},
	} {
		db := openDB(t, server.Addr()+c.dsn, c.opts...)
		useAtOnce(t, db, 12)
		st := db.Stats()[0]
		assert.Equal(t, c.want, st.Idle, name)
		assert.Zero(t, st.InUse, name)
		assert.EqualValues(t, 12, st.Dials, "%s: it limits no call", name)
		require.NoError(t, db.Close())
	}
	eventually(t, func() bool { return connections() <= atRest }, "no connection is left at the server")
}

func TestConnMaxIdleTime(t *testing.T) {
	t.Parallel()
	for name, db := range map[string]*memcacheddriver.MemcachedDB{
		"option":                  openShared(t, memcacheddriver.WithConnMaxIdleTime(ms(50))),
		"DSN":                     openDB(t, sharedAddr(t)+"?conn_max_idle_time=50ms"),
		"an option beats the DSN": openDB(t, sharedAddr(t)+"?conn_max_idle_time=1h", memcacheddriver.WithConnMaxIdleTime(ms(50))),
	} {
		useAtOnce(t, db, 3)
		eventually(t, func() bool { return db.Stats()[0].Idle == 0 }, "%s: idle connections are closed", name)
		require.NoError(t, db.Ping(t.Context()), name)
	}
	db := openShared(t)
	useAtOnce(t, db, 3)
	time.Sleep(ms(200))
	assert.Equal(t, 3, db.Stats()[0].Idle, "by default they stay")
}

func TestServerFailureLimit(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server := memcachedtest.Start(t)
	server.Kill()
	for name, c := range map[string]struct {
		dsn   string
		opts  []driver.Option
		after int // calls until it is down; 0: never
		every string
	}{
		"the default":             {"", nil, 3, "1s"},
		"option":                  {"", []driver.Option{memcacheddriver.WithServerFailureLimit(1, time.Hour)}, 1, "1h0m0s"},
		"its default time":        {"", []driver.Option{memcacheddriver.WithServerFailureLimit(2, 0)}, 2, "1s"},
		"off":                     {"", []driver.Option{memcacheddriver.WithServerFailureLimit(0, time.Hour)}, 0, ""},
		"the last one":            {"", []driver.Option{memcacheddriver.WithServerFailureLimit(5, 1), memcacheddriver.WithServerFailureLimit(2, time.Minute)}, 2, "1m0s"},
		"DSN":                     {"?server_failure_limit=2&server_retry_timeout=2h", nil, 2, "2h0m0s"},
		"DSN: off":                {"?server_failure_limit=0", nil, 0, ""},
		"an option beats the DSN": {"?server_failure_limit=0&server_retry_timeout=2h", []driver.Option{memcacheddriver.WithServerFailureLimit(1, time.Minute)}, 1, "1m0s"},
	} {
		db := openDB(t, server.Addr()+c.dsn, c.opts...)
		n := c.after
		if n == 0 {
			n = 10
		}
		for range n {
			assert.Equal(t, memcacheddriver.ServerUp, db.Stats()[0].State, name)
			_, err := db.Get(ctx, "key")
			require.Error(t, err)
			assert.NotErrorIs(t, err, memcacheddriver.ErrServerDown, name)
		}
		_, err := db.Get(ctx, "key")
		if c.after == 0 {
			assert.NotErrorIs(t, err, memcacheddriver.ErrServerDown, name)
			continue
		}
		assert.ErrorIs(t, err, memcacheddriver.ErrServerDown, name)
		assert.Contains(t, err.Error(), "every "+c.every, name)
		if c.every == "1s" {
			continue // a slow machine may be past it
		}
		assert.Equal(t, memcacheddriver.ServerDown, db.Stats()[0].State, name)
		assert.EqualValues(t, c.after, db.Stats()[0].Dials, "%s: a server that is down was dialled", name)
	}
}

// A server that is back is found when the retry timeout is over, and not before.
func TestServerRetryTimeout(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	server.Kill()
	short := openDB(t, server.Addr(), memcacheddriver.WithServerFailureLimit(1, ms(30)))
	long := openDB(t, server.Addr(), memcacheddriver.WithServerFailureLimit(1, time.Hour))
	require.Error(t, short.Ping(t.Context()))
	require.Error(t, long.Ping(t.Context()))
	server.Restart()
	eventually(t, func() bool { return short.Ping(t.Context()) == nil }, "the server is found again")
	assert.ErrorIs(t, long.Ping(t.Context()), memcacheddriver.ErrServerDown)
}

func TestLogger(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server := memcachedtest.Start(t)
	logger := &log.TestLogger{}
	db := openDB(t, server.Addr(), driver.WithLogger(logger), memcacheddriver.WithServerFailureLimit(2, ms(20)))
	require.NoError(t, db.Ping(ctx))
	assert.Empty(t, logger.GetLogs(), "nothing is wrong")
	server.Kill()
	for range 5 {
		require.Error(t, db.Ping(ctx))
	}
	warned := logger.GetLogsByLevel("WARN")
	require.Len(t, warned, 1, "a server that goes down is told once")
	assert.Contains(t, warned[0].Message, server.Addr())
	assert.Contains(t, warned[0].Message, "down")
	server.Restart()
	eventually(t, func() bool { return db.Ping(ctx) == nil }, "the server is back")
	told := logger.GetLogsByLevel("INFO")
	require.Len(t, told, 1, "one that comes back, too")
	assert.Contains(t, told[0].Message, server.Addr())

	clear := &log.TestLogger{}
	openDB(t, "mc1,localhost,[::1],/run/m", driver.WithLogger(clear), memcacheddriver.WithCredentials("ann", "hunter2"))
	require.Len(t, clear.GetLogs(), 1, "credentials in the clear, but not on this machine")
	assert.Contains(t, clear.GetLogs()[0].Message, "mc1:11211")
}

func TestStoreOptions(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := openStore(t, sharedAddr(t),
		memcacheddriver.WithStoreOptions(kv.WithCodec(codec.MsgPack())),
		memcacheddriver.WithTimeout(5*time.Second),
		memcacheddriver.WithStoreOptions(kv.WithHook(middleware.NewNamespace("tenant"))))
	key := newKey()
	require.NoError(t, store.Set(ctx, key, map[string]int{"a": 1}))
	raw, err := memcacheddriver.Unwrap(store).Get(ctx, "tenant:"+key)
	require.NoError(t, err, "the hook was lost")
	want, err := codec.MsgPack().Encode(map[string]int{"a": 1})
	require.NoError(t, err)
	assert.Equal(t, want, raw, "the codec was lost")

	err = memcacheddriver.New().Open(ctx, sharedAddr(t), memcacheddriver.WithStoreOptions(kv.WithCodec(codec.MsgPack())))
	assert.ErrorIs(t, err, memcacheddriver.ErrInvalidOption, "Open makes no store")
}

func TestNonsense(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		names string
		opt   driver.Option
	}{
		{"WithTimeout", memcacheddriver.WithTimeout(-1)},
		{"WithReadTimeout", driver.WithReadTimeout(-time.Second)},
		{"WithWriteTimeout", driver.WithWriteTimeout(-time.Second)},
		{"WithDialTimeout", driver.WithDialTimeout(-time.Second)},
		{"WithMaxIdleConns", memcacheddriver.WithMaxIdleConns(-1)},
		{"WithPoolSize", driver.WithPoolSize(-1)},
		{"WithConnMaxIdleTime", memcacheddriver.WithConnMaxIdleTime(-1)},
		{"WithServerFailureLimit", memcacheddriver.WithServerFailureLimit(-1, 0)},
		{"WithServerFailureLimit", memcacheddriver.WithServerFailureLimit(1, -1)},
		{"WithCredentials", memcacheddriver.WithCredentials("", "hunter2")},
	} {
		for _, dsn := range []string{"mc1", "memcached://ann:pw@mc1?timeout=1s&max_idle_conns=1&server_failure_limit=1"} {
			db := memcacheddriver.New()
			err := db.Open(t.Context(), dsn, c.opt)
			require.ErrorIs(t, err, memcacheddriver.ErrInvalidOption, c.names)
			assert.Contains(t, err.Error(), c.names)
			assert.NotContains(t, err.Error(), "hunter2")
			assert.ErrorIs(t, db.Ping(t.Context()), memcacheddriver.ErrNotOpen, "%s: it is open all the same", c.names)
			_, err = memcacheddriver.OpenStore(t.Context(), dsn, c.opt)
			assert.ErrorIs(t, err, memcacheddriver.ErrInvalidOption, c.names)
		}
	}
}

// Options are the caller's: the same ones open many drivers.
func TestOptionsCanBeUsedAgain(t *testing.T) {
	t.Parallel()
	opts := make([]driver.Option, 2, 8)
	opts[0] = memcacheddriver.WithTTLQuery()
	opts[1] = memcacheddriver.WithStoreOptions(kv.WithCodec(codec.MsgPack()))
	for range 2 {
		store := openStore(t, sharedAddr(t), opts...)
		assert.Equal(t, codec.MsgPack().Name(), store.Codec().Name())
		_, err := store.TTL(t.Context(), newKey())
		assert.ErrorIs(t, err, kv.ErrNotFound)
	}
	assert.Nil(t, opts[:3][2], "the caller's slice was written to")
}
