package pool

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrPoolTimeout is in the chain of a call's error when no socket became free for it.
var ErrPoolTimeout = errors.New("no connection became free")

// waiter is a call that waits for a socket.
type waiter struct {
	handed chan handed // has room for one
	fresh  bool        // only one that has not been used will do
}

// handed is what a waiter gets.
type handed struct {
	sock   *socket
	reused bool
	err    error
}

// borrow returns a socket, and whether it has been used before, which it must not be
// where it is to be fresh: one that rests, or
// else, first come first served, one that comes back or has been dialled. It ends
// with ctx, when the server goes down, or after the dial timeout, twice that where
// somebody is dialling by then.
func (s *Server) borrow(ctx context.Context, fresh bool) (sock *socket, reused bool, err error) {
	if fresh {
		s.closeIdleSince(time.Now()) // the server may have closed them as well, and they may be in the way
	}
	for {
		h := s.next(ctx, fresh)
		if h.sock == nil || !h.reused || h.sock.good() {
			return h.sock, h.reused, h.err
		}
		s.stale.Add(1)
		h.sock.discard()
	}
}

// next returns the socket that was used last, or waits for one.
func (s *Server) next(ctx context.Context, fresh bool) handed {
	s.mu.Lock()
	if n := len(s.idle); n > 0 && !fresh {
		sock := s.idle[n-1]
		s.idle[n-1] = nil
		s.idle = s.idle[:n-1]
		s.mu.Unlock()
		return handed{sock: sock, reused: true}
	}
	if s.closed {
		s.mu.Unlock()
		return handed{err: ErrClosed}
	}
	w := &waiter{make(chan handed, 1), fresh}
	place := s.waiters.PushBack(w)
	s.dialMore()
	full := s.Full()
	s.mu.Unlock()
	if full {
		s.waits.Add(1)
		defer func(start time.Time) { s.waitTime.Add(int64(time.Since(start))) }(time.Now())
	}
	return s.await(ctx, w, place)
}

func (s *Server) await(ctx context.Context, w *waiter, place *list.Element) handed {
	timer := time.NewTimer(s.cfg.DialTimeout)
	defer timer.Stop()
	for extended := false; ; extended = true {
		select {
		case h := <-w.handed:
			return h
		case <-ctx.Done():
		case <-timer.C:
		}
		ended := ctx.Err() != nil
		s.mu.Lock()
		if len(w.handed) == 0 && !ended && s.dialing > 0 && !extended {
			s.mu.Unlock()
			timer.Reset(s.cfg.DialTimeout)
			continue
		}
		h := handed{err: &Error{s.Address, s.poolTimeout()}}
		if len(w.handed) > 0 {
			h = <-w.handed
		} else {
			s.waiters.Remove(place)
			s.lookIfFull()
		}
		s.mu.Unlock()
		switch {
		case !ended:
			return h
		case h.sock != nil:
			s.putIdle(h.sock)
		}
		if ctx == s.closing {
			return handed{err: ErrClosed}
		}
		s.cancelled.Add(1)
		return handed{err: &contextError{ctx}}
	}
}

// Full reports whether calls wait for a socket of others, as there may be no more.
func (s *Server) Full() bool { return s.full.Load() }

// lookIfFull follows what changes it. It needs mu.
func (s *Server) lookIfFull() { s.full.Store(s.waiters.Len() > s.dialing) }

// poolTimeout needs mu.
func (s *Server) poolTimeout() error {
	hint := "WithMaxOpenConns sets how many there may be"
	if err := s.shortage.err; err != nil {
		hint = "more could not be opened: " + err.Error()
	}
	return fmt.Errorf("%w within %v, all %d are in use; %s", ErrPoolTimeout, s.cfg.DialTimeout, len(s.live)+s.dialing, hint)
}

// hand gives h to who has waited longest for such a one, and reports whether there is
// anybody. It needs mu.
func (s *Server) hand(h handed) bool {
	for place := s.waiters.Front(); place != nil; place = place.Next() {
		if w := place.Value.(*waiter); !w.fresh || !h.reused {
			s.waiters.Remove(place)
			s.lookIfFull()
			w.handed <- h
			return true
		}
	}
	return false
}

// refuse sends all away who wait. It needs mu.
func (s *Server) refuse(err error) {
	for s.hand(handed{err: err}) {
	}
}

// putIdle gives a socket back that is ready for a request.
func (s *Server) putIdle(sock *socket) {
	s.mu.Lock()
	kept := s.keep(handed{sock: sock, reused: true})
	s.mu.Unlock()
	if !kept {
		sock.discard()
	}
}

// keep hands h to who waits, or lets it rest; false where there are enough. It needs mu.
func (s *Server) keep(h handed) bool {
	switch {
	case s.closed:
		return false
	case s.hand(h):
		return true
	case len(s.idle) >= s.cfg.MaxIdle, s.Full(): // for a fresh one
		return false
	}
	s.idle = append(s.idle, h.sock)
	if s.sweep == nil && s.cfg.MaxIdleTime > 0 {
		s.sweep = time.AfterFunc(s.cfg.MaxIdleTime, s.sweepIdle)
	}
	return true
}

// remove forgets a socket that is about to be closed.
func (s *Server) remove(sock *socket) {
	s.mu.Lock()
	delete(s.live, sock)
	s.dialMore()
	s.mu.Unlock()
}

// dialMore dials for those who wait, as far as the limit allows. It needs mu.
func (s *Server) dialMore() {
	defer s.lookIfFull()
	for s.waiters.Len() > s.dialing && len(s.live)+s.dialing < s.cfg.MaxOpen && !s.closed {
		if s.shortage.lasts(s.dialAgain) {
			if len(s.live)+s.dialing == 0 {
				s.refuse(&Error{s.Address, s.shortage.err})
			}
			return
		}
		s.dialing++
		go s.dialOne()
	}
}

func (s *Server) dialAgain() {
	s.mu.Lock()
	s.dialMore()
	s.mu.Unlock()
}

func (s *Server) dialOne() {
	sock, err := s.dial()
	if err != nil {
		s.dialFailed(err)
		return
	}
	s.mu.Lock()
	s.dialing--
	s.shortage.end()
	s.live[sock] = struct{}{}
	kept := s.keep(handed{sock: sock})
	s.mu.Unlock()
	if !kept {
		sock.discard()
	}
}

// dialFailed tells one of those who wait: the others have a dial of their own, or
// still wait for one. A shortage is told to all, and only where there is no socket
// to wait for.
func (s *Server) dialFailed(err error) {
	if s.closing.Err() != nil {
		return // closeAll refuses them
	}
	wentDown := s.count(err)
	s.mu.Lock()
	s.dialing--
	if isShort(err) {
		if s.shortage.begin(err, s.cfg.RetryAfter) {
			s.cfg.Warnf("memcacheddriver: server %s: no more connections for now, with %d open: %v", s.Address, len(s.live), err)
		}
	} else {
		s.hand(handed{err: &Error{s.Address, err}})
	}
	s.mu.Unlock()
	if wentDown {
		s.goDown(err)
	}
	s.dialAgain()
}
