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
	left   bool        // nobody waits any more; under Server.mu
}

func newWaiter() *waiter { return &waiter{handed: make(chan handed, 1)} }

// handed is what a waiter gets.
type handed struct {
	sock   *socket
	reused bool
	at     time.Duration // when; set by who took it
	err    error
}

// borrow returns a socket: one that rests, or else, first come first served, one that
// comes back or has been dialled. It ends with ctx, when the server goes down, or after
// the dial timeout, twice that where somebody is dialling by then.
func (s *Server) borrow(ctx context.Context) handed {
	by := time.Time{} // when the wait ends; set by the first one
	for {
		h := s.next(ctx, &by)
		h.at = sinceStart()
		if h.sock == nil || !h.reused || h.sock.good(h.at) {
			return h
		}
		s.stale.Add(1)
		h.sock.discard()
	}
}

// next returns the socket that was used last, or waits for one, as the first in line
// where it has waited before.
func (s *Server) next(ctx context.Context, by *time.Time) handed {
	s.mu.Lock()
	if n := len(s.idle); n > 0 {
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
	w := newWaiter()
	var place *list.Element
	start := time.Now()
	if by.IsZero() {
		*by = start.Add(s.cfg.DialTimeout)
		place = s.waiters.PushBack(w)
	} else {
		place = s.waiters.PushFront(w)
	}
	s.dialMore()
	full := s.Full()
	s.mu.Unlock()
	if full {
		s.waits.Add(1)
		defer func() { s.waitTime.Add(int64(time.Since(start))) }()
	}
	return s.await(ctx, w, place, *by)
}

func (s *Server) await(ctx context.Context, w *waiter, place *list.Element, by time.Time) handed {
	timer := time.NewTimer(time.Until(by))
	defer timer.Stop()
	for extended := false; ; extended = true {
		select {
		case h := <-w.handed:
			return h
		case <-ctx.Done():
			return s.leave(ctx, w, place)
		case <-timer.C:
		}
		s.mu.Lock()
		switch {
		case len(w.handed) > 0:
			s.mu.Unlock()
			return <-w.handed
		case s.dialing > 0 && !extended:
			s.mu.Unlock()
			timer.Reset(s.cfg.DialTimeout)
		default:
			s.waiters.Remove(place)
			s.lookIfFull()
			err := s.poolTimeout()
			s.mu.Unlock()
			return handed{err: &Error{s.Address, err}}
		}
	}
}

// leave is for a caller whose context has ended. place is nil where it is not in line.
func (s *Server) leave(ctx context.Context, w *waiter, place *list.Element) handed {
	s.mu.Lock()
	w.left = true
	var h handed
	switch {
	case len(w.handed) > 0:
		h = <-w.handed
	case place != nil:
		s.waiters.Remove(place)
		s.lookIfFull()
	}
	s.mu.Unlock()
	if h.sock != nil {
		s.putIdle(h.sock)
	}
	if ctx == s.closing {
		return handed{err: ErrClosed}
	}
	s.cancelled.Add(1)
	return handed{err: &contextError{ctx}}
}

// poolTimeout needs mu.
func (s *Server) poolTimeout() error {
	hint := "WithMaxOpenConns sets how many there may be"
	if err := s.shortage.err; err != nil {
		hint = "more could not be opened: " + err.Error()
	}
	return fmt.Errorf("%w within %v, all %d are in use; %s", ErrPoolTimeout, s.cfg.DialTimeout, s.taken(), hint)
}

// replace dials in the place of a socket that the server has closed, which it ends. Nobody
// gets in between, as it keeps the place of that socket in the limit. Where there are no
// more to be had it takes what others give back.
func (s *Server) replace(ctx context.Context, old *socket) handed {
	w := newWaiter()
	old.close()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return handed{err: ErrClosed}
	}
	s.forget(old)
	s.replacing++
	go s.dialFor(s.dialCtx, w)
	s.mu.Unlock()
	var h handed
	select {
	case h = <-w.handed:
	case <-ctx.Done():
		h = s.leave(ctx, w, nil)
	}
	if h.err != nil && s.isShort(h.err) {
		return s.borrow(ctx)
	}
	h.at = sinceStart()
	return h
}

