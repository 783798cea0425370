package memcachedotel_test

import (
	"net"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	memcachedotel "github.com/xraph/grove/kv/drivers/memcacheddriver/otel"
)

// observe adds the driver's figures to the metrics until the test ends, or before.
func (tm *telemetry) observe(db *memcacheddriver.MemcachedDB) metric.Registration {
	tm.t.Helper()
	registration, err := tm.Observe(db)
	require.NoError(tm.t, err)
	tm.t.Cleanup(func() { assert.NoError(tm.t, registration.Unregister()) })
	return registration
}

func TestConnections(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	db := drivertest.OpenShared(t, memcacheddriver.WithMaxOpenConns(5), memcacheddriver.WithMaxIdleConns(3))
	tm.observe(db)
	drivertest.Fill(t, db, 3)
	release := drivertest.Hold(t, db, 2)

	addr := drivertest.Stat(t, db).Addr
	host, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	number, err := strconv.ParseInt(port, 10, 64)
	require.NoError(t, err)
	of := func(more ...any) map[string]any {
		m := map[string]any{"db.client.connection.pool.name": addr}
		for i := 0; i < len(more); i += 2 {
			m[more[i].(string)] = more[i+1]
		}
		return m
	}
	pool := func(more ...any) map[string]any { return of(append(more, "db.system.name", "memcached")...) }
	server := func(more ...any) map[string]any {
		return of(append(more, "server.address", host, "server.port", number)...)
	}
	for metric, want := range map[string][]point{
		"db.client.connection.count": {
			{pool("db.client.connection.state", "idle"), 1},
			{pool("db.client.connection.state", "used"), 2},
		},
		"db.client.connection.max":              {{pool(), 5}},
		"db.client.connection.idle.max":         {{pool(), 3}},
		"db.client.connection.pending_requests": {{pool(), 0}},
		"memcached.client.connection.dialing":   {{server(), 0}},
		"memcached.client.connection.waits":     {{server(), 0}},
		"memcached.client.server.count": {
			{server("memcached.server.state", "up"), 1},
			{server("memcached.server.state", "down"), 0},
			{server("memcached.server.state", "probing"), 0},
		},
	} {
		assert.ElementsMatch(t, want, tm.points(metric), metric)
	}
	release()

	require.NoError(t, db.Close())
	assert.Empty(t, tm.collect(), "a driver that is not open has none")
}

func TestWaits(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	db := drivertest.OpenShared(t, memcacheddriver.WithMaxOpenConns(1))
	tm.observe(db)
	release := drivertest.Hold(t, db, 1)
	done := make(chan error)
	go func() { done <- db.Set(t.Context(), drivertest.Key(), []byte("value"), 0) }()
	memcachedtest.Eventually(t, func() bool { return tm.value("db.client.connection.pending_requests") == 1 }, "a call waits")
	release()
	require.NoError(t, <-done)
	assert.Zero(t, tm.value("db.client.connection.pending_requests"))
	assert.Equal(t, 1., tm.value("memcached.client.connection.waits"))
	assert.Equal(t, drivertest.Stat(t, db).WaitTime.Seconds(), tm.value("memcached.client.connection.wait_time"))
	assert.Positive(t, tm.value("memcached.client.connection.wait_time"))
}

func TestServerState(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	server := memcachedtest.Start(t)
	db := drivertest.Open(t, server.Addr()+","+memcachedtest.Addr(t), memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
	tm.observe(db)
	keys := drivertest.KeysOf(t, []string{server.Addr(), memcachedtest.Addr(t)}, 1)
	down := func() float64 { return tm.value("memcached.client.server.count", "memcached.server.state", "down") }
	assert.Zero(t, down())
	server.Kill()
	require.Error(t, db.Set(t.Context(), keys[0][0], nil, 0))
	assert.Equal(t, 1., down())
	assert.Equal(t, 1., tm.value("memcached.client.server.count", "memcached.server.state", "down", "db.client.connection.pool.name", server.Addr()))
	assert.Equal(t, 1., tm.value("memcached.client.server.count", "memcached.server.state", "up"))
	assert.Equal(t, 1., tm.value("memcached.client.connection.dial_errors", "db.client.connection.pool.name", server.Addr()))
}

func TestDriversWithAServerInCommon(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	server := memcachedtest.Start(t)
	addr := server.Addr()
	var dbs []*memcacheddriver.MemcachedDB
	var observed []metric.Registration
	for i := range 3 {
		dbs = append(dbs, drivertest.Open(t, addr, memcacheddriver.WithServerFailureLimit(1, drivertest.Never)))
		observed = append(observed, tm.observe(dbs[i]))
		for range i + 1 {
			require.NoError(t, dbs[i].Set(t.Context(), drivertest.Key(), nil, 0))
		}
	}
	stores := func() map[string]float64 {
		m := make(map[string]float64)
		for _, p := range tm.points("memcached.client.stores") {
			m[p.attrs["db.client.connection.pool.name"].(string)] = p.value
		}
		return m
	}
	assert.Equal(t, map[string]float64{addr: 1, addr + "#2": 2, addr + "#3": 3}, stores())
	assert.Equal(t, 64., tm.value("db.client.connection.max", "db.client.connection.pool.name", addr+"#2"))

	server.Kill()
	for _, db := range dbs {
		require.Error(t, db.Set(t.Context(), drivertest.Key(), nil, 0))
	}
	for _, p := range tm.points("memcached.client.server.count") {
		assert.LessOrEqual(t, p.value, 1., "there is one server: %v", p)
	}

	require.NoError(t, observed[1].Unregister())
	require.NoError(t, dbs[1].Close())
	assert.Equal(t, map[string]float64{addr: 1, addr + "#3": 3}, stores())
	tm.observe(drivertest.Open(t, addr))
	require.NoError(t, observed[1].Unregister(), "again")
	tm.observe(drivertest.Open(t, addr))
	assert.Equal(t, map[string]float64{addr: 1, addr + "#2": 0, addr + "#3": 3, addr + "#4": 0}, stores())
}

func TestObserveRefuses(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	_, err := tm.Observe(nil)
	require.ErrorContains(t, err, "no driver")
	db := drivertest.OpenShared(t)
	registration := tm.observe(db)
	_, err = tm.Observe(db)
	require.ErrorContains(t, err, "observed already")
	assert.Len(t, tm.points("memcached.client.stores"), 1)
	require.NoError(t, registration.Unregister())
	assert.Empty(t, tm.collect())
	tm.observe(db)
	assert.Len(t, tm.points("memcached.client.stores"), 1)
}

func TestReopenedWithDeltaTemporality(t *testing.T) {
	t.Parallel()
	delta := sdkmetric.WithTemporalitySelector(func(sdkmetric.InstrumentKind) metricdata.Temporality { return metricdata.DeltaTemporality })
	tm := &telemetry{t: t, reader: sdkmetric.NewManualReader(delta)}
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(tm.reader))
	var err error
	tm.Tracer, err = memcachedotel.New(memcachedotel.WithMeterProvider(meters))
	require.NoError(t, err)
	db := drivertest.OpenShared(t)
	for n := range 3 {
		registration := tm.observe(db)
		for range 3 - n {
			require.NoError(t, db.Set(t.Context(), drivertest.Key(), nil, 0))
		}
		assert.Equal(t, float64(3-n), tm.value("memcached.client.stores"))
		require.NoError(t, registration.Unregister())
		require.NoError(t, db.Close())
		assert.Empty(t, tm.collect())
		require.NoError(t, db.Open(t.Context(), memcachedtest.Addr(t)))
	}
}
