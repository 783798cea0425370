package drivertest

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/xraph/go-utils/log"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// Log records what is logged. It is made by [NewLog], and safe for concurrent
// use.
type Log struct {
	log.Logger

	mu    sync.Mutex
	lines []string
}

// NewLog returns an empty log.
func NewLog() *Log { return &Log{Logger: log.NewNoopLogger()} }

// Infof and Warnf are the driver's.
func (l *Log) Infof(format string, args ...any) { l.add("info", format, args) }
func (l *Log) Warnf(format string, args ...any) { l.add("warn", format, args) }

func (l *Log) add(level, format string, args []any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, level+": "+fmt.Sprintf(format, args...))
}

// Lines returns the lines that have all of parts in them; each begins with its
// level, "info: " or "warn: ".
func (l *Log) Lines(parts ...string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		all := true
		for _, p := range parts {
			all = all && strings.Contains(line, p)
		}
		if all {
			found = append(found, line)
		}
	}
	return found
}

// Await waits until n lines have all of parts in them: the driver logs beside its
// calls.
func (l *Log) Await(t testing.TB, n int, parts ...string) {
	t.Helper()
	memcachedtest.Eventually(t, func() bool { return len(l.Lines(parts...)) == n }, "%d lines have %q", n, parts)
}
