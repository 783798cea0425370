package memcachedotel_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	memcachedotel "github.com/xraph/grove/kv/drivers/memcacheddriver/otel"
)

type (
	operation = memcacheddriver.Operation
	result    = memcacheddriver.Result
)

func TestSpanOfACall(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		result
		span string
		want map[string]any
	}{
		"hit": {
			result{Operation: operation{Name: "get", Server: "mc1:11211", KeyCount: 1}, Hits: 1, BytesRead: 7},
			"get mc1:11211",
			map[string]any{"db.operation.name": "get", "server.address": "mc1", "server.port": int64(11211), "memcached.hits": int64(1), "memcached.bytes_read": int64(7)},
		},
		"miss": {
			result{Operation: operation{Name: "get", Server: "[::1]:11211", KeyCount: 1}, Misses: 1},
			"get [::1]:11211",
			map[string]any{"db.operation.name": "get", "server.address": "::1", "server.port": int64(11211), "memcached.misses": int64(1)},
		},
		"store by a Unix socket": {
			result{Operation: operation{Name: "set", Server: "/run/mc:1", KeyCount: 1}, Stores: 1, BytesWritten: 5},
			"set /run/mc:1",
			map[string]any{"db.operation.name": "set", "server.address": "/run/mc:1", "memcached.stores": int64(1), "memcached.bytes_written": int64(5)},
		},
		"batch": {
			result{Operation: operation{Name: "mget", KeyCount: 3, Keys: []string{"a", "b", "c"}}, Hits: 2, Misses: 1, BytesRead: 9},
			"mget",
			map[string]any{"db.operation.name": "mget", "memcached.key_count": int64(3), "memcached.keys": []string{"a", "b", "c"}, "memcached.hits": int64(2), "memcached.misses": int64(1), "memcached.bytes_read": int64(9)},
		},
		"failure": {
			result{Operation: operation{Name: "set", Server: "mc1:11211", KeyCount: 1}, Err: errors.New("reset"), ErrorType: "network"},
			"set mc1:11211",
			map[string]any{"db.operation.name": "set", "server.address": "mc1", "server.port": int64(11211), "error.type": "network"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tm := newTelemetry(t)
			tm.End(tm.Start(t.Context(), test.Operation), test.result)
			span := tm.span(test.span)
			test.want["db.system.name"] = "memcached"
			assert.Equal(t, test.want, attributes(span.Attributes()))
			assert.Equal(t, trace.SpanKindClient, span.SpanKind())
			assert.Equal(t, "https://opentelemetry.io/schemas/1.43.0", span.InstrumentationScope().SchemaURL)
			assert.Equal(t, test.Err != nil, span.Status().Code == codes.Error)
			if test.Err != nil {
				assert.Equal(t, test.Err.Error(), span.Status().Description)
			}
		})
	}
}

// seen is a sampler that takes everything and keeps what it was shown.
type seen struct{ sdktrace.SamplingParameters }

func (s *seen) Description() string { return "seen" }
func (s *seen) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	s.SamplingParameters = p
	return sdktrace.SamplingResult{Decision: sdktrace.RecordAndSample}
}

func TestSamplerSeesWhatIsKnown(t *testing.T) {
	t.Parallel()
	var sampler seen
	tm := newTelemetry(t, sdktrace.WithSampler(&sampler))
	op := operation{Name: "get", Server: "mc1:11211", KeyCount: 1}
	tm.End(tm.Start(t.Context(), op), result{Operation: op})
	assert.Equal(t, "get mc1:11211", sampler.Name)
	assert.Equal(t, trace.SpanKindClient, sampler.Kind)
	assert.Equal(t, map[string]any{
		"db.system.name": "memcached", "db.operation.name": "get", "server.address": "mc1", "server.port": int64(11211),
	}, attributes(sampler.Attributes))
}

func TestServerThatIsKnownAtTheEnd(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	op := operation{Name: "get", KeyCount: 1}
	ctx := tm.Start(t.Context(), op)
	op.Server = "mc1:11211"
	tm.End(ctx, result{Operation: op})
	span := tm.span("get mc1:11211")
	assert.Equal(t, "mc1", attributes(span.Attributes())["server.address"])
	assert.Equal(t, int64(11211), attributes(span.Attributes())["server.port"])
}

func TestPartsAreChildren(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	ctx, request := tm.tracers.Tracer("test").Start(t.Context(), "request")
	call := operation{Name: "mget", KeyCount: 3}
	inCall := tm.Start(ctx, call)
	for _, server := range []string{"mc1:11211", "mc2:11211"} {
		part := operation{Name: "mget", Server: server, Part: true, KeyCount: 1}
		tm.End(tm.Start(inCall, part), result{Operation: part})
	}
	tm.End(inCall, result{Operation: call})
	request.End()

	whole := tm.span("mget")
	assert.Equal(t, request.SpanContext().SpanID(), parent(whole))
	for _, name := range []string{"mget mc1:11211", "mget mc2:11211"} {
		part := tm.span(name)
		assert.Equal(t, whole.SpanContext().SpanID(), parent(part), name)
		assert.Equal(t, trace.SpanKindClient, part.SpanKind())
		assert.NotContains(t, attributes(part.Attributes()), "memcached.key_count", "never 1")
	}
}

