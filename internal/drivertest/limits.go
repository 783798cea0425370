package drivertest

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Never is a timeout that a test cannot wait for: what ends sooner was ended by
// something else.
const Never = time.Minute

// Soak returns how long a soak test runs: for MEMCACHED_SOAK, and only for a
// moment where that is not set.
func Soak(t testing.TB) time.Duration {
	t.Helper()
	s := os.Getenv("MEMCACHED_SOAK")
	if s == "" {
		return 100 * time.Millisecond
	}
	d, err := time.ParseDuration(s)
	require.NoError(t, err, "MEMCACHED_SOAK")
	return d
}

// NoDeadlock ends the test binary, with all stacks, if fn takes longer than
// anybody would wait.
func NoDeadlock(what string, fn func()) {
	const limit = 2 * time.Minute
	defer time.AfterFunc(limit, func() {
		stacks := make([]byte, 1<<20)
		panic(fmt.Sprintf("%s: not done after %v\n%s", what, limit, stacks[:runtime.Stack(stacks, true)]))
	}).Stop()
	fn()
}

// AllocatedBy returns how many bytes are allocated in all while fn runs, which is
// never less than what the heap grows by. No other test may run at the same time.
func AllocatedBy(fn func()) int {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return int(after.TotalAlloc - before.TotalAlloc)
}
