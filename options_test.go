package memcacheddriver_test

import (
	"crypto/tls"
	"errors"
	"io"
	"math"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/codec"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/middleware"
)

func ms(n int) time.Duration { return time.Duration(n) * time.Millisecond }

// Which one ends a call shows in its error; none of an hour does. Those of reading
// and writing leave a busy machine the time for the dial's question.
func TestTimeoutsAreThoseThatWereSet(t *testing.T) {
	t.Parallel()
	silent := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.Hang)).Addr()
	mute := memcachedtest.Listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }) // says nothing to TLS and authentication
	deaf := memcachedtest.Listen(t, func(c net.Conn) {                                  // reads no more than a dial's question
		_, _ = io.ReadFull(c, make([]byte, len("version\r\nmn\r\n")))
		_, _ = io.WriteString(c, "VERSION 1.6.18\r\nMN\r\n")
		<-t.Context().Done()
	})
	read := func(db *memcacheddriver.MemcachedDB) error {
		_, err := db.Get(t.Context(), "key")
		return err
	}
	dial := read
	// More than any socket buffer.
	write := func(db *memcacheddriver.MemcachedDB) error {
		return db.Set(t.Context(), "key", make([]byte, 32<<20), 0)
	}

	for _, c := range []struct {
		name string
		addr string
		dsn  string // its parameters
		opts []driver.Option
		call func(*memcacheddriver.MemcachedDB) error
		says string
	}{
		{"WithTimeout: read", silent, "", []driver.Option{memcacheddriver.WithTimeout(ms(310))}, read, "read timeout of 310ms"},
		{"WithTimeout: write", deaf, "", []driver.Option{memcacheddriver.WithTimeout(ms(310))}, write, "write timeout of 310ms"},
		{"WithReadTimeout", silent, "", []driver.Option{driver.WithReadTimeout(ms(320)), driver.WithWriteTimeout(time.Hour)}, read, "read timeout of 320ms"},
		{"WithWriteTimeout", deaf, "", []driver.Option{driver.WithWriteTimeout(ms(330)), driver.WithReadTimeout(time.Hour)}, write, "write timeout of 330ms"},
		{"WithDialTimeout: TLS", mute, "", []driver.Option{
			driver.WithDialTimeout(ms(34)), memcacheddriver.WithTimeout(time.Hour), driver.WithTLSConfig(&tls.Config{}),
		}, dial, "dial timeout of 34ms"},
		{"WithDialTimeout: authentication", mute, "", []driver.Option{
			driver.WithDialTimeout(ms(34)), memcacheddriver.WithTimeout(time.Hour), memcacheddriver.WithCredentials("ann", "hunter2"),
		}, dial, "dial timeout of 34ms"},

		{"the last one counts: WithReadTimeout", silent, "", []driver.Option{memcacheddriver.WithTimeout(time.Hour), driver.WithReadTimeout(ms(350))}, read, "read timeout of 350ms"},
		{"the last one counts: WithTimeout", silent, "", []driver.Option{driver.WithReadTimeout(time.Hour), memcacheddriver.WithTimeout(ms(360))}, read, "read timeout of 360ms"},

		{"DSN: timeout is for reading", silent, "?timeout=370ms", nil, read, "read timeout of 370ms"},
		{"DSN: timeout is for writing", deaf, "?timeout=370ms", nil, write, "write timeout of 370ms"},
		{"DSN: read_timeout", silent, "?timeout=1h&read_timeout=380ms", nil, read, "read timeout of 380ms"},
		{"DSN: write_timeout", deaf, "?timeout=1h&write_timeout=390ms", nil, write, "write timeout of 390ms"},
		{"DSN: dial_timeout", mute, "?dial_timeout=40ms&tls=true", nil, dial, "dial timeout of 40ms"},

		{"an option beats the DSN: WithTimeout", silent, "?timeout=1h", []driver.Option{memcacheddriver.WithTimeout(ms(410))}, read, "read timeout of 410ms"},
		{"an option beats the DSN: the special one", silent, "?read_timeout=1h", []driver.Option{memcacheddriver.WithTimeout(ms(420))}, read, "read timeout of 420ms"},
		{"an option beats the DSN: WithWriteTimeout", deaf, "?write_timeout=1h", []driver.Option{driver.WithWriteTimeout(ms(430))}, write, "write timeout of 430ms"},
		{"an option beats the DSN: WithDialTimeout", mute, "?dial_timeout=1h&tls=true", []driver.Option{driver.WithDialTimeout(ms(44))}, dial, "dial timeout of 44ms"},
		{"an option for one leaves the other to the DSN", silent, "?timeout=450ms", []driver.Option{driver.WithWriteTimeout(time.Hour)}, read, "read timeout of 450ms"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := drivertest.Open(t, c.addr+c.dsn, c.opts...)
			err := c.call(db)
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			assert.ErrorContains(t, err, c.says)
			assert.EqualValues(t, 1, drivertest.Stat(t, db).Timeouts)
		})
	}
}

