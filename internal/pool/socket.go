package pool

import (
	"crypto/tls"
	"errors"
	"math"
	"net"
	"os"
	"sync/atomic"
	"time"
)

const (
	// checkAfter is how long a socket rests until it is looked at before its
	// next use: a busy one pays nothing.
	checkAfter = time.Millisecond

	// recordWait is how long reading a TLS record that is already there may
	// take.
	recordWait = time.Millisecond
)

// start is what the sockets' times are counted from: a clock that is read for every
// call reads the monotonic time alone.
var start = time.Now()

func sinceStart() time.Duration { return time.Since(start) }

// deadline gives an operation that begins now its timeout, and a little more: one that
// still leaves the next operation its whole timeout is not set anew, as that costs more
// than all else here.
func deadline(now, timeout time.Duration) time.Duration {
	by := now + timeout + timeout/32
	if by < now {
		return math.MaxInt64
	}
	return by
}

// socket is an open network connection, authenticated and ready for a command.
type socket struct {
	net.Conn          // what requests go through: TLS or plain
	plain    net.Conn // the connection below TLS
	server   *Server
	heard    atomic.Int64 // when a reply began to come

	used            time.Duration // when a reply was last waited for
	readBy, writeBy time.Duration // the deadlines that are set

	meta     bool      // the server has shown on it that it speaks the meta protocol
	askAgain time.Time // when to ask for it on a new socket; zero if it was answered
	peeker   *peeker   // of plain; nil where the platform has none
}

// good reports whether the socket can be used again.
func (s *socket) good(now time.Duration) bool {
	idle := now - s.used
	if m := s.server.cfg.MaxIdleTime; m > 0 && idle > m {
		return false
	}
	if !s.askAgain.IsZero() && time.Now().After(s.askAgain) {
		return false
	}
	if idle < checkAfter || s.peeker == nil {
		return true
	}
	t, _ := s.Conn.(*tls.Conn)
	switch s.peeker.peek() {
	case quiet:
		return t == nil || s.onlyTickets(t, 0) // what TLS has read already
	case readable:
		return t != nil && s.onlyTickets(t, recordWait) && s.peeker.peek() == quiet
	}
	return false
}

// onlyTickets reads what a TLS server sent unasked: session tickets are no sign
// of a stale connection; an end or a reply that nobody waits for is.
func (s *socket) onlyTickets(t *tls.Conn, wait time.Duration) bool {
	s.readBy = sinceStart() + wait
	t.SetReadDeadline(start.Add(s.readBy))
	var b [1]byte
	_, err := t.Read(b[:])
	return errors.Is(err, os.ErrDeadlineExceeded)
}

// armWrite gives what is written next its timeout.
func (s *socket) armWrite(now time.Duration) {
	if timeout := s.server.cfg.WriteTimeout; s.writeBy-now < timeout {
		s.writeBy = deadline(now, timeout)
		s.SetWriteDeadline(start.Add(s.writeBy))
	}
}

// armRead is armWrite for what is read next.
func (s *socket) armRead(now time.Duration) {
	s.used = now
	if timeout := s.server.cfg.ReadTimeout; s.readBy-now < timeout {
		s.readBy = deadline(now, timeout)
		s.SetReadDeadline(start.Add(s.readBy))
	}
}

func (s *socket) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	s.server.bytesRead.Add(uint64(n))
	return n, err
}

func (s *socket) Write(p []byte) (int, error) {
	n, err := s.Conn.Write(p)
	s.server.bytesWritten.Add(uint64(n))
	return n, err
}

// hear says that bytes have come.
func (s *socket) hear() { s.heard.Store(int64(sinceStart())) }

func (s *socket) lastHeard() time.Duration { return time.Duration(s.heard.Load()) }

// reset closes a socket in the middle of a request, without the wait that TCP
// keeps its port for: cancelled calls by the thousand would use up all ports.
func (s *socket) reset() {
	if tcp, ok := s.plain.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	s.discard()
}

func (s *socket) discard() {
	s.server.remove(s)
	s.close()
}

// close closes the connection below TLS: a goodbye in TLS would wait for a
// write that hangs.
func (s *socket) close() { s.plain.Close() }
