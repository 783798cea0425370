package pool

import (
	"container/list"
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Server is one address with its sockets, health and counters. It is the
// net.Addr that gomemcache knows the server by.
type Server struct {
	Addr

	cfg     *Config
	closing context.Context // ends with Close: cuts dialling

	health health
	counters
	openAccess  atomic.Bool  // it asks for no authentication; said once
	proven      atomic.Bool  // it has answered as a memcached does
	answersMeta atomic.Bool  // it answered when it was last asked for meta
	askAgain    atomic.Int64 // Unix nanoseconds: until then it is not asked, as it did not

	full    atomic.Bool // more wait for a socket than are dialled
	retired atomic.Bool // it is not in the list any more; written under mu

	mu        sync.Mutex
	idle      []*socket // used last in first out: the oldest is idle[0]
	live      map[*socket]struct{}
	dialing   int       // for those in line
	replacing int       // dials of replace
	waiters   list.List // of *waiter, first come first served; empty while a socket is idle
	dialCtx   context.Context
	endDials  context.CancelFunc // of all that are under way
	sweep     *time.Timer        // closes sockets that were idle for too long; nil until needed
	closed    bool
	left      time.Duration // when it was retired

	heard   time.Duration // when a byte last came on a socket that is closed
	silence silence

	shortage shortage
}

func newServer(addr Addr, cfg *Config, closing context.Context) *Server {
	s := &Server{
		Addr:    addr,
		cfg:     cfg,
		closing: closing,
		health:  health{limit: cfg.FailureLimit, retryAfter: cfg.RetryAfter},
		live:    make(map[*socket]struct{}),
	}
	s.renewDials()
	return s
}

// renewDials makes the context of what is dialled from now on. It is no child of closing,
// which would know every server that there ever was; closeAll ends it.
func (s *Server) renewDials() {
	s.dialCtx, s.endDials = context.WithCancel(context.Background())
}

// retire makes the server keep no socket but those in use.
func (s *Server) retire() {
	s.mu.Lock()
	if !s.retired.Swap(true) {
		s.left = sinceStart()
	}
	if s.sweep != nil {
		s.sweep.Stop()
		s.sweep = nil
	}
	if s.waiters.Len() == 0 && s.replacing == 0 { // what is dialled is for nobody
		s.endDials()
		s.renewDials()
	}
	s.mu.Unlock()
	s.closeIdleSince(sinceStart())
}

// enlist is for a server that is in the list. One that comes back is taken to be well.
func (s *Server) enlist() {
	s.mu.Lock()
	back := s.retired.Swap(false)
	s.mu.Unlock()
	if back {
		s.health.succeeded()
	}
}

// forgettable reports whether the server has left so long ago that nobody uses it.
func (s *Server) forgettable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.retired.Load() && sinceStart()-s.left > forgetAfter && s.taken() == 0 && s.waiters.Len() == 0
}

// sweepIdle closes what has been idle for too long, and comes again when the
// next socket will have been.
func (s *Server) sweepIdle() {
	s.closeIdleSince(sinceStart() - s.cfg.MaxIdleTime)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweep = nil
	if len(s.idle) > 0 && !s.closed {
		s.sweep = time.AfterFunc(s.idle[0].used-sinceStart()+s.cfg.MaxIdleTime, s.sweepIdle)
	}
}

// closeIdleSince closes the sockets that have been idle since t or longer.
func (s *Server) closeIdleSince(t time.Duration) {
	s.mu.Lock()
	n := 0
	for n < len(s.idle) && s.idle[n].used <= t {
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
	s.endDials()
	s.refuse(ErrClosed)
	s.shortage.end()
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

// failed counts a failure of the server's own.
func (s *Server) failed(cause error) {
	if s.count(cause) {
		s.goDown(cause)
	}
}

// count reports whether the server is down by this failure.
func (s *Server) count(cause error) (wentDown bool) {
	if s.isShort(cause) {
		return false
	}
	s.askAgain.Store(0)
	return s.health.failed(cause)
}

// goDown sends away who waits, and ends what is dialled and what rests: the next
// connection is a new one, by a new look-up of the name; the old ones may wait for a host
// that is gone, each for a whole timeout.
func (s *Server) goDown(cause error) {
	s.mu.Lock()
	s.refuse(&Error{s.Address, s.health.refused()})
	s.endDials()
	s.renewDials()
	s.mu.Unlock()
	s.closeIdleSince(sinceStart())
	if s.retired.Load() {
		return // nobody misses it
	}
	s.cfg.Warnf("memcacheddriver: server %s is down after %d failures in a row: %v", s.Address, s.cfg.FailureLimit, cause)
}

// gaveUp says that a caller left a request that was sent at that time, and of whose
// reply no byte has come. A server that has said nothing to anybody for a read
// timeout while replies were due has failed, though no caller waited that long.
func (s *Server) gaveUp(sent time.Duration) {
	s.mu.Lock()
	silent := s.silence.add(sent, s.lastHeard(nil), sinceStart()) >= s.cfg.ReadTimeout
	s.mu.Unlock()
	if silent {
		s.failed(fmt.Errorf("not a byte within the read timeout of %v, in which all callers gave up: %w", s.cfg.ReadTimeout, os.ErrDeadlineExceeded))
	}
}

// lastHeard returns when a byte last came on another socket than but. It needs mu.
func (s *Server) lastHeard(but *socket) time.Duration {
	heard := s.heard
	for sock := range s.live {
		if sock != but {
			heard = max(heard, sock.lastHeard())
		}
	}
	return heard
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