func TestTimeoutOfZeroIsTheDefault(t *testing.T) {
	t.Parallel()
	addr := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.Hang)).Addr()
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
			_, err := drivertest.Open(t, addr+c.dsn, c.opts...).Get(t.Context(), "key")
			assert.ErrorContains(t, err, "read timeout of 3s")
		})
	}
}

// What time.Duration can hold at most is as good as for ever.
func TestDurationsMayBeTheLongest(t *testing.T) {
	t.Parallel()
	const longest = time.Duration(math.MaxInt64)
	ns := strconv.FormatInt(math.MaxInt64, 10) + "ns"
	for name, c := range map[string]struct {
		dsn  string
		opts []driver.Option
	}{
		"options": {"", []driver.Option{
			memcacheddriver.WithTimeout(longest), driver.WithDialTimeout(longest),
			memcacheddriver.WithConnMaxIdleTime(longest), memcacheddriver.WithServerFailureLimit(1, longest),
		}},
		"DSN": {"?timeout=" + ns + "&dial_timeout=" + ns + "&read_timeout=" + ns + "&write_timeout=" + ns +
			"&conn_max_idle_time=" + ns + "&server_failure_limit=1&server_retry_timeout=" + ns, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := memcachedtest.Start(t)
			db := drivertest.OpenAsked(t, server.Addr()+c.dsn, append(c.opts, memcacheddriver.WithTTLQuery())...)
			drivertest.Fill(t, db, 3)
			time.Sleep(ms(20)) // a sweep or a look at what was idle would close them
			drivertest.Fill(t, db, 3)
			assert.EqualValues(t, 3, drivertest.Dials(db), "an idle connection was closed")
			for _, call := range drivertest.Calls {
				require.NoError(t, call.Run(t.Context(), db, drivertest.Key()), call.Name)
			}

			server.Kill()
			_, err := db.Get(t.Context(), "key")
			require.Error(t, err)
			_, err = db.Get(t.Context(), "key")
			require.ErrorIs(t, err, memcacheddriver.ErrServerDown)
			time.Sleep(ms(20))
			_, err = db.Get(t.Context(), "key")
			require.ErrorIs(t, err, memcacheddriver.ErrServerDown)
		})
	}
}

