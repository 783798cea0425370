package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestMain(m *testing.M) { memcachedtest.Main(m) }

// start runs the example until the test ends, and returns the address of its metrics. Its
// spans are in the buffer by then.
func start(t *testing.T, memcached string, spans *bytes.Buffer) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, l, memcached, spans) }()
	t.Cleanup(func() {
		stop()
		assert.NoError(t, <-ended)
		assert.Contains(t, spans.String(), `"Name":"get `+memcached+`"`)
		assert.Contains(t, spans.String(), `"Name":"request"`)
		assert.Contains(t, spans.String(), `{"Key":"service.name","Value":{"Type":"STRING","Value":"opentelemetry-example"}}`)
	})
	return "http://" + l.Addr().String() + "/metrics"
}

// scrape returns the labels of what the example tells Prometheus, by the metrics' names.
func scrape(t *testing.T, url string) (metrics map[string]map[string]bool, text string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get(url)
	require.NoError(t, err)
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, r.StatusCode, "%s", body)
	metrics = make(map[string]map[string]bool)
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		// But for its value, a sample is a selector.
		sample := line[:strings.LastIndex(line, " ")]
		selector, err := parser.ParseMetric(sample)
		require.NoError(t, err, sample)
		name := selector.Get("__name__")
		if metrics[name] == nil {
			metrics[name] = make(map[string]bool)
		}
		selector.Range(func(l labels.Label) { metrics[name][l.Name] = true })
	}
	return metrics, string(body)
}

func TestMetricsAreThereAtOnce(t *testing.T) {
	t.Parallel()
	var spans bytes.Buffer
	memcached := memcachedtest.Start(t)
	url := start(t, memcached.Addr(), &spans)
	memcachedtest.Eventually(t, func() bool {
		metrics, _ := scrape(t, url)
		return metrics["db_client_operation_duration_seconds_bucket"]["db_operation_name"] &&
			metrics["db_client_connection_create_time_seconds_count"]["db_client_connection_pool_name"] &&
			metrics["memcached_client_hits_total"]["server_address"]
	}, "the metrics of calls, dials and servers")
	memcachedtest.Eventually(t, func() bool {
		_, text := scrape(t, url)
		return strings.Contains(text, `db_operation_name="mget"`)
	}, "a batch")
	_, text := scrape(t, url)
	assert.NotContains(t, text, "opentelemetry:user", "no key")
}

// As Grafana reads it.
type dashboard struct {
	Templating struct {
		List []struct{ Name, Type, Definition string }
	}
	Panels []struct {
		Title      string
		Datasource struct{ UID string }
		Targets    []struct {
			Expr, LegendFormat string
			Datasource         struct{ UID string }
		}
	}
}

func TestDashboardShowsWhatIsThere(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../otel/dashboard.json")
	require.NoError(t, err)
	var d dashboard
	require.NoError(t, json.Unmarshal(text, &d))
	require.Equal(t, "datasource", d.Templating.List[0].Name)
	require.Equal(t, "datasource", d.Templating.List[0].Type)

	var spans bytes.Buffer
	memcached := memcachedtest.Start(t)
	url := start(t, memcached.Addr(), &spans)
	memcachedtest.Eventually(t, func() bool {
		metrics, _ := scrape(t, url)
		return metrics["db_client_operation_duration_seconds_bucket"] != nil
	}, "calls")
	memcached.Kill()
	var metrics map[string]map[string]bool
	var exported string
	memcachedtest.Eventually(t, func() bool {
		metrics, exported = scrape(t, url)
		return metrics["db_client_operation_duration_seconds_count"]["error_type"]
	}, "calls that fail")

	require.Len(t, d.Templating.List, 2)
	jobs := regexp.MustCompile(`^label_values\((\w+)\{(.*)\}, job\)$`).FindStringSubmatch(d.Templating.List[1].Definition)
	require.NotNil(t, jobs)
	assert.Contains(t, metrics, jobs[1])
	assert.Equal(t, ours, jobs[2])
	assert.Contains(t, exported, ours)

	queries := 0
	for _, panel := range d.Panels {
		assert.Equal(t, "${datasource}", panel.Datasource.UID, panel.Title)
		for _, target := range panel.Targets {
			queries++
			assert.Equal(t, "${datasource}", target.Datasource.UID, panel.Title)
			// As Grafana puts in what it knows.
			query := strings.NewReplacer("$__rate_interval", "5m", "$job", ".*").Replace(target.Expr)
			expr, err := parser.ParseExpr(query)
			if !assert.NoError(t, err, "%s: %s", panel.Title, query) {
				continue
			}
			var asked []string // all metrics of the query
			parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
				if v, ok := n.(*parser.VectorSelector); ok {
					asked = append(asked, v.Name)
					assert.Contains(t, metrics, v.Name, panel.Title)
					if strings.HasPrefix(v.Name, "db_") {
						assert.Contains(t, v.String(), ours, "%s: other databases have it, too", panel.Title)
					}
					for _, m := range v.LabelMatchers {
						assertLabel(t, metrics[v.Name], m.Name, panel.Title)
					}
				}
				return nil
			})
			var kept []string // labels of the result
			parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
				if a, ok := n.(*parser.AggregateExpr); ok {
					kept = append(kept, a.Grouping...)
				}
				return nil
			})
			for _, label := range kept {
				for _, name := range asked {
					assertLabel(t, metrics[name], label, panel.Title)
				}
			}
			for _, m := range legendLabel.FindAllStringSubmatch(target.LegendFormat, -1) {
				assert.Contains(t, kept, m[1], "%s: the legend", panel.Title)
			}
		}
	}
	assert.Greater(t, queries, 15)
}

// ours is what tells the driver's metrics from those of other databases.
const ours = `db_system_name="memcached"`

var legendLabel = regexp.MustCompile(`\{\{(\w+)\}\}`)

// assertLabel checks that a metric has a label; job is Prometheus' own.
func assertLabel(t *testing.T, has map[string]bool, label, panel string) {
	t.Helper()
	if label != "job" {
		assert.True(t, has[label], "%s: label %s", panel, label)
	}
}
