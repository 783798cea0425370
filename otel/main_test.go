package memcachedotel_test

import (
	"context"
	"encoding/json"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	memcachedotel "github.com/xraph/grove/kv/drivers/memcacheddriver/otel"
)

func TestMain(m *testing.M) { memcachedtest.Main(m) }

// telemetry is a Tracer and all that it has exported.
type telemetry struct {
	*memcachedotel.Tracer
	t       testing.TB
	tracers *sdktrace.TracerProvider
	spans   *tracetest.SpanRecorder
	reader  *metric.ManualReader
}

func newTelemetry(t testing.TB, opts ...sdktrace.TracerProviderOption) *telemetry {
	t.Helper()
	spans, reader := tracetest.NewSpanRecorder(), metric.NewManualReader()
	tracers := sdktrace.NewTracerProvider(append(opts, sdktrace.WithSpanProcessor(spans))...)
	meters := metric.NewMeterProvider(metric.WithReader(reader))
	tracer, err := memcachedotel.New(memcachedotel.WithTracerProvider(tracers), memcachedotel.WithMeterProvider(meters))
	require.NoError(t, err)
	t.Cleanup(func() {
		assert.NoError(t, tracers.Shutdown(context.Background()))
		assert.NoError(t, meters.Shutdown(context.Background()))
		// Whatever happens, what begins ends.
		assert.Len(t, spans.Ended(), len(spans.Started()))
	})
	return &telemetry{Tracer: tracer, t: t, tracers: tracers, spans: spans, reader: reader}
}

// span returns the only span of that name.
func (tm *telemetry) span(name string) sdktrace.ReadOnlySpan {
	tm.t.Helper()
	spans := tm.named(name)
	require.Len(tm.t, spans, 1, "spans called %q of %v", name, tm.names())
	return spans[0]
}

// named returns the spans of that name, in the order of their ends.
func (tm *telemetry) named(name string) []sdktrace.ReadOnlySpan {
	return slices.DeleteFunc(tm.spans.Ended(), func(s sdktrace.ReadOnlySpan) bool { return s.Name() != name })
}

func (tm *telemetry) names() (names []string) {
	for _, s := range tm.spans.Ended() {
		names = append(names, s.Name())
	}
	return names
}

// collect returns all metrics, by their names.
func (tm *telemetry) collect() map[string]metricdata.Metrics {
	tm.t.Helper()
	var rm metricdata.ResourceMetrics
	require.NoError(tm.t, tm.reader.Collect(context.Background(), &rm))
	all := make(map[string]metricdata.Metrics)
	for _, scope := range rm.ScopeMetrics {
		assert.Equal(tm.t, "github.com/xraph/grove/kv/drivers/memcacheddriver/otel", scope.Scope.Name)
		for _, m := range scope.Metrics {
			all[m.Name] = m
		}
	}
	return all
}

// point is a figure with its attributes, of a histogram how many there are.
type point struct {
	attrs map[string]any
	value float64
}

// points returns what there is of a metric.
func (tm *telemetry) points(metric string) (points []point) {
	tm.t.Helper()
	return pointsOf(tm.t, tm.collect()[metric])
}

func pointsOf(t testing.TB, m metricdata.Metrics) (points []point) {
	t.Helper()
	switch d := m.Data.(type) {
	case nil:
	case metricdata.Sum[int64]:
		for _, p := range d.DataPoints {
			points = append(points, point{attributes(p.Attributes.ToSlice()), float64(p.Value)})
		}
	case metricdata.Sum[float64]:
		for _, p := range d.DataPoints {
			points = append(points, point{attributes(p.Attributes.ToSlice()), p.Value})
		}
	case metricdata.Histogram[float64]:
		for _, p := range d.DataPoints {
			points = append(points, point{attributes(p.Attributes.ToSlice()), float64(p.Count)})
		}
	default:
		require.Fail(t, "a kind of metric that this test does not know", "%s: %T", m.Name, d)
	}
	return points
}

// value returns the sum of the points of a metric that have the attributes, given as
// names and values in turn.
func (tm *telemetry) value(metric string, attrs ...any) (sum float64) {
	tm.t.Helper()
	points := tm.points(metric)
	for _, p := range points {
		has := true
		for i := 0; i < len(attrs); i += 2 {
			has = has && assert.ObjectsAreEqual(attrs[i+1], p.attrs[attrs[i].(string)])
		}
		if has {
			sum += p.value
		}
	}
	return sum
}

// export returns all that a backend could see, as text.
func (tm *telemetry) export() string {
	tm.t.Helper()
	spans, err := json.Marshal(tracetest.SpanStubsFromReadOnlySpans(tm.spans.Ended()))
	require.NoError(tm.t, err)
	metrics, err := json.Marshal(tm.collect())
	require.NoError(tm.t, err)
	return string(spans) + string(metrics)
}

func attributes(list []attribute.KeyValue) map[string]any {
	m := make(map[string]any)
	for _, a := range list {
		m[string(a.Key)] = a.Value.AsInterface()
	}
	return m
}

func parent(s sdktrace.ReadOnlySpan) trace.SpanID { return s.Parent().SpanID() }
