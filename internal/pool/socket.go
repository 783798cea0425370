package pool

import (
	"crypto/tls"
	"errors"
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

// start is what times that goroutines share are counted from.
var start = time.Now()

// socket is an open network connection, authenticated and ready for a command.
type socket struct {
	net.Conn                 // what requests go through: TLS or plain
	plain           net.Conn // the connection below TLS
	server          *Server
	used            time.Time    // when a reply was last waited for
	readBy, writeBy time.Time    // the deadlines that are set
	heard           atomic.Int64 // since start: when a reply began to come
	meta            bool         // the server has shown on it that it speaks the meta protocol
	askAgain        time.Time    // when to ask for it on a new socket; zero if it was answered
	peeker          *peeker      // of plain; nil where the platform has none
}

// good reports whether the socket can be used again.
func (s *socket) good() bool {
	now := time.Now()
	idle := now.Sub(s.used)
	if m := s.server.cfg.MaxIdleTime; m > 0 && idle > m {
		return false
	}
	if !s.askAgain.IsZero() && now.After(s.askAgain) {
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
	s.readBy = time.Now().Add(wait)
	t.SetReadDeadline(s.readBy)
	var b [1]byte
	_, err := t.Read(b[:])
	return errors.Is(err, os.ErrDeadlineExceeded)
}

// armWrite gives what is written next its timeout. A deadline that still leaves
// the whole timeout is not set anew, as that costs more than all else here; so
// that it does for many calls, it is set a little late.
func (s *socket) armWrite() {
	now, timeout := time.Now(), s.server.cfg.WriteTimeout
	if s.writeBy.Sub(now) < timeout {
		s.writeBy = now.Add(timeout).Add(timeout / 32) // their sum may be no Duration any more
		s.SetWriteDeadline(s.writeBy)
	}
}

// hear says that bytes have come.
func (s *socket) hear() { s.heard.Store(int64(time.Since(start))) }

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
