package pool

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Server is one address with its sockets, health and counters. It is the
// net.Addr that gomemcache knows the server by.
type Server struct {
	Addr
	Index int // in Pool.Servers

	cfg     *Config
	closing context.Context // ends with Close: cuts dialling

	health health
	counters
	openAccess  atomic.Bool  // it asks for no authentication; said once
	proven      atomic.Bool  // it has answered as a memcached does
	answersMeta atomic.Bool  // it answered when it was last asked for meta
	askAgain    atomic.Int64 // Unix nanoseconds: until then it is not asked, as it did not

	mu     sync.Mutex
	idle   []*socket // used last in first out: the oldest is idle[0]
	live   map[*socket]struct{}
	sweep  *time.Timer // closes sockets that were idle for too long; nil until needed
	closed bool
}

func newServer(addr Addr, index int, cfg *Config, closing context.Context) *Server {
	return &Server{
		Addr:    addr,
		Index:   index,
		cfg:     cfg,
		closing: closing,
		health:  health{limit: cfg.FailureLimit, retryAfter: cfg.RetryAfter},
		live:    make(map[*socket]struct{}),
	}
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
	full := s.closed || len(s.idle) >= s.cfg.MaxIdle
	if !full {
		s.idle = append(s.idle, sock)
		if s.sweep == nil && s.cfg.MaxIdleTime > 0 {
			s.sweep = time.AfterFunc(s.cfg.MaxIdleTime, s.sweepIdle)
		}
	}
	s.mu.Unlock()
	if full {
		sock.discard()
	}
}

// sweepIdle closes what has been idle for too long, and comes again when the
// next socket will have been.
func (s *Server) sweepIdle() {
	s.closeIdleSince(time.Now().Add(-s.cfg.MaxIdleTime))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep = nil
	if len(s.idle) > 0 && !s.closed {
		s.sweep = time.AfterFunc(time.Until(s.idle[0].used.Add(s.cfg.MaxIdleTime)), s.sweepIdle)
	}
}

// closeIdleSince closes the sockets that have been idle since t or longer.
func (s *Server) closeIdleSince(t time.Time) {
	s.mu.Lock()
	n := 0
	for n < len(s.idle) && !s.idle[n].used.After(t) {
		n++
	}
	expired := append([]*socket(nil), s.idle[:n]...)
	s.idle = slices.Delete(s.idle, 0, n)
	s.mu.Unlock()
	for _, sock := range expired {
		sock.discard()
	}
}

func (s *Server) closeAll() {
	s.mu.Lock()
	s.closed = true
	s.idle = nil
	live := s.live
	s.live = map[*socket]struct{}{}
	if s.sweep != nil {
		s.sweep.Stop()
	}
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

// failed counts a failure of the server's own.
func (s *Server) failed(cause error) {
	s.askAgain.Store(0)
	if s.health.failed(cause) {
		// The next connection is a new one, by a new look-up of the name: the old
		// ones may wait for a host that is gone, each for a whole timeout.
		s.closeIdleSince(time.Now())
		s.cfg.Warnf("memcacheddriver: server %s is down after %d failures in a row: %v", s.Address, s.cfg.FailureLimit, cause)
	}
}

// prove remembers that the server has answered. It is only looked whether there is
// something to remember, as the cores would pass the write around.
func (s *Server) prove() {
	if !s.proven.Load() {
		s.proven.Store(true)
	}
}

// succeeded counts a reply: the server is alive, if not well.
func (s *Server) succeeded() {
	if s.health.succeeded() {
		s.cfg.Infof("memcacheddriver: server %s is up again", s.Address)
	}
}
