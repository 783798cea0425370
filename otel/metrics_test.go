package memcachedotel_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

// say tells the Tracer of something that is over.
func (tm *telemetry) say(r result) {
	tm.End(tm.Start(tm.t.Context(), r.Operation), r)
}

func histogram(t *testing.T, m metricdata.Metrics) metricdata.HistogramDataPoint[float64] {
	t.Helper()
	require.IsType(t, metricdata.Histogram[float64]{}, m.Data, m.Name)
	points := m.Data.(metricdata.Histogram[float64]).DataPoints
	require.Len(t, points, 1, m.Name)
	return points[0]
}

func TestDurationOfCalls(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	tm.say(result{Operation: operation{Name: "get", Server: "mc1:11211", KeyCount: 1}, Duration: 2 * time.Millisecond, Hits: 1})
	m := tm.collect()["db.client.operation.duration"]
	assert.Equal(t, "s", m.Unit)
	h := histogram(t, m)
	assert.InDelta(t, 0.002, h.Sum, 1e-9)
	assert.Equal(t, []float64{0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10}, h.Bounds)
	assert.Equal(t, map[string]any{
		"db.system.name": "memcached", "db.operation.name": "get", "server.address": "mc1", "server.port": int64(11211),
	}, attributes(h.Attributes.ToSlice()), "a hit and a miss are no other operations")
}

func TestDurationHasTheClassOfTheError(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	for _, class := range []string{"canceled", "server_down", "_OTHER"} {
		tm.say(result{Operation: operation{Name: "get", Server: "mc1:11211", KeyCount: 1}, Err: errors.New("text"), ErrorType: class})
		assert.Equal(t, 1., tm.value("db.client.operation.duration", "error.type", class, "server.address", "mc1"), class)
	}
	assert.Equal(t, 3., tm.value("db.client.operation.duration"))
}

func TestBatchIsOneOperation(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	call := result{Operation: operation{Name: "mget", KeyCount: 2, Keys: []string{"a", "b"}}}
	part := call
	part.Part, part.Server = true, "mc1:11211"
	tm.say(part)
	assert.Empty(t, tm.collect())
	tm.say(call)
	assert.Equal(t, []point{{map[string]any{"db.system.name": "memcached", "db.operation.name": "mget"}, 1}},
		tm.points("db.client.operation.duration"))
}

func TestDials(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	dial := result{Operation: operation{Name: "dial", Server: "mc1:11211"}, Duration: 3 * time.Millisecond}
	failed := dial
	failed.Err, failed.ErrorType = errors.New("text"), "network"
	tm.say(failed)
	assert.Empty(t, tm.collect(), "no connection was created, and a dial is no operation")
	tm.say(dial)
	all := tm.collect()
	require.Len(t, all, 1)
	m := all["db.client.connection.create_time"]
	assert.Equal(t, "s", m.Unit)
	h := histogram(t, m)
	assert.InDelta(t, 0.003, h.Sum, 1e-9)
	assert.Equal(t, map[string]any{
		"db.system.name": "memcached", "db.client.connection.pool.name": "mc1:11211",
	}, attributes(h.Attributes.ToSlice()))
}

func TestPoolTimeouts(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	of := func(op operation) {
		tm.say(result{Operation: op, Err: errors.New("text"), ErrorType: "pool_timeout"})
	}
	of(operation{Name: "get", Server: "mc1:11211", KeyCount: 1})
	of(operation{Name: "mget", Server: "mc1:11211", Part: true, KeyCount: 2})
	of(operation{Name: "mget", KeyCount: 2}) // the part's call
	assert.Equal(t, []point{{map[string]any{
		"db.system.name": "memcached", "db.client.connection.pool.name": "mc1:11211",
	}, 2}}, tm.points("db.client.connection.timeouts"))
}
