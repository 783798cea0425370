package pool

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ErrServerDown is in the chain of every call's error while its server is known
// to be down.
var ErrServerDown = errors.New("server is down")

// Server is one address with its sockets, health and counters. It is the
// net.Addr that gomemcache knows the server by.
type Server struct {
	Addr
	Index int // in Pool.Servers

	// MetaRefused means that the server does not speak the meta protocol, which
	// the pipeline finds out.
	MetaRefused atomic.Bool

	pool *Pool

	mu     sync.Mutex
	idle   []*socket // used last in first out: the oldest is idle[0]
	live   map[*socket]struct{}
	closed bool

	// failures in a row. Only 0 is looked at without health held: a healthy
	// server pays one atomic load.
	failures atomic.Int32
	health   sync.Mutex
	retryAt  time.Time // while down: when a call may probe
	probing  bool
	downErr  error

	openAccess atomic.Bool // it asks for no authentication; said once

	dials, dialErrors, stale, timeouts, cancelled atomic.Uint64
}

// State is a server's health.
type State string

const (
	Up      State = "up"
	Down    State = "down"
	Probing State = "probing"
)

// Stats is a snapshot of one server.
type Stats struct {
	Addr        string
	State       State
	Idle, InUse int
	Dials, DialErrors, Stale,
	Timeouts, Cancelled uint64
}

// Stats returns a snapshot.
func (s *Server) Stats() Stats {
	st := Stats{
		Addr:       s.Address,
		State:      Up,
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
	s.health.Lock()
	if s.down() {
		st.State = Down
		if s.probing {
			st.State = Probing
		}
	}
	s.health.Unlock()
	return st
}

// takeIdle returns the socket that was used last, if it is still good, and nil
// where none is.
func (s *Server) takeIdle() *socket {
	for {
		s.mu.Lock()
		n := len(s.idle)
		if n == 0 {
			s.mu.Unlock()
			return nil
		}
		sock := s.idle[n-1]
		s.idle[n-1] = nil
		s.idle = s.idle[:n-1]
		s.mu.Unlock()
		if sock.good() {
			return sock
		}
		s.stale.Add(1)
		sock.discard()
	}
}

func (s *Server) putIdle(sock *socket) {
	s.mu.Lock()
	full := s.closed || len(s.idle) >= s.pool.cfg.MaxIdle
	if !full {
		s.idle = append(s.idle, sock)
	}
	s.mu.Unlock()
	if full {
		sock.discard()
	} else if s.pool.cfg.MaxIdleTime > 0 {
		s.pool.idled()
	}
}

// closeIdleSince closes the sockets that have been idle since t or longer, and
// returns when the oldest of the others was used.
func (s *Server) closeIdleSince(t time.Time) (oldest time.Time) {
	s.mu.Lock()
	n := 0
	for n < len(s.idle) && !s.idle[n].used.After(t) {
		n++
	}
	expired := append([]*socket(nil), s.idle[:n]...)
	s.idle = slices.Delete(s.idle, 0, n)
	if len(s.idle) > 0 {
		oldest = s.idle[0].used
	}
	s.mu.Unlock()
	for _, sock := range expired {
		sock.discard()
	}
	return oldest
}

func (s *Server) closeAll() {
	s.mu.Lock()
	s.closed = true
	s.idle = nil
	live := s.live
	s.live = map[*socket]struct{}{}
	s.mu.Unlock()
	for sock := range live {
		sock.close()
	}
}

// add counts sock among the live ones; false after Close.
func (s *Server) add(sock *socket) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.live[sock] = struct{}{}
	return true
}

func (s *Server) remove(sock *socket) {
	s.mu.Lock()
	delete(s.live, sock)
	s.mu.Unlock()
}

// down needs health.
func (s *Server) down() bool {
	limit := s.pool.cfg.FailureLimit
	return limit > 0 && int(s.failures.Load()) >= limit
}

// admit refuses a call to a server that is down, but for the one that finds out
// whether it still is.
func (s *Server) admit() (probe bool, err error) {
	if s.failures.Load() == 0 {
		return false, nil
	}
	s.health.Lock()
	defer s.health.Unlock()
	if !s.down() {
		return false, nil
	}
	if s.probing || time.Now().Before(s.retryAt) {
		return false, s.downErr
	}
	s.probing = true
	return true, nil
}

func (s *Server) failed(cause error, probe bool) {
	limit := s.pool.cfg.FailureLimit
	if limit == 0 {
		return
	}
	s.health.Lock()
	was := s.down()
	if !was {
		s.failures.Add(1)
	}
	now := s.down()
	if probe {
		s.probing = false
	}
	if now && (probe || !was) {
		s.retryAt = time.Now().Add(s.pool.cfg.RetryAfter)
		var e *Error
		if errors.As(cause, &e) {
			cause = e.Err
		}
		s.downErr = &Error{s.Address, fmt.Errorf("%w (tried again every %v); last failure: %w", ErrServerDown, s.pool.cfg.RetryAfter, cause)}
	}
	s.health.Unlock()
	if now && !was {
		// The next connection is a new one, by a new look at the name: the old ones
		// may wait for a host that is gone, each for a whole timeout.
		s.closeIdleSince(time.Now())
		s.pool.cfg.Warnf("memcacheddriver: server %s is down after %d failures in a row: %v", s.Address, limit, cause)
	}
}

func (s *Server) succeeded() {
	if s.failures.Load() == 0 {
		return
	}
	s.health.Lock()
	was := s.down()
	s.failures.Store(0)
	s.probing = false
	s.health.Unlock()
	if was {
		s.pool.cfg.Infof("memcacheddriver: server %s is up again", s.Address)
	}
}

func (s *Server) unprobe() {
	s.health.Lock()
	s.probing = false
	s.health.Unlock()
}
