package memcachedotel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/dbconv"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

// counters are what grows in the statistics of a server.
var counters = []struct {
	name, unit, description string
	value                   func(*memcacheddriver.ServerStats) uint64
}{
	{"memcached.client.hits", "{key}", "Keys that were found.", func(s *memcacheddriver.ServerStats) uint64 { return s.Hits }},
	{"memcached.client.misses", "{key}", "Keys that were asked for and not found.", func(s *memcacheddriver.ServerStats) uint64 { return s.Misses }},
	{"memcached.client.stores", "{key}", "Values that were stored.", func(s *memcacheddriver.ServerStats) uint64 { return s.Stores }},
	{"memcached.client.errors", "{call}", "Calls that failed, of a batch this server's part.", func(s *memcacheddriver.ServerStats) uint64 { return s.Errors }},
	{"memcached.client.cancelled", "{call}", "Calls that their context ended while they waited for the server.", func(s *memcacheddriver.ServerStats) uint64 { return s.Cancelled }},
	{"memcached.client.timeouts", "{timeout}", "Dials, writes and reads that took longer than the driver's timeouts.", func(s *memcacheddriver.ServerStats) uint64 { return s.Timeouts }},
	{"memcached.client.shared_calls", "{call}", "Calls that shared a connection with others.", func(s *memcacheddriver.ServerStats) uint64 { return s.SharedCalls }},
	{"memcached.client.connection.dials", "{attempt}", "Attempts to connect.", func(s *memcacheddriver.ServerStats) uint64 { return s.Dials }},
	{"memcached.client.connection.dial_errors", "{attempt}", "Attempts to connect that failed.", func(s *memcacheddriver.ServerStats) uint64 { return s.DialErrors }},
	{"memcached.client.connection.stale", "{connection}", "Idle connections that the server had closed, or that were too old, when they were needed.", func(s *memcacheddriver.ServerStats) uint64 { return s.StaleConns }},
	{"memcached.client.connection.waits", "{call}", "Calls that had to wait for a connection.", func(s *memcacheddriver.ServerStats) uint64 { return s.Waits }},
}

// levels are what goes up and down in them.
var levels = []struct {
	name, unit, description string
	value                   func(*memcacheddriver.ServerStats) int
}{
	{dbconv.ClientConnectionMaxObservable{}.Name(), dbconv.ClientConnectionMaxObservable{}.Unit(), dbconv.ClientConnectionMaxObservable{}.Description(), func(s *memcacheddriver.ServerStats) int { return s.MaxOpen }},
	{dbconv.ClientConnectionIdleMaxObservable{}.Name(), dbconv.ClientConnectionIdleMaxObservable{}.Unit(), dbconv.ClientConnectionIdleMaxObservable{}.Description(), func(s *memcacheddriver.ServerStats) int { return s.MaxIdle }},
	{dbconv.ClientConnectionPendingRequestsObservable{}.Name(), dbconv.ClientConnectionPendingRequestsObservable{}.Unit(), dbconv.ClientConnectionPendingRequestsObservable{}.Description(), func(s *memcacheddriver.ServerStats) int { return s.Waiting }},
	{"memcached.client.connection.dialing", "{connection}", "Connections that are being made.", func(s *memcacheddriver.ServerStats) int { return s.Dialing }},
	{"memcached.client.connection.shared", "{connection}", "Connections in use that calls share.", func(s *memcacheddriver.ServerStats) int { return s.Links }},
}

// registration is what is observed of a driver.
type registration struct {
	metric.Registration
	tracer *Tracer
	db     *memcacheddriver.MemcachedDB
}

// Unregister ends it, and gives back the number.
func (r *registration) Unregister() error {
	err := r.Registration.Unregister()
	r.tracer.mu.Lock()
	defer r.tracer.mu.Unlock()
	if i := slices.Index(r.tracer.observed, r); i >= 0 {
		r.tracer.observed[i] = nil
	}
	return err
}

