package pool

import "sync/atomic"

// Stats is a snapshot of one server.
type Stats struct {
	Addr        string
	State       State
	Idle, InUse int
	Dials, DialErrors, Stale,
	Timeouts, Cancelled uint64
}

// counters only grow.
type counters struct {
	dials, dialErrors, stale, timeouts, cancelled atomic.Uint64
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
	}
	s.mu.Lock()
	st.Idle = len(s.idle)
	st.InUse = len(s.live) - st.Idle
	s.mu.Unlock()
	return st
}
