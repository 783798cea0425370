package drivertest

import (
	"fmt"
	"strings"
	"sync"

	"github.com/xraph/go-utils/log"
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
