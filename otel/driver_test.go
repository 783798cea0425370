package memcachedotel_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"go.opentelemetry.io/otel/codes"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// open opens a driver that the Tracer is told of, and observes it.
func (tm *telemetry) open(dsn string, opts ...driver.Option) *memcacheddriver.MemcachedDB {
	tm.t.Helper()
	db := drivertest.Open(tm.t, dsn, append(opts, memcacheddriver.WithTracer(tm))...)
	tm.observe(db)
	return db
}

func TestCallsOfADriver(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	db := tm.open(memcachedtest.Addr(t))
	addr := drivertest.Stat(t, db).Addr
	key := drivertest.Key()
	ctx, request := tm.tracers.Tracer("test").Start(t.Context(), "request")
	_, err := db.Get(ctx, key)
	require.Error(t, err)
	require.NoError(t, db.Set(ctx, key, []byte("value"), 0))
	_, err = db.Get(ctx, key)
	require.NoError(t, err)
	require.NoError(t, db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { return []byte("other"), nil }))
	require.NoError(t, db.Do(ctx, func(c *memcache.Client) error {
		_, err := c.Get(key)
		return err
	}))
	_, err = db.Delete(ctx, key)
	require.NoError(t, err)
	request.End()

	gets := tm.named("get " + addr)
	require.Len(t, gets, 2)
	miss, hit := attributes(gets[0].Attributes()), attributes(gets[1].Attributes())
	assert.Equal(t, int64(1), miss["memcached.misses"])
	assert.Equal(t, codes.Unset, gets[0].Status().Code, "a miss is no error")
	assert.Equal(t, int64(1), hit["memcached.hits"])
	assert.Equal(t, int64(5), hit["memcached.bytes_read"])
	set := tm.span("set " + addr)
	assert.Equal(t, int64(1), attributes(set.Attributes())["memcached.stores"])
	assert.Equal(t, int64(5), attributes(set.Attributes())["memcached.bytes_written"])
	for _, name := range []string{"set " + addr, "cas " + addr, "delete " + addr, "do"} {
		assert.Equal(t, request.SpanContext().SpanID(), parent(tm.span(name)), name)
	}
	for op, n := range map[string]float64{"get": 2, "set": 1, "cas": 1, "delete": 1, "do": 1, "dial": 0} {
		assert.Equal(t, n, tm.value("db.client.operation.duration", "db.operation.name", op), op)
	}

	dial := tm.span("dial " + addr)
	assert.NotEqual(t, request.SpanContext().TraceID(), dial.SpanContext().TraceID())
	assert.False(t, dial.Parent().IsValid())
	assert.Equal(t, 1., tm.value("db.client.connection.create_time"))
	assert.Equal(t, 1., tm.value("memcached.client.connection.dials"))

	s := drivertest.Stat(t, db)
	for metric, want := range map[string]uint64{
		"memcached.client.hits":   s.Hits,
		"memcached.client.misses": s.Misses,
		"memcached.client.stores": s.Stores,
		"memcached.client.io":     s.BytesRead + s.BytesWritten,
	} {
		assert.Positive(t, want, metric)
		assert.Equal(t, float64(want), tm.value(metric), metric)
	}
	assert.Equal(t, 3., tm.value("memcached.client.hits"), "by Get, CompareAndSwap and Do")
	assert.Equal(t, float64(s.BytesRead), tm.value("memcached.client.io", "network.io.direction", "receive"))
}

func TestBatchOverTwoServers(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	_, addrs := drivertest.StartServers(t, 2)
	db := tm.open(strings.Join(addrs, ","))
	keys := drivertest.KeysOf(t, addrs, 2)
	all := append(keys[0], keys[1]...)
	require.NoError(t, db.MSet(t.Context(), drivertest.Pairs(all[:3]), 0))
	_, err := db.MGet(t.Context(), all)
	require.NoError(t, err)

	call := tm.span("mget")
	attrs := attributes(call.Attributes())
	assert.Equal(t, int64(4), attrs["memcached.key_count"])
	assert.Equal(t, int64(3), attrs["memcached.hits"])
	assert.Equal(t, int64(1), attrs["memcached.misses"])
	assert.NotContains(t, attrs, "server.address")
	for i, addr := range addrs {
		part := tm.span("mget " + addr)
		assert.Equal(t, call.SpanContext().SpanID(), parent(part))
		assert.Equal(t, int64(2), attributes(part.Attributes())["memcached.key_count"])
		assert.Equal(t, int64(2-i), attributes(part.Attributes())["memcached.hits"])
	}
	assert.Equal(t, []point{{map[string]any{"db.system.name": "memcached", "db.operation.name": "mget"}, 1}},
		tm.durations("mget"))
}

