package pool

import (
	"sync/atomic"
	"time"
)

// Stats is a snapshot of one server.
type Stats struct {
	Addr                          string
	State                         State
	Idle, InUse, Dialing, Waiting int
	Waits                         uint64
	WaitTime                      time.Duration
	Dials, DialErrors, Stale,
	Timeouts, Cancelled uint64
}

// counters only grow.
type counters struct {
	dials, dialErrors, stale, timeouts, cancelled, waits atomic.Uint64

	waitTime atomic.Int64 // nanoseconds
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
	}
	s.mu.Lock()
	st.Idle = len(s.idle)
	st.InUse = len(s.live) - st.Idle
	st.Dialing = s.dialing + s.replacing
	st.Waiting = max(0, s.waiters.Len()-s.dialing)
	s.mu.Unlock()
	return st
}
