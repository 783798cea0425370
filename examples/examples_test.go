// Package examples_test runs the examples as their readers do.
package examples_test

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestMain(m *testing.M) { memcachedtest.Main(m) }

func TestExamplesRunAgainstAServer(t *testing.T) {
	t.Parallel()
	for example, says := range map[string][]string{
		"quickstart": {
			"connected to memcached",
			"get     {User:Ada Cart:1}",
			"a key that is not there: kv: key not found",
			"worker 2 has not: kv: version conflict",
			"mget    100 keys",
			"12 squared is 144",
			"0 of 2 are left",
		},
		"counter": {"the counter is 800;"},
		"fetch": {
			"1000 visitors see coffee for 250 cents; queries so far: 1\n1000 visitors see coffee for 250 cents; queries so far: 1",
			"1000 visitors see coffee for 275 cents; queries so far: 2",
		},
		"native": {
			"page-views is 42",
			"by the store it is 42 too",
			`"first\nsecond\nthird\n"`,
		},
	} {
		t.Run(example, func(t *testing.T) {
			t.Parallel()
			out, err := goRun(t, example, memcachedtest.Addr(t))
			assert.NoError(t, err, out)
			for _, line := range says {
				assert.Contains(t, out, line)
			}
		})
	}
}

func TestFetchWithoutAServerAsksTheSource(t *testing.T) {
	t.Parallel()
	out, err := goRun(t, "fetch", "127.0.0.1:1")
	assert.NoError(t, err, out)
	assert.Contains(t, out, "going on without a cache")
	assert.Contains(t, out, "1000 visitors see coffee for 275 cents")
}

func TestQuickstartWithoutAServerSaysWhatToDo(t *testing.T) {
	t.Parallel()
	out, err := goRun(t, "quickstart", "127.0.0.1:1")
	assert.Error(t, err)
	assert.Contains(t, out, "connection refused")
	assert.Contains(t, out, "MEMCACHED_ADDR")
	assert.NotContains(t, out, "goroutine", "a message, not a panic")
}

func goRun(t *testing.T, example, memcached string) (output string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "run", "./"+example)
	cmd.Env = append(os.Environ(), "MEMCACHED_ADDR="+memcached)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
