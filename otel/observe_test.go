package memcachedotel_test

import (
	"net"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// observe adds the driver's figures to the metrics until the test ends.
func (tm *telemetry) observe(db *memcacheddriver.MemcachedDB) {
	tm.t.Helper()
	registration, err := tm.Observe(db)
	require.NoError(tm.t, err)
	tm.t.Cleanup(func() { assert.NoError(tm.t, registration.Unregister()) })
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
	of := func(more ...string) map[string]any {
		m := map[string]any{"db.client.connection.pool.name": addr, "server.address": host, "server.port": number}
		for i := 0; i < len(more); i += 2 {
			m[more[i]] = more[i+1]
		}
		return m
	}
	for metric, want := range map[string][]point{
		"db.client.connection.count": {
			{of("db.client.connection.state", "idle"), 1},
			{of("db.client.connection.state", "used"), 2},
		},
		"db.client.connection.max":              {{of(), 5}},
		"db.client.connection.idle.max":         {{of(), 3}},
		"db.client.connection.pending_requests": {{of(), 0}},
		"memcached.client.server.count": {
			{of("memcached.server.state", "up"), 1},
			{of("memcached.server.state", "down"), 0},
			{of("memcached.server.state", "probing"), 0},
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

// That of all drivers together is what there is.
func TestDriversWithAServerInCommon(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	for range 2 {
		db := drivertest.OpenShared(t, memcacheddriver.WithMaxOpenConns(5))
		tm.observe(db)
		drivertest.Fill(t, db, 1)
	}
	assert.Equal(t, 10., tm.value("db.client.connection.max"))
	assert.Equal(t, 2., tm.value("db.client.connection.count", "db.client.connection.state", "idle"))
	assert.Len(t, tm.points("db.client.connection.max"), 1)
}

func TestUnregister(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	db := drivertest.OpenShared(t)
	registration, err := tm.Observe(db)
	require.NoError(t, err)
	assert.NotEmpty(t, tm.collect())
	require.NoError(t, registration.Unregister())
	assert.Empty(t, tm.collect())
}