func TestServerFailureLimitIsHowManyCallsFindAServerDead(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	server.Kill()
	for name, c := range map[string]struct {
		dsn   string
		opts  []driver.Option
		after int // calls until it is down
		every string
	}{
		"the default":             {"", nil, 3, "1s"},
		"option":                  {"", []driver.Option{memcacheddriver.WithServerFailureLimit(1, time.Hour)}, 1, "1h0m0s"},
		"its default time":        {"", []driver.Option{memcacheddriver.WithServerFailureLimit(2, 0)}, 2, "1s"},
		"the last one":            {"", []driver.Option{memcacheddriver.WithServerFailureLimit(5, 1), memcacheddriver.WithServerFailureLimit(2, time.Minute)}, 2, "1m0s"},
		"DSN":                     {"?server_failure_limit=2&server_retry_timeout=2h", nil, 2, "2h0m0s"},
		"an option beats the DSN": {"?server_failure_limit=0&server_retry_timeout=2h", []driver.Option{memcacheddriver.WithServerFailureLimit(1, time.Minute)}, 1, "1m0s"},
	} {
		db := drivertest.Open(t, server.Addr()+c.dsn, c.opts...)
		for range c.after {
			assert.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State, name)
			_, err := db.Get(t.Context(), "key")
			require.Error(t, err, name)
			assert.NotErrorIs(t, err, memcacheddriver.ErrServerDown, name)
		}
		assert.Equal(t, memcacheddriver.ServerDown, drivertest.Stat(t, db).State, name)
		assert.EqualValues(t, c.after, drivertest.Dials(db), name)
		// Where that is 1 s, a slow machine may take longer for the next call.
		memcachedtest.Eventually(t, func() bool {
			_, err := db.Get(t.Context(), "key")
			return errors.Is(err, memcacheddriver.ErrServerDown) && strings.Contains(err.Error(), "every "+c.every)
		}, "%s: calls are refused for %s", name, c.every)
		if c.every != "1s" {
			assert.EqualValues(t, c.after, drivertest.Dials(db), "%s: a server that is down was dialled", name)
		}
	}
}

func TestStoreOptionsReachTheStore(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := drivertest.OpenStore(t, memcachedtest.Addr(t),
		memcacheddriver.WithStoreOptions(kv.WithCodec(codec.MsgPack())),
		memcacheddriver.WithTimeout(5*time.Second),
		memcacheddriver.WithStoreOptions(kv.WithHook(middleware.NewNamespace("tenant"))))
	key := drivertest.Key()
	require.NoError(t, store.Set(ctx, key, map[string]int{"a": 1}))
	raw, err := memcacheddriver.Unwrap(store).Get(ctx, "tenant:"+key)
	require.NoError(t, err, "the hook was lost")
	want, err := codec.MsgPack().Encode(map[string]int{"a": 1})
	require.NoError(t, err)
	assert.Equal(t, want, raw, "the codec was lost")

	err = memcacheddriver.New().Open(ctx, memcachedtest.Addr(t), memcacheddriver.WithStoreOptions(kv.WithCodec(codec.MsgPack())))
	assert.ErrorIs(t, err, memcacheddriver.ErrInvalidOption, "Open makes no store")
}

func TestOptionsRefuseNonsense(t *testing.T) {
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
		{"WithMaxOpenConns", memcacheddriver.WithMaxOpenConns(-1)},
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
			assert.ErrorContains(t, err, c.names)
			assert.NotContains(t, err.Error(), "hunter2")
			assert.ErrorIs(t, db.Ping(t.Context()), memcacheddriver.ErrNotOpen, "%s: it is open all the same", c.names)
			_, err = memcacheddriver.OpenStore(t.Context(), dsn, c.opt)
			assert.ErrorIs(t, err, memcacheddriver.ErrInvalidOption, c.names)
		}
	}
}

func TestOptionsOpenManyDrivers(t *testing.T) {
	t.Parallel()
	opts := make([]driver.Option, 2, 8)
	opts[0] = memcacheddriver.WithTTLQuery()
	opts[1] = memcacheddriver.WithStoreOptions(kv.WithCodec(codec.MsgPack()))
	for range 2 {
		store := drivertest.OpenStore(t, memcachedtest.Addr(t), opts...)
		assert.Equal(t, codec.MsgPack().Name(), store.Codec().Name())
		_, err := store.TTL(t.Context(), drivertest.Key())
		assert.ErrorIs(t, err, kv.ErrNotFound)
	}
	assert.Nil(t, opts[:3][2], "the caller's slice was written to")
}
