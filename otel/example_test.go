package memcachedotel_test

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	memcachedotel "github.com/xraph/grove/kv/drivers/memcacheddriver/otel"
)

func Example() {
	ctx := context.Background()
	open := func() error {
		tracer, err := memcachedotel.New() // the global providers, or WithTracerProvider, WithMeterProvider
		if err != nil {
			return err
		}
		store, err := memcacheddriver.OpenStore(ctx, "mc1:11211,mc2:11211", memcacheddriver.WithTracer(tracer))
		if err != nil {
			return err
		}
		defer store.Close()
		observed, err := tracer.Observe(memcacheddriver.Unwrap(store))
		if err != nil {
			return err
		}
		defer observed.Unregister() // before Close
		return nil
	}
	if err := open(); err != nil {
		panic(err)
	}
	// Output:
}

func TestReadmeShowsTheExample(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("README.md")
	require.NoError(t, err)
	example, err := os.ReadFile("example_test.go")
	require.NoError(t, err)
	block := regexp.MustCompile("(?s)```go\n(.*?)```").FindStringSubmatch(string(readme))
	require.NotNil(t, block)
	indented := regexp.MustCompile(`(?m)^`).ReplaceAllString(strings.TrimSpace(block[1]), "\t\t")
	assert.Contains(t, string(example), indented)
}