// Observe adds what the driver's statistics tell of each server to the metrics, until
// the registration is unregistered: its connections and its state, and all that was
// found, stored, sent and received, also by Do and Client. It is asked for when metrics
// are collected, and talks to no server. While the driver is not open there is none of
// it; unregister before Close, as the meter provider keeps the driver until then.
//
// The pool of connections to a server is called by its address. Of a second driver that
// is observed at the same time it is "mc1:11211#2", by the smallest number that is free.
//
// It is an error to observe a driver twice at a time.
func (t *Tracer) Observe(db *memcacheddriver.MemcachedDB) (metric.Registration, error) {
	if db == nil {
		return nil, errors.New("memcachedotel: no driver to observe")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if slices.ContainsFunc(t.observed, func(r *registration) bool { return r != nil && r.db == db }) {
		return nil, errors.New("memcachedotel: the driver is observed already; Unregister that first")
	}
	free := slices.Index(t.observed, nil)
	if free < 0 {
		free = len(t.observed)
		t.observed = append(t.observed, nil)
	}
	number := ""
	if free > 0 {
		number = fmt.Sprintf("#%d", free+1)
	}

	var errs []error
	var all []metric.Observable
	made := func(i metric.Observable, err error) {
		all = append(all, i)
		errs = append(errs, err)
	}
	connections, err := dbconv.NewClientConnectionCountObservable(t.meter)
	made(connections.Inst(), err)
	servers, err := t.meter.Int64ObservableUpDownCounter("memcached.client.server.count",
		metric.WithUnit("{server}"), metric.WithDescription("Servers that are in the state."))
	made(servers, err)
	bytes, err := t.meter.Int64ObservableCounter("memcached.client.io",
		metric.WithUnit("By"), metric.WithDescription("Bytes of requests and replies."))
	made(bytes, err)
	waitTime, err := t.meter.Float64ObservableCounter("memcached.client.connection.wait_time",
		metric.WithUnit("s"), metric.WithDescription("Time that calls have waited for a connection, all together."))
	made(waitTime, err)
	grows := make([]metric.Int64Observable, len(counters))
	for i, c := range counters {
		grows[i], err = t.meter.Int64ObservableCounter(c.name, metric.WithUnit(c.unit), metric.WithDescription(c.description))
		made(grows[i], err)
	}
	moves := make([]metric.Int64Observable, len(levels))
	for i, l := range levels {
		moves[i], err = t.meter.Int64ObservableUpDownCounter(l.name, metric.WithUnit(l.unit), metric.WithDescription(l.description))
		made(moves[i], err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}

	registered, err := t.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, s := range db.Stats() {
			ofPool := poolAttributes(s.Addr + number)
			ofServer := append(serverAttributes(s.Addr), ofPool[1])
			pool, server := metric.WithAttributes(ofPool...), metric.WithAttributes(ofServer...)
			o.ObserveInt64(connections.Inst(), int64(s.Idle), pool, metric.WithAttributes(semconv.DBClientConnectionStateIdle))
			o.ObserveInt64(connections.Inst(), int64(s.InUse), pool, metric.WithAttributes(semconv.DBClientConnectionStateUsed))
			for _, state := range []memcacheddriver.ServerState{memcacheddriver.ServerUp, memcacheddriver.ServerDown, memcacheddriver.ServerProbing} {
				n := int64(0)
				if s.State == state {
					n = 1
				}
				o.ObserveInt64(servers, n, server, metric.WithAttributes(serverStateKey.String(string(state))))
			}
			o.ObserveInt64(bytes, int64(s.BytesRead), server, metric.WithAttributes(semconv.NetworkIODirectionReceive))
			o.ObserveInt64(bytes, int64(s.BytesWritten), server, metric.WithAttributes(semconv.NetworkIODirectionTransmit))
			o.ObserveFloat64(waitTime, s.WaitTime.Seconds(), server)
			for i, c := range counters {
				o.ObserveInt64(grows[i], int64(c.value(&s)), server)
			}
			for i, l := range levels {
				of := pool
				if strings.HasPrefix(l.name, "memcached.") {
					of = server
				}
				o.ObserveInt64(moves[i], int64(l.value(&s)), of)
			}
		}
		return nil
	}, all...)
	if err != nil {
		return nil, err
	}
	r := &registration{registered, t, db}
	t.observed[free] = r
	return r, nil
}
