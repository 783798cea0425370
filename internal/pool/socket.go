package pool

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"syscall"
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

// socket is an open network connection, authenticated and ready for a command.
type socket struct {
	net.Conn                 // what requests go through: TLS or plain
	plain           net.Conn // the connection below TLS
	server          *Server
	used            time.Time // when a reply was last waited for
	readBy, writeBy time.Time // the deadlines that are set
	proven          bool      // a request has come to its end on it
	meta            bool      // the server has shown on it that it speaks the meta protocol
	peek            *peeker   // of plain; nil where the platform has none
}

// good reports whether the socket can be used again.
func (s *socket) good() bool {
	idle := time.Since(s.used)
	if m := s.server.pool.cfg.MaxIdleTime; m > 0 && idle > m {
		return false
	}
	if idle < checkAfter || s.peek == nil {
		return true
	}
	switch s.peek.look() {
	case quiet:
		return true
	case readable:
		t, ok := s.Conn.(*tls.Conn)
		return ok && s.onlyTickets(t) && s.peek.look() == quiet
	}
	return false
}

// onlyTickets reads what a TLS server sent unasked: session tickets are no sign
// of a stale connection; an end or a reply that nobody waits for is.
func (s *socket) onlyTickets(t *tls.Conn) bool {
	s.readBy = time.Now().Add(recordWait)
	t.SetReadDeadline(s.readBy)
	var b [1]byte
	_, err := t.Read(b[:])
	return errors.Is(err, os.ErrDeadlineExceeded)
}

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

// close closes the connection below TLS: a goodbye in TLS would wait behind a
// write that hangs.
func (s *socket) close() { s.plain.Close() }

// sight is what a look at a resting socket shows.
type sight int

const (
	quiet    sight = iota // open, nothing to read
	readable              // bytes that nobody asked for
	ended                 // closed by the peer, or broken
)

// peeker looks at a socket without taking anything from it. It is made once per
// socket, so that a look does not allocate.
type peeker struct {
	raw   syscall.RawConn
	fn    func(fd uintptr)
	sight sight
}

func newPeeker(nc net.Conn) *peeker {
	sc, ok := nc.(syscall.Conn)
	if !ok || peek == nil {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	p := &peeker{raw: raw}
	p.fn = func(fd uintptr) { p.sight = peek(fd) }
	return p
}

// look uses Control, not Read: the deadline of the last call may have passed.
func (p *peeker) look() sight {
	if err := p.raw.Control(p.fn); err != nil {
		return ended
	}
	return p.sight
}
