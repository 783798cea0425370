// Package memcachedotel makes OpenTelemetry spans and metrics of what the Memcached
// driver of Grove KV does, by the semantic conventions for database clients, version
// 1.43.0:
//
//	tracer, err := memcachedotel.New()
//	store, err := memcacheddriver.OpenStore(ctx, dsn, memcacheddriver.WithTracer(tracer))
//	observed, err := tracer.Observe(memcacheddriver.Unwrap(store))
//	…
//	err = observed.Unregister() // and then close the store
//
// The README has a table of the attributes and one of the metrics.
package memcachedotel

import (
	"context"
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

// scope is the name of what makes the spans and the metrics.
const scope = "github.com/xraph/grove/kv/drivers/memcacheddriver/otel"

// Names of attributes for which the conventions have none.
const (
	keyCountKey     = attribute.Key("memcached.key_count") // db.operation.batch.size counts operations, of which mget is one
	keysKey         = attribute.Key("memcached.keys")
	hitsKey         = attribute.Key("memcached.hits")
	missesKey       = attribute.Key("memcached.misses")
	storesKey       = attribute.Key("memcached.stores")
	bytesReadKey    = attribute.Key("memcached.bytes_read")
	bytesWrittenKey = attribute.Key("memcached.bytes_written")
	serverStateKey  = attribute.Key("memcached.server.state")
)

// Operations that the driver names so.
const (
	opDial = "dial"
	opDo   = "do"
	opSwap = "cas"
)

// Tracer is a [memcacheddriver.Tracer]. It makes a span of every call of a driver's, of
// each server's part of a batch as the call's child, and, as a trace of its own, of
// every connection that is made; and it counts and measures calls and connections.
// One serves all drivers of a process: what two observe would have the same names.
type Tracer struct {
	tracer  trace.Tracer
	meter   metric.Meter
	metrics metrics

	beginnings known[request, *beginning]
	outcomes   known[outcome, []metric.RecordOption]

	mu       sync.Mutex
	observed []*registration // nil for a number that is free
}

var _ memcacheddriver.Tracer = (*Tracer)(nil)

// New returns a Tracer. An error is the meter provider's, which does not take a metric.
func New(opts ...Option) (*Tracer, error) {
	c := config{tracers: otel.GetTracerProvider(), meters: otel.GetMeterProvider()}
	for _, opt := range opts {
		opt(&c)
	}
	t := &Tracer{
		tracer: c.tracers.Tracer(scope, trace.WithSchemaURL(semconv.SchemaURL)),
		meter:  c.meters.Meter(scope, metric.WithSchemaURL(semconv.SchemaURL)),
	}
	if err := t.metrics.make(t.meter); err != nil {
		return nil, err
	}
	return t, nil
}

// unnamed is the key in the context of a span whose name has no server.
type unnamed struct{}

// Start begins a span.
func (t *Tracer) Start(ctx context.Context, op memcacheddriver.Operation) context.Context {
	b := t.beginnings.get(request{op.Name, op.Server}, request.beginning)
	ctx, span := t.tracer.Start(ctx, b.name, b.start...)
	if op.Server == "" && span.IsRecording() {
		ctx = context.WithValue(ctx, unnamed{}, true)
	}
	return ctx
}

// End ends the span that Start has put into ctx.
func (t *Tracer) End(ctx context.Context, r memcacheddriver.Result) {
	t.record(ctx, &r)
	span := trace.SpanFromContext(ctx)
	if span.IsRecording() {
		// A call that has waited for discovery knows its server only now. To a part of a
		// batch this does nothing new.
		if r.Server != "" && ctx.Value(unnamed{}) != nil {
			b := t.beginnings.get(request{r.Name, r.Server}, request.beginning)
			span.SetName(b.name)
			span.SetAttributes(b.server...)
		}
		span.SetAttributes(resultAttributes(&r)...)
		if r.Err != nil {
			text := ""
			if isDriversText(&r) {
				text = r.Err.Error()
			}
			span.SetStatus(codes.Error, text)
		}
	}
	span.End()
}

func resultAttributes(r *memcacheddriver.Result) []attribute.KeyValue {
	attrs := make([]attribute.KeyValue, 0, 8)
	if r.KeyCount > 1 {
		attrs = append(attrs, keyCountKey.Int(r.KeyCount))
	}
	if r.Keys != nil {
		attrs = append(attrs, keysKey.StringSlice(r.Keys))
	}
	for _, n := range [...]struct {
		key   attribute.Key
		value int
	}{
		{hitsKey, r.Hits},
		{missesKey, r.Misses},
		{storesKey, r.Stores},
		{bytesReadKey, r.BytesRead},
		{bytesWrittenKey, r.BytesWritten},
	} {
		if n.value > 0 {
			attrs = append(attrs, n.key.Int(n.value))
		}
	}
	if r.Err != nil {
		attrs = append(attrs, semconv.ErrorTypeKey.String(r.ErrorType))
	}
	return attrs
}

// isDriversText reports whether the text of the error is all the driver's: in that of a
// function of the caller's may be a value, in the cause of a context or a server's error
// line a key.
func isDriversText(r *memcacheddriver.Result) bool {
	if r.Name == opDo || r.Name == opSwap {
		return false
	}
	switch r.ErrorType {
	case "canceled", "deadline_exceeded", "panic", "_OTHER":
		return false
	}
	// Of several errors the class is the first one's.
	_, several := r.Err.(interface{ Unwrap() []error })
	return r.Keys != nil || r.ErrorType != "server_error" && !several
}
