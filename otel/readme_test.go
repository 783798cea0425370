package memcachedotel_test

import (
	"context"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

var quoted = regexp.MustCompile("`([^`]+)`")

// table returns the rows of the table below a heading of the README.
func table(t *testing.T, heading string) (rows [][]string) {
	t.Helper()
	text, err := os.ReadFile("README.md")
	require.NoError(t, err)
	_, section, ok := strings.Cut(string(text), "\n## "+heading+"\n")
	require.True(t, ok, heading)
	section, _, _ = strings.Cut(section, "\n## ")
	for line := range strings.Lines(section) {
		if row, ok := strings.CutPrefix(line, "| `"); ok {
			rows = append(rows, strings.Split("`"+row, " | "))
		}
	}
	require.NotEmpty(t, rows, heading)
	return rows
}

func TestReadmeHasEveryMetric(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	db := drivertest.OpenShared(t)
	tm.observe(db)
	tm.say(result{Operation: operation{Name: "dial", Server: "mc1:11211"}})
	tm.say(result{Operation: operation{Name: "get", Server: "mc1:11211"}, Err: errors.New("text"), ErrorType: "pool_timeout"})

	sets := map[string][]string{
		"pool":   {"db.system.name", "db.client.connection.pool.name"},
		"server": {"db.client.connection.pool.name", "server.address", "server.port"},
	}
	said := make(map[string]bool)
	metrics := tm.collect()
	for _, row := range table(t, "Metrics") {
		name := quoted.FindStringSubmatch(row[0])[1]
		said[name] = true
		m, ok := metrics[name]
		if !assert.True(t, ok, "%s is exported", name) {
			continue
		}
		assert.Equal(t, "`"+m.Unit+"`", row[2], name)
		assert.Equal(t, kind(m), row[1], name)
		assert.NotEmpty(t, m.Description, name)
		keys := make(map[string][]string)
		for _, p := range pointsOf(t, m) {
			for k, v := range p.attrs {
				if s, ok := v.(string); ok {
					keys[k] = append(keys[k], s)
				} else {
					keys[k] = nil
				}
			}
		}
		set, attrs, _ := strings.Cut(row[3], ",")
		if sets[set] == nil {
			attrs = row[3]
		}
		for _, k := range sets[set] {
			assert.Contains(t, keys, k, name)
			delete(keys, k)
		}
		// Attributes, or one with its values.
		listed, values, hasValues := strings.Cut(attrs, ":")
		var want []string
		for _, m := range quoted.FindAllStringSubmatch(listed, -1) {
			want = append(want, m[1])
		}
		var got []string
		for k, v := range keys {
			got = append(got, k)
			if hasValues {
				for _, m := range quoted.FindAllStringSubmatch(values, -1) {
					assert.Contains(t, v, m[1], "%s: %s", name, k)
				}
				assert.Len(t, v, strings.Count(values, "`")/2, "%s: %s", name, k)
			}
		}
		assert.ElementsMatch(t, want, got, name)
	}
	for name := range metrics {
		assert.True(t, said[name], "%s is in the table", name)
	}
}

func kind(m metricdata.Metrics) string {
	monotonic := false
	switch d := m.Data.(type) {
	case metricdata.Histogram[float64]:
		return "histogram"
	case metricdata.Sum[int64]:
		monotonic = d.IsMonotonic
	case metricdata.Sum[float64]:
		monotonic = d.IsMonotonic
	}
	if monotonic {
		return "counter"
	}
	return "up-down"
}

func TestReadmeHasEveryOperation(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	store := drivertest.OpenStore(t, memcachedtest.Addr(t), memcacheddriver.WithTracer(tm), memcacheddriver.WithTTLQuery())
	for _, call := range drivertest.Calls {
		require.NoError(t, call.Run(t.Context(), memcacheddriver.Unwrap(store), drivertest.Key()), call.Name)
	}
	_, err := memcacheddriver.Fetch(t.Context(), store, drivertest.Key(), 0, func(context.Context) (string, error) { return "value", nil })
	require.NoError(t, err)
	made := make(map[any]bool)
	for _, s := range tm.spans.Ended() {
		if name, ok := attributes(s.Attributes())["db.operation.name"]; ok {
			made[name] = true
		}
	}
	said := make(map[any]bool)
	for _, row := range table(t, "Spans") {
		if row[0] == "`db.operation.name`" {
			for _, m := range quoted.FindAllStringSubmatch(row[1], -1) {
				said[m[1]] = true
			}
		}
	}
	assert.Equal(t, made, said)
}

func TestReadmeHasEveryAttribute(t *testing.T) {
	t.Parallel()
	tm := newTelemetry(t)
	op := operation{Name: "mget", Server: "mc1:11211", KeyCount: 2, Keys: []string{"a", "b"}}
	tm.End(tm.Start(context.Background(), op), result{
		Operation: op, Hits: 1, Misses: 1, Stores: 1, BytesRead: 1, BytesWritten: 1, Err: errors.New("text"), ErrorType: "_OTHER",
	})
	var said []string
	for _, row := range table(t, "Spans") {
		for _, m := range quoted.FindAllStringSubmatch(row[0], -1) {
			said = append(said, m[1])
		}
	}
	var set []string
	for _, a := range tm.spans.Ended()[0].Attributes() {
		set = append(set, string(a.Key))
	}
	slices.Sort(set)
	assert.ElementsMatch(t, set, said)
}
