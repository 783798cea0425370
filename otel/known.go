package memcachedotel

import (
	"maps"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// known has what is the same for all operations of a kind, so that a call makes none of
// it anew. Kinds are few, and so nothing is ever taken out. The zero value is empty.
type known struct {
	mu  sync.Mutex
	all atomic.Pointer[map[kind]*shared] // copied when one is added, under mu
}

type kind struct{ operation, server, errorType string }

type shared struct {
	span   string
	start  []trace.SpanStartOption
	server []attribute.KeyValue
	record []metric.RecordOption
}

func (k *known) get(operation, server, errorType string) *shared {
	wanted := kind{operation, server, errorType}
	if all := k.all.Load(); all != nil {
		if s := (*all)[wanted]; s != nil {
			return s
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	s := wanted.shared()
	all := map[kind]*shared{wanted: s}
	if old := k.all.Load(); old != nil {
		maps.Copy(all, *old)
	}
	k.all.Store(&all)
	return s
}

func (k kind) shared() *shared {
	s := &shared{span: k.operation, server: serverAttributes(k.server)}
	if k.server != "" {
		s.span += " " + k.server
	}
	s.start = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindClient)}
	attrs := append([]attribute.KeyValue{semconv.DBSystemNameMemcached}, s.server...)
	if k.operation == opDial {
		// Whoever comes first gets the connection: it is part of no call.
		s.start = append(s.start, trace.WithNewRoot(), trace.WithAttributes(attrs...))
		s.record = []metric.RecordOption{metric.WithAttributes(poolAttributes(k.server)...)}
		return s
	}
	attrs = append(attrs, semconv.DBOperationName(k.operation))
	s.start = append(s.start, trace.WithAttributes(attrs...))
	if k.errorType != "" {
		attrs = append(attrs, semconv.ErrorTypeKey.String(k.errorType))
	}
	s.record = []metric.RecordOption{metric.WithAttributes(attrs...)}
	return s
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

// poolAttributes returns those of the connections to a server.
func poolAttributes(addr string) []attribute.KeyValue {
	return append(serverAttributes(addr), semconv.DBClientConnectionPoolName(addr))
}
