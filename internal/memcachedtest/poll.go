package memcachedtest

import (
	"testing"
	"time"
)

// pollTimeout is longer than any condition takes on a busy machine.
const pollTimeout = 20 * time.Second

// Eventually waits for cond, and fails the test at once if it does not come
// true. what, formatted with args, says what was waited for. cond runs on the
// test's own goroutine and may fail the test itself.
func Eventually(t testing.TB, cond func() bool, what string, args ...any) {
	t.Helper()
	for deadline := time.Now().Add(pollTimeout); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not so after "+pollTimeout.String()+": "+what, args...)
		}
	}
}
