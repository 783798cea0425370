package memcachedotel

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/semconv/v1.43.0/dbconv"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

// metrics are those that calls and dials feed.
type metrics struct {
	duration   metric.Float64Histogram
	createTime metric.Float64Histogram
	timeouts   metric.Int64Counter
}

func (m *metrics) make(meter metric.Meter) error {
	// In seconds, as the conventions recommend for the duration.
	buckets := metric.WithExplicitBucketBoundaries(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
	duration, err := dbconv.NewClientOperationDuration(meter, buckets)
	createTime, createErr := dbconv.NewClientConnectionCreateTime(meter, buckets)
	timeouts, timeoutsErr := dbconv.NewClientConnectionTimeouts(meter)
	*m = metrics{duration.Inst(), createTime.Inst(), timeouts.Inst()}
	return errors.Join(err, createErr, timeoutsErr)
}

func (t *Tracer) record(ctx context.Context, r *memcacheddriver.Result) {
	if r.Name == opDial {
		if r.Err == nil && t.metrics.createTime.Enabled(ctx) {
			t.metrics.createTime.Record(ctx, r.Duration.Seconds(), t.outcomes.get(outcome{request{opDial, r.Server}, ""}, outcome.record)...)
		}
		return
	}
	// Of a batch its parts have the server.
	if r.ErrorType == "pool_timeout" && r.Server != "" {
		t.metrics.timeouts.Add(ctx, 1, metric.WithAttributes(poolAttributes(r.Server)...))
	}
	// A batch is one operation.
	if !r.Part && t.metrics.duration.Enabled(ctx) {
		t.metrics.duration.Record(ctx, r.Duration.Seconds(), t.outcomes.get(outcome{request{r.Name, r.Server}, r.ErrorType}, outcome.record)...)
	}
}
