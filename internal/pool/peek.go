package pool

import (
	"net"
	"syscall"
)

// socketState is what a resting socket shows.
type socketState int

const (
	quiet    socketState = iota // open, nothing to read
	readable                    // bytes that nobody asked for
	dead                        // closed by the peer, or broken
)

// peeker looks at a socket without taking anything from it. It is made once per
// socket, so that a peek does not allocate.
type peeker struct {
	raw   syscall.RawConn
	fn    func(fd uintptr)
	state socketState
}

func newPeeker(nc net.Conn) *peeker {
	sc, ok := nc.(syscall.Conn)
	if !ok || peekFD == nil {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	p := &peeker{raw: raw}
	p.fn = func(fd uintptr) { p.state = peekFD(fd) }
	return p
}

// peek uses Control, not Read: the deadline of the last call may have passed.
func (p *peeker) peek() socketState {
	if err := p.raw.Control(p.fn); err != nil {
		return dead
	}
	return p.state
}
