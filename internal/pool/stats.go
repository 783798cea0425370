package pool

import (
	"sync/atomic"
	"time"
)

// Stats is a snapshot of one server.
type Stats struct {
	Addr                          string
	State                         State
	MaxOpen, MaxIdle              int
	Idle, InUse, Dialing, Waiting int
	Waits                         uint64
	WaitTime                      time.Duration
	Dials, DialErrors, Stale,
	Timeouts, Cancelled,
	Hits, Misses, Stores, Errors,
	BytesRead, BytesWritten uint64
}

// counters only grow.
type counters struct {
	dials, dialErrors, stale, timeouts, cancelled, waits atomic.Uint64

	hits, misses, stores, errors, bytesRead, bytesWritten atomic.Uint64

	waitTime atomic.Int64 // nanoseconds
}

// Count counts what has become of the keys of a call: found, not found, stored.
func (c *counters) Count(hits, misses, stores int) {
	add(&c.hits, hits)
	add(&c.misses, misses)
	add(&c.stores, stores)
}

// CountError counts a call that failed.
func (c *counters) CountError() { c.errors.Add(1) }

// add leaves a counter alone that stays as it is: the cores would pass it around.
func add(counter *atomic.Uint64, n int) {
	if n > 0 {
		counter.Add(uint64(n))
	}
}

// Stats returns a snapshot.
func (s *Server) Stats() Stats {
	st := Stats{
		Addr:       s.Address,
		State:      s.health.state(),
		Dials:      s.dials.Load(),
		DialErrors: s.dialErrors.Load(),
		Stale:      s.stale.Load(),
		Timeouts:   s.timeouts.Load(),
		Cancelled:  s.cancelled.Load(),
		Waits:      s.waits.Load(),
		WaitTime:   time.Duration(s.waitTime.Load()),
		MaxOpen:    s.cfg.MaxOpen,
		MaxIdle:    s.cfg.MaxIdle,

		Hits:         s.hits.Load(),
		Misses:       s.misses.Load(),
		Stores:       s.stores.Load(),
		Errors:       s.errors.Load(),
		BytesRead:    s.bytesRead.Load(),
		BytesWritten: s.bytesWritten.Load(),
	}
	s.mu.Lock()
	st.Idle = len(s.idle)
	st.InUse = len(s.live) - st.Idle
	st.Dialing = s.dialing + s.replacing
	st.Waiting = max(0, s.waiters.Len()-s.dialing)
	s.mu.Unlock()
	return st
}