func TestFirstCallAfterDiscovery(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	addr := memcachedtest.Addr(t)
	host, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	endpoint := memcachedtest.StartFake(t, memcachedtest.ConfigEndpoint(1, host+"||"+port))
	db := tm.open(endpoint.Addr(), memcacheddriver.WithDiscovery(memcacheddriver.ElastiCache))
	require.NoError(t, db.Set(t.Context(), drivertest.Key(), nil, 0))
	span := tm.span("set " + addr)
	assert.Equal(t, host, attributes(span.Attributes())["server.address"])
	assert.Equal(t, 1., tm.value("db.client.operation.duration", "db.operation.name", "set", "server.address", host))
}

// durations returns the points of an operation's calls.
func (tm *telemetry) durations(op string) (points []point) {
	tm.t.Helper()
	for _, p := range tm.points("db.client.operation.duration") {
		if p.attrs["db.operation.name"] == op {
			points = append(points, p)
		}
	}
	return points
}

// fail makes the driver fail in several ways with keys and values that all hold secret,
// and returns the classes of the errors.
func fail(t *testing.T, tm *telemetry, secret string, opts ...driver.Option) (classes []string) {
	t.Helper()
	of := func(span, class string) {
		t.Helper()
		classes = append(classes, class)
		for _, s := range tm.spans.Ended() {
			if s.Name() == span && attributes(s.Attributes())["error.type"] == class {
				assert.Equal(t, codes.Error, s.Status().Code, class)
				return
			}
		}
		assert.Fail(t, "no such span", "%s with %s: %v", span, class, tm.names())
	}
	server := memcachedtest.Start(t)
	addr := server.Addr()
	db := tm.open(addr, append(opts, memcacheddriver.WithServerFailureLimit(1, drivertest.Never))...)
	key := secret + drivertest.Key()

	require.Error(t, db.Set(t.Context(), key+" ", []byte(secret), 0))
	of("set", "invalid_key")
	require.ErrorIs(t, db.Set(t.Context(), key, make([]byte, 2<<20), 0), memcacheddriver.ErrValueTooLarge)
	of("set "+addr, "value_too_large")
	canceled, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("cause " + secret))
	_, err := db.Get(canceled, key)
	require.ErrorIs(t, err, context.Canceled)
	of("get "+addr, "canceled")
	require.NoError(t, db.MSet(t.Context(), map[string][]byte{key: []byte(secret), key + "2": []byte(secret)}, 0))
	err = db.CompareAndSwap(t.Context(), key, func([]byte) ([]byte, error) {
		return []byte("mine"), db.Set(t.Context(), key, []byte("theirs"), 0)
	})
	require.Error(t, err)
	of("cas "+addr, "conflict")
	err = db.CompareAndSwap(t.Context(), key, func([]byte) ([]byte, error) {
		return nil, fmt.Errorf("not for v4lue: %w", kv.ErrConflict)
	})
	require.Error(t, err)
	of("cas "+addr, "conflict")
	err = db.CompareAndSwap(t.Context(), key, func([]byte) ([]byte, error) { return nil, errors.New(secret) })
	require.Error(t, err)
	of("cas "+addr, "_OTHER")
	require.Error(t, db.Do(t.Context(), func(*memcache.Client) error { return fmt.Errorf("of %s", key) }))
	of("do", "_OTHER")
	func() {
		defer func() { assert.NotNil(t, recover()) }()
		_ = db.Do(t.Context(), func(*memcache.Client) error { panic(secret) })
	}()
	of("do", "panic")
	_, err = db.TTL(t.Context(), key)
	require.Error(t, err)
	of("ttl "+addr, "not_supported")
	server.Kill()
	_, err = db.MGet(t.Context(), []string{key, key + "2"})
	require.Error(t, err)
	of("mget", "network")
	of("mget "+addr, "network")
	_, err = db.Get(t.Context(), key)
	require.ErrorIs(t, err, memcacheddriver.ErrServerDown)
	of("get "+addr, "server_down")
	require.Error(t, db.Ping(t.Context()))

	fake := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.Hang))
	db = tm.open(fake.Addr(), append(opts, memcacheddriver.WithTimeout(drivertest.Never))...)
	ended := make(chan error, 1)
	go func() {
		_, err := db.Get(t.Context(), key)
		ended <- err
	}()
	memcachedtest.Eventually(t, func() bool { return fake.Count("gets") == 1 }, "a call is in flight")
	require.NoError(t, db.Close())
	require.ErrorIs(t, <-ended, memcacheddriver.ErrNotOpen)
	of("get "+fake.Addr(), "not_open")

	fake = memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.Say("SERVER_ERROR no backend for key "+secret+"\r\n")))
	db = tm.open(fake.Addr(), append(opts, memcacheddriver.WithTimeout(drivertest.Never))...)
	_, err = db.Get(t.Context(), key)
	require.Error(t, err)
	of("get "+fake.Addr(), "server_error")
	broken := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.Say("nonsense\r\n")))
	both := tm.open(fake.Addr()+","+broken.Addr(), append(opts, memcacheddriver.WithTimeout(drivertest.Never))...)
	var keys []string
	for range 30 { // for both
		keys = append(keys, secret+drivertest.Key())
	}
	_, err = both.MGet(t.Context(), keys)
	require.ErrorContains(t, err, "no backend")
	of("mget "+fake.Addr(), "server_error")
	of("mget", "protocol") // the first of both
	fake.SetScript(memcachedtest.AfterDial(memcachedtest.Say("nonsense " + secret + "\r\n")))
	_, err = db.Get(t.Context(), key)
	require.ErrorIs(t, err, memcacheddriver.ErrProtocol)
	of("get "+fake.Addr(), "protocol")
	fake.SetScript(memcachedtest.AfterDial(memcachedtest.Hang))
	short, stop := context.WithTimeout(t.Context(), time.Millisecond)
	defer stop()
	_, err = db.Get(short, key)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	of("get "+fake.Addr(), "deadline_exceeded")
	db = tm.open(fake.Addr(), append(opts, driver.WithReadTimeout(time.Millisecond))...)
	_, err = db.Get(t.Context(), key)
	require.Error(t, err)
	of("get "+fake.Addr(), "timeout")
	full := memcachedtest.StartFake(t, memcachedtest.Script{"*": memcachedtest.Say("ERROR Too many open connections\r\n")})
	db = tm.open(full.Addr(), opts...)
	_, err = db.Get(t.Context(), key)
	require.ErrorIs(t, err, memcacheddriver.ErrTooManyConns)
	of("get "+full.Addr(), "too_many_conns")
	of("dial "+full.Addr(), "too_many_conns")
	private := memcachedtest.StartAuth(t, "user", secret)
	db = tm.open(private.Addr(), append(opts, memcacheddriver.WithCredentials("user", "wrong "+secret))...)
	_, err = db.Get(t.Context(), key)
	require.ErrorIs(t, err, memcacheddriver.ErrAuth)
	of("get "+private.Addr(), "auth")
	of("dial "+private.Addr(), "auth")

	db = tm.open(memcachedtest.Addr(t), append(opts, memcacheddriver.WithMaxOpenConns(1), driver.WithDialTimeout(500*time.Millisecond))...)
	release := drivertest.Hold(t, db, 1)
	_, err = db.Get(t.Context(), key)
	require.ErrorIs(t, err, memcacheddriver.ErrPoolTimeout)
	of("get "+memcachedtest.Addr(t), "pool_timeout")
	release()
	assert.Equal(t, 1., tm.value("db.client.connection.timeouts", "db.client.connection.pool.name", memcachedtest.Addr(t)))
	return classes
}

func TestErrors(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	tested := make(map[string]bool)
	for _, class := range fail(t, tm, "s3cret") {
		assert.Positive(t, tm.value("db.client.operation.duration", "error.type", class), class)
		tested[class] = true
	}
	assert.Len(t, tested, 17, "all classes of memcacheddriver.Result: %v", tested)
	assert.NotContains(t, tm.export(), "s3cret", "no key and no value")
}

func TestTracedKeys(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	const secret = "s3cret"
	fail(t, tm, secret, memcacheddriver.WithTracedKeys())
	for _, s := range tm.spans.Ended() {
		if s.Name() == "mget" {
			assert.Contains(t, fmt.Sprint(attributes(s.Attributes())["memcached.keys"]), secret)
			assert.Contains(t, s.Status().Description, secret)
		}
	}
	assert.NotContains(t, tm.export(), "v4lue", "no value")
	metrics := fmt.Sprintf("%+v", tm.collect())
	assert.Contains(t, metrics, "server_down")
	assert.NotContains(t, metrics, secret, "no key in a metric")
}
