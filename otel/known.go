package memcachedotel

import (
	"net"
	"strconv"
	"strings"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// known has what is the same for all operations of a kind, so that a call makes none of
// it anew. Kinds are few, and so nothing is ever taken out. The zero value is empty.
type known[Kind comparable, Shared any] struct {
	mu  sync.RWMutex
	all map[Kind]Shared
}

func (k *known[Kind, Shared]) get(kind Kind, share func(Kind) Shared) Shared {
	k.mu.RLock()
	s, ok := k.all[kind]
	k.mu.RUnlock()
	if ok {
		return s
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.all == nil {
		k.all = make(map[Kind]Shared)
	}
	s = share(kind)
	k.all[kind] = s
	return s
}

// request is a kind of span, outcome one of measurement.
type (
	request struct{ operation, server string }
	outcome struct {
		request
		errorType string
	}
)

// beginning is what a span is known by from its start.
type beginning struct {
	name   string
	start  []trace.SpanStartOption
	server []attribute.KeyValue
}

func (r request) beginning() *beginning {
	b := &beginning{name: r.operation, server: serverAttributes(r.server)}
	if r.server != "" {
		b.name += " " + r.server
	}
	b.start = []trace.SpanStartOption{
		trace.WithSpanKind(trace.SpanKindClient),
		trace.WithAttributes(r.attributes()...),
	}
	if r.operation == opDial {
		// Whoever comes first gets the connection: it is part of no call, and asks the
		// database nothing.
		b.start = append(b.start, trace.WithSpanKind(trace.SpanKindInternal), trace.WithNewRoot())
	}
	return b
}

func (r request) attributes() []attribute.KeyValue {
	attrs := append([]attribute.KeyValue{semconv.DBSystemNameMemcached}, serverAttributes(r.server)...)
	if r.operation != opDial {
		attrs = append(attrs, semconv.DBOperationName(r.operation))
	}
	return attrs
}

func (o outcome) record() []metric.RecordOption {
	if o.operation == opDial {
		return []metric.RecordOption{metric.WithAttributes(poolAttributes(o.server)...)}
	}
	attrs := o.attributes()
	if o.errorType != "" {
		attrs = append(attrs, semconv.ErrorTypeKey.String(o.errorType))
	}
	return []metric.RecordOption{metric.WithAttributes(attrs...)}
}

// serverAttributes returns those of an address as the list of servers has it; a path is
// a Unix socket's.
func serverAttributes(addr string) []attribute.KeyValue {
	if addr == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(addr)
	n, notNumber := strconv.Atoi(port)
	if err != nil || notNumber != nil || strings.ContainsAny(addr, `/\`) {
		return []attribute.KeyValue{semconv.ServerAddress(addr)}
	}
	return []attribute.KeyValue{semconv.ServerAddress(host), semconv.ServerPort(n)}
}

// poolAttributes returns those of the connections of a driver to a server.
func poolAttributes(pool string) []attribute.KeyValue {
	return []attribute.KeyValue{semconv.DBSystemNameMemcached, semconv.DBClientConnectionPoolName(pool)}
}
