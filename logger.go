package memcacheddriver

import (
	"fmt"
	"sync"
)

// maxLines is how many lines wait for a logger; what is above it is not logged.
const maxLines = 100

// logQueue hands lines to the user's logger one after the other, on a goroutine
// that is there while there are any. So a logger may be slow, which delays no call,
// and may use the driver; Close does not wait for it.
type logQueue struct {
	warnf func(format string, args ...any)

	mu       sync.Mutex
	lines    []func() // each logs one
	dropped  int      // since the last line
	draining bool
}

// lineUp returns a function that has a line logged by logf.
func (q *logQueue) lineUp(logf func(format string, args ...any)) func(format string, args ...any) {
	return func(format string, args ...any) {
		line := fmt.Sprintf(format, args...) // now, as args may change
		q.mu.Lock()
		defer q.mu.Unlock()
		if len(q.lines) == maxLines {
			q.dropped++
			return
		}
		q.lines = append(q.lines, func() { logf("%s", line) })
		if !q.draining {
			q.draining = true
			go q.drain()
		}
	}
}

func (q *logQueue) drain() {
	q.mu.Lock()
	defer func() {
		if q.draining = len(q.lines) > 0; q.draining { // the logger called runtime.Goexit
			go q.drain()
		}
		q.mu.Unlock()
	}()
	for len(q.lines) > 0 {
		line := q.lines[0]
		q.lines = q.lines[1:]
		q.log(line)
		if n := q.dropped; n > 0 && len(q.lines) == 0 {
			q.dropped = 0
			q.log(func() { q.warnf("memcacheddriver: %d lines were not logged, as the logger was too slow", n) })
		}
	}
}

// log logs a line without mu. A logger that panics loses its line: there is no
// caller that could recover.
func (q *logQueue) log(line func()) {
	q.mu.Unlock()
	defer q.mu.Lock()
	defer func() { _ = recover() }()
	line()
}
