// Opentelemetry is a service whose calls of Memcached can be watched: a little traffic
// of its own, its metrics for Prometheus, and its spans on the standard output.
//
//	cd examples/opentelemetry
//	go run . -spans
//	curl localhost:2112/metrics
//
// The server is the one at MEMCACHED_ADDR, else the one at localhost:11211. The metrics
// are at LISTEN_ADDR, else at localhost:2112.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/attribute"
	otelprometheus "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/exporters/stdout/stdouttrace"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	memcachedotel "github.com/xraph/grove/kv/drivers/memcacheddriver/otel"
)

func main() {
	log.SetFlags(0)
	spans := flag.Bool("spans", false, "write spans to the standard output")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	l, err := net.Listen("tcp", cmp.Or(os.Getenv("LISTEN_ADDR"), "localhost:2112"))
	if err != nil {
		log.Fatal(err)
	}
	out := io.Discard
	if *spans {
		out = os.Stdout
	}
	if err := run(ctx, l, cmp.Or(os.Getenv("MEMCACHED_ADDR"), "localhost:11211"), out); err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, l net.Listener, memcached string, spans io.Writer) error {
	service, err := resource.Merge(resource.Default(), resource.NewSchemaless(attribute.String("service.name", "opentelemetry-example")))
	if err != nil {
		return err
	}
	exporter, err := stdouttrace.New(stdouttrace.WithWriter(spans))
	if err != nil {
		return err
	}
	tracers := trace.NewTracerProvider(trace.WithBatcher(exporter), trace.WithResource(service))
	defer tracers.Shutdown(context.WithoutCancel(ctx))

	registry := prometheus.NewRegistry()
	reader, err := otelprometheus.New(otelprometheus.WithRegisterer(registry))
	if err != nil {
		return err
	}
	meters := metric.NewMeterProvider(metric.WithReader(reader), metric.WithView(buckets), metric.WithResource(service))
	defer meters.Shutdown(context.WithoutCancel(ctx))

	tracer, err := memcachedotel.New(memcachedotel.WithTracerProvider(tracers), memcachedotel.WithMeterProvider(meters))
	if err != nil {
		return err
	}
	store, err := memcacheddriver.OpenStore(ctx, memcached,
		memcacheddriver.WithTracer(tracer),
		memcacheddriver.WithTimeout(200*time.Millisecond),
	)
	if err != nil {
		return err
	}
	defer store.Close()
	observed, err := tracer.Observe(memcacheddriver.Unwrap(store))
	if err != nil {
		return err
	}
	defer observed.Unregister() // before Close
	if err := store.Ping(ctx); err != nil {
		log.Println("going on all the same, as the metrics show it:", err)
	}

	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	fmt.Fprintf(os.Stderr, "The metrics of the memcached at %s are at http://%s/metrics. Ctrl-C ends it.\n", memcached, l.Addr())

	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	traffic(ctx, store, tracers.Tracer("opentelemetry"))
	shutdown, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := server.Shutdown(shutdown); err != nil {
		return err
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// buckets are finer than those of the conventions, which begin at a millisecond: a cache
// answers sooner.
var buckets = metric.NewView(
	metric.Instrument{Name: "db.client.operation.duration"},
	metric.Stream{Aggregation: metric.AggregationExplicitBucketHistogram{
		Boundaries: []float64{0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10},
	}},
)
