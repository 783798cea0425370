package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/xraph/grove/kv"
)

// traffic asks for things, and stores those that are not there, until ctx ends.
func traffic(ctx context.Context, store *kv.Store, tracer trace.Tracer) {
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		select {
		case <-tick.C:
			request(ctx, store, tracer)
		case <-ctx.Done():
			tick.Stop()
			return
		}
	}
}

// request stands for one that is served. The driver's spans are children of its own.
func request(ctx context.Context, store *kv.Store, tracer trace.Tracer) {
	ctx, span := tracer.Start(ctx, "request")
	defer span.End()
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()

	// What fails is in the metrics: no line in a log for each call.
	key := fmt.Sprintf("opentelemetry:user:%d", rand.IntN(100))
	var name string
	if err := store.Get(ctx, key, &name); errors.Is(err, kv.ErrNotFound) {
		_ = store.Set(ctx, key, "Ada", kv.WithTTL(5*time.Second))
	}
	if rand.IntN(10) == 0 {
		keys := make([]string, 10)
		for i := range keys {
			keys[i] = fmt.Sprintf("opentelemetry:user:%d", i)
		}
		_ = store.MGet(ctx, keys, make(map[string]any))
	}
}
