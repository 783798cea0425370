package pool

import (
	"context"
	"os"
	"time"
)

// Stream is a socket on which many calls travel at once: one goroutine writes and
// another reads. No call's context reaches it. It is ended exactly once, by Release,
// Close, Drop, Stale or Fail, when neither goroutine uses it any more; Cut makes them stop.
type Stream struct {
	sock   *socket
	reused bool
	kept   bool // its place in the limit, for the next one
}

// OpenStream borrows a socket, as a call does; after one that was kept it is a new one in
// its place. It does not ask for the server's health: every call does, by
// [Server.Admit]. Its error is that of all calls that wait for it, and has been counted
// as one failure.
func (s *Server) OpenStream(after *Stream) (*Stream, error) {
	var h handed
	if after != nil && after.kept {
		h = s.replace(s.closing, after.sock)
	} else {
		h = s.borrow(s.closing)
	}
	if h.err != nil {
		return nil, h.err
	}
	return &Stream{sock: h.sock, reused: h.reused}, nil
}

// Keep makes the end of the stream keep its place in the limit, until OpenStream or
// Forget.
func (t *Stream) Keep() { t.kept = true }

// Forget gives up the place of a stream that was kept.
func (t *Stream) Forget() {
	if t.kept {
		t.kept = false
		t.sock.server.remove(t.sock)
	}
}

// Close closes the socket, and blames nobody.
func (t *Stream) Close() {
	if t.kept {
		t.sock.close()
	} else {
		t.sock.reset()
	}
}

// Meta reports whether the server has shown on the socket that it speaks the meta
// protocol.
func (t *Stream) Meta() bool { return t.sock.meta }

// Reused reports whether the server may have closed the socket before the stream
// began.
func (t *Stream) Reused() bool { return t.reused }

// Write writes within the write timeout.
func (t *Stream) Write(p []byte) (int, error) {
	t.sock.armWrite(sinceStart())
	return t.sock.Write(p)
}

// Read reads until the deadline that the reader has set.
func (t *Stream) Read(p []byte) (int, error) {
	n, err := t.sock.Read(p)
	if n > 0 {
		t.sock.hear()
	}
	return n, err
}

// SetReadDeadline is the reader's own.
func (t *Stream) SetReadDeadline(by time.Time) {
	t.sock.readBy = by.Sub(start)
	t.sock.SetReadDeadline(by)
}

// Answered says that a reply has come, which is a sign of life.
func (t *Stream) Answered() {
	t.sock.server.prove()
	t.sock.server.succeeded()
}

// Retires reports whether the socket is not to be used any more, as the server was not
// asked for meta on it and may be asked again.
func (t *Stream) Retires(now time.Time) bool {
	return !t.sock.askAgain.IsZero() && now.After(t.sock.askAgain)
}

// OthersHeard reports whether the server has said something on another socket since then.
func (t *Stream) OthersHeard(since time.Time) bool {
	s := t.sock.server
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lastHeard(t.sock) > since.Sub(start)
}

// Cut closes the socket, so that what waits for it ends. Any goroutine may call it.
func (t *Stream) Cut() { t.sock.close() }

// Release gives back a socket whose replies have all been read.
func (t *Stream) Release() {
	t.sock.used = sinceStart()
	t.sock.server.putIdle(t.sock)
}

// Drop closes a socket on which the next reply cannot be told. The server is alive.
func (t *Stream) Drop() {
	t.sock.server.succeeded()
	t.Close()
}

// Stale closes a socket that the server had closed, to the harm of no call.
func (t *Stream) Stale() {
	t.sock.server.stale.Add(1)
	t.Close()
}

// Fail closes a socket that err has ended and counts one failure of the server, unless
// it is Close's doing. It returns the error of all calls on it. writing tells what err
// came from.
func (t *Stream) Fail(err error, writing bool) error {
	s := t.sock.server
	t.Close()
	if s.closing.Err() != nil {
		return ErrClosed
	}
	cause := s.describe(err, writing)
	s.failed(cause)
	return &Error{s.Address, cause}
}

// Closed reports whether err means that the server ended the connection.
func Closed(err error) bool { return isClosed(err) }

// Timeouts are those of a call on a stream: for its request and for its reply.
func (s *Server) Timeouts() (write, read time.Duration) {
	return s.cfg.WriteTimeout, s.cfg.ReadTimeout
}

// Admit refuses a call while the server is known to be down.
func (s *Server) Admit() error {
	if err := s.health.admit(); err != nil {
		return &Error{s.Address, err}
	}
	return nil
}

// Down is the error of calls that were let in and have not been sent, if the server has
// turned out to be down.
func (s *Server) Down() error {
	if s.health.state() != Down {
		return nil
	}
	return &Error{s.Address, s.health.refused()}
}

// TimedOut is the error of one call that its own timeout ended, while the stream
// goes on: it is no failure of the server's.
func (s *Server) TimedOut() error {
	return &Error{s.Address, s.describe(os.ErrDeadlineExceeded, false)}
}

// Lost is the error of a call whose reply is not the protocol's, or was behind one.
func (s *Server) Lost(err error) error { return &Error{s.Address, err} }

// Ended is the error of a call whose context has ended before it began.
func Ended(ctx context.Context) error { return &contextError{ctx} }

// Cancelled is the error of a call that its context ended while it waited for the
// server.
func (s *Server) Cancelled(ctx context.Context) error {
	s.cancelled.Add(1)
	return &contextError{ctx}
}

// Closing reports whether Close has been called.
func (s *Server) Closing() bool { return s.closing.Err() != nil }
