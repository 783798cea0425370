package memcacheddriver

import (
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// record is a logger's function that keeps its lines, and what it has kept.
func record() (logf func(format string, args ...any), lines func() []string) {
	var mu sync.Mutex
	var kept []string
	return func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			kept = append(kept, fmt.Sprintf(format, args...))
		}, func() []string {
			mu.Lock()
			defer mu.Unlock()
			return append([]string(nil), kept...)
		}
}

// A line is as it was when it was said.
func TestLinesAreLoggedInTheirOrder(t *testing.T) {
	t.Parallel()
	keep, lines := record()
	q := &logQueue{}
	infof, warnf := q.lineUp(keep), q.lineUp(keep)
	var want []string
	args := []any{0}
	for i := range maxLines / 2 {
		args[0] = i
		infof("info %d%%", args...)
		warnf("warn %v", args...)
		want = append(want, fmt.Sprintf("info %d%%", i), fmt.Sprintf("warn %d", i))
	}
	args[0] = "changed"
	memcachedtest.Eventually(t, func() bool { return len(lines()) == len(want) }, "all are logged")
	require.Equal(t, want, lines())
}

func TestASlowLoggerLosesLinesAndIsToldHowMany(t *testing.T) {
	t.Parallel()
	const lost = 7
	keep, lines := record()
	busy, free := make(chan struct{}), make(chan struct{})
	q := &logQueue{warnf: keep}
	q.lineUp(func(string, ...any) { close(busy); <-free })("the first")
	<-busy
	var want []string
	for i := range maxLines + lost {
		q.lineUp(keep)("%d", i)
		if i < maxLines {
			want = append(want, fmt.Sprint(i))
		}
	}
	time.Sleep(10 * time.Millisecond)
	require.Empty(t, lines(), "two lines were logged at a time")
	close(free)
	want = append(want, fmt.Sprintf("memcacheddriver: %d lines were not logged, as the logger was too slow", lost))
	memcachedtest.Eventually(t, func() bool { return len(lines()) == len(want) }, "all are logged that were not lost")
	require.Equal(t, want, lines())

	q.lineUp(keep)("again")
	memcachedtest.Eventually(t, func() bool { return len(lines()) == maxLines+2 }, "the next one is logged")
	require.Equal(t, "again", lines()[maxLines+1])
}

func TestALoggerThatDiesLosesItsLineAlone(t *testing.T) {
	t.Parallel()
	for name, dies := range map[string]func(){"panic": func() { panic("mine") }, "Goexit": runtime.Goexit} {
		keep, lines := record()
		q := &logQueue{}
		busy, free := make(chan struct{}), make(chan struct{})
		q.lineUp(func(string, ...any) { close(busy); <-free; dies() })("lost")
		<-busy
		for range maxLines {
			q.lineUp(keep)(name)
		}
		close(free)
		memcachedtest.Eventually(t, func() bool { return len(lines()) == maxLines }, "%s: the others are logged", name)
	}
}
