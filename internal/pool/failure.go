package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// Error is a failure to talk to a server.
type Error struct {
	Server string
	Err    error
}

func (e *Error) Error() string { return e.Server + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// fail ends the request with err: it closes the socket, and blames whom there
// is to blame, the caller, Close or the server.
func (c *Conn) fail(err error) error {
	s := c.server
	if c.lane != nil && c.lane.ctx.Err() != nil {
		s.cancelled.Add(1)
		if c.phase == reading && c.silent && context.Cause(c.lane.ctx) != errReturned {
			s.gaveUp(c.sock.Load().used)
		}
		c.Drop()
		return &contextError{c.lane.ctx}
	}
	if s.closing.Err() != nil {
		c.Drop()
		return ErrClosed
	}
	if c.repeatable && isClosed(err) {
		c.repeatable = false
		s.stale.Add(1)
		return ErrStale // the socket keeps its place for Repeat
	}
	cause := s.describe(err, c.phase == writing)
	s.failed(cause) // before its place is free: who waits is to learn of it, not to dial
	c.Drop()
	return &Error{s.Address, cause}
}

// describe says what a bare I/O error means here, and what to do. writing tells what
// it came from: a write or a read.
func (s *Server) describe(err error, writing bool) error {
	hint := ""
	if s.cfg.TLS == nil && !s.proven.Load() {
		hint = " (does it expect TLS?)"
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && writing:
		s.timeouts.Add(1)
		return fmt.Errorf("not written within the write timeout of %v, which WithTimeout sets: %w", s.cfg.WriteTimeout, os.ErrDeadlineExceeded)
	case errors.Is(err, os.ErrDeadlineExceeded):
		s.timeouts.Add(1)
		return fmt.Errorf("no complete reply within the read timeout of %v, which WithTimeout sets%s: %w", s.cfg.ReadTimeout, hint, os.ErrDeadlineExceeded)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("the server closed the connection%s: %w", hint, io.ErrUnexpectedEOF)
	case isReset(err):
		return fmt.Errorf("the server closed the connection%s: %w", hint, err)
	}
	return err
}