// taken counts all that the limit is for. It needs mu.
func (s *Server) taken() int { return len(s.live) + s.dialing + s.replacing }

// hand gives h to who has waited longest, and reports whether there is anybody. It
// needs mu.
func (s *Server) hand(h handed) bool {
	first := s.waiters.Front()
	if first == nil {
		return false
	}
	s.waiters.Remove(first).(*waiter).handed <- h
	s.lookIfFull()
	return true
}

// refuse sends all away who wait. It needs mu.
func (s *Server) refuse(err error) {
	for s.hand(handed{err: err}) {
	}
}

// Full reports whether calls wait for a socket of others, as there may be no more.
func (s *Server) Full() bool { return s.full.Load() }

// lookIfFull follows what changes it. It needs mu.
func (s *Server) lookIfFull() { s.full.Store(s.waiters.Len() > s.dialing) }

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
	case len(s.idle) >= s.cfg.MaxIdle || s.retired.Load():
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
	s.forget(sock)
	s.dialMore()
	s.mu.Unlock()
}

// forget needs mu.
func (s *Server) forget(sock *socket) {
	delete(s.live, sock)
	s.heard = max(s.heard, sock.lastHeard())
}

// dialMore dials for those who wait, as far as the limit allows, and in a shortage one
// at a time. It needs mu.
func (s *Server) dialMore() {
	defer s.lookIfFull()
	for s.waiters.Len() > s.dialing && s.taken() < s.cfg.MaxOpen && !s.closed {
		if s.shortage.lasts(s.dialAgain) {
			if s.taken() == 0 {
				s.refuse(&Error{s.Address, s.shortage.err})
			}
			return
		}
		if s.shortage.err != nil && s.dialing > 0 {
			return
		}
		s.dialing++
		go s.dialFor(s.dialCtx, nil)
	}
}

func (s *Server) dialAgain() {
	s.mu.Lock()
	s.dialMore()
	s.mu.Unlock()
}

// dialFor dials for w, or for who is first in line, until ctx ends.
func (s *Server) dialFor(ctx context.Context, w *waiter) {
	if sock, err := s.dial(ctx, s.open); err != nil {
		s.dialFailed(err, w)
	} else {
		s.dialled(sock, w)
	}
}

// dialled gives a new socket to w, or to who is first in line.
func (s *Server) dialled(sock *socket, w *waiter) {
	s.mu.Lock()
	s.endDial(w)
	s.live[sock] = struct{}{}
	kept := true
	if w != nil && !w.left && !s.closed {
		w.handed <- handed{sock: sock}
	} else {
		kept = s.keep(handed{sock: sock})
	}
	if s.waiters.Len() == 0 {
		s.shortage.end()
	}
	s.dialMore()
	s.mu.Unlock()
	if !kept {
		sock.discard()
	}
}

// dialFailed tells w, or one of those who wait: the others have a dial of their own, or
// still wait for one. A shortage is told to all, and only where there is no socket to
// wait for.
func (s *Server) dialFailed(err error, w *waiter) {
	given := s.closing.Err() != nil || err == errAbandoned
	short := s.isShort(err)
	wentDown := !given && s.count(err)
	told := handed{err: &Error{s.Address, err}}
	switch {
	case s.closing.Err() != nil:
		told.err = ErrClosed
	case err == errAbandoned:
		told.err = &Error{s.Address, s.health.refused()}
	}
	s.mu.Lock()
	s.endDial(w)
	if short && s.shortage.begin(err, s.cfg.RetryAfter) {
		s.cfg.Warnf("memcacheddriver: server %s: no more connections for now, with %d open: %v", s.Address, len(s.live), err)
	}
	switch {
	case w != nil:
		w.handed <- told
	case !given && !short:
		s.hand(told)
	}
	s.mu.Unlock()
	if wentDown {
		s.goDown(err)
	}
	s.dialAgain()
}

// endDial needs mu.
func (s *Server) endDial(w *waiter) {
	if w == nil {
		s.dialing--
	} else {
		s.replacing--
	}
}