func TestDialIsATraceOfItsOwn(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	ctx, request := tm.tracers.Tracer("test").Start(t.Context(), "request")
	dial := operation{Name: "dial", Server: "mc1:11211"}
	tm.End(tm.Start(ctx, dial), result{Operation: dial})
	request.End()
	span := tm.span("dial mc1:11211")
	assert.False(t, span.Parent().IsValid())
	assert.NotEqual(t, request.SpanContext().TraceID(), span.SpanContext().TraceID())
	assert.Equal(t, trace.SpanKindInternal, span.SpanKind())
	assert.Equal(t, map[string]any{"db.system.name": "memcached", "server.address": "mc1", "server.port": int64(11211)},
		attributes(span.Attributes()), "no operation of the database")
}

func TestForeignTextStaysOut(t *testing.T) {
	t.Parallel()
	text, keys := errors.New("text"), []string{"k"}
	for _, test := range []struct {
		operation
		errorType string
		err       error
		shown     bool
	}{
		{operation{Name: "get"}, "server_down", text, true},
		{operation{Name: "get"}, "canceled", text, false}, // the cause of the context
		{operation{Name: "get"}, "deadline_exceeded", text, false},
		{operation{Name: "do"}, "server_down", text, false}, // what the function made of it
		{operation{Name: "do"}, "_OTHER", text, false},
		{operation{Name: "do"}, "panic", text, false},
		{operation{Name: "cas"}, "timeout", text, false},
		{operation{Name: "cas"}, "_OTHER", text, false},
		{operation{Name: "cas", Keys: keys}, "conflict", text, false}, // or by the function, with a value
		{operation{Name: "get"}, "server_error", text, false},         // a server may quote a key
		{operation{Name: "get", Keys: keys}, "server_error", text, true},
		{operation{Name: "mget"}, "timeout", errors.Join(text), false}, // what the first is
		{operation{Name: "mget", Keys: keys}, "timeout", errors.Join(text), true},
		{operation{Name: "dial"}, "network", text, true},
	} {
		tm := newTelemetry(t)
		tm.End(tm.Start(t.Context(), test.operation), result{Operation: test.operation, Err: test.err, ErrorType: test.errorType})
		span := tm.span(test.Name)
		assert.Equal(t, codes.Error, span.Status().Code, "%+v", test)
		assert.Equal(t, test.errorType, attributes(span.Attributes())["error.type"], "%+v", test)
		assert.Equal(t, test.shown, span.Status().Description == "text", "%+v", test)
	}
}

func TestGlobalProvidersAreTheDefault(t *testing.T) {
	// Not parallel: they are the process's, and no other test uses them.
	spans, reader := tracetest.NewSpanRecorder(), metric.NewManualReader()
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans)))
	otel.SetMeterProvider(metric.NewMeterProvider(metric.WithReader(reader)))
	tracer, err := memcachedotel.New(memcachedotel.WithTracerProvider(nil), memcachedotel.WithMeterProvider(nil))
	require.NoError(t, err)

	op := operation{Name: "get", Server: "mc1:11211", KeyCount: 1}
	tracer.End(tracer.Start(t.Context(), op), result{Operation: op, Duration: time.Millisecond})
	assert.Len(t, spans.Ended(), 1)
	tm := &telemetry{t: t, reader: reader}
	assert.Equal(t, 1., tm.value("db.client.operation.duration"))
}

// What is not recorded costs what the SDK's own Start and End do.
func TestSampledOutAllocatesNothing(t *testing.T) {
	// Not parallel, as it counts allocations.
	get := operation{Name: "get", Server: "mc1:11211", KeyCount: 1}
	part := operation{Name: "mget", Server: "mc1:11211", Part: true, KeyCount: 2}
	for name, tracers := range map[string]trace.TracerProvider{
		"sampled out": sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample())),
		"no SDK":      noop.NewTracerProvider(),
	} {
		tracer, err := memcachedotel.New(memcachedotel.WithTracerProvider(tracers))
		require.NoError(t, err)
		bare := tracers.Tracer("bare")
		opts := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(attribute.String("key", "value"))}
		ctx := context.Background()
		want := testing.AllocsPerRun(100, func() {
			for range 2 {
				_, span := bare.Start(ctx, "get mc1:11211", opts...)
				span.End()
			}
		})
		got := testing.AllocsPerRun(100, func() {
			for _, op := range []operation{get, part} {
				tracer.End(tracer.Start(ctx, op), result{Operation: op, Hits: 1, Misses: 1, BytesRead: 100})
			}
		})
		assert.LessOrEqual(t, got, want, name)
	}
}

func BenchmarkTracer(b *testing.B) {
	op := operation{Name: "get", Server: "mc1:11211", KeyCount: 1}
	r := result{Operation: op, Hits: 1, BytesRead: 100, Duration: time.Millisecond}
	meters := metric.NewMeterProvider(metric.WithReader(metric.NewManualReader()))
	for _, bench := range []struct {
		name string
		opts []memcachedotel.Option
	}{
		{"no SDK", nil},
		{"sampled out", []memcachedotel.Option{memcachedotel.WithTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample())))}},
		{"sampled", []memcachedotel.Option{memcachedotel.WithTracerProvider(sdktrace.NewTracerProvider())}},
		{"metrics", []memcachedotel.Option{memcachedotel.WithMeterProvider(meters), memcachedotel.WithTracerProvider(noop.NewTracerProvider())}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			tracer, err := memcachedotel.New(bench.opts...)
			require.NoError(b, err)
			b.ReportAllocs()
			ctx := context.Background()
			for b.Loop() {
				tracer.End(tracer.Start(ctx, op), r)
			}
		})
	}
}
