package pool

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// maxRepeat is how long a request of gomemcache's is that is kept to be sent again.
const maxRepeat = 4 << 10

// maxAtOnce is how much can be written to a socket whose replies have all come without
// a wait, as it fits into the smallest buffer.
const maxAtOnce = 4 << 10

// phase is how far a Conn is in its request.
type phase uint8

const (
	resting phase = iota // no request yet
	writing
	reading
)

// ErrStale means that the server closed a socket that was used before instead of
// answering a request that changes nothing: [Conn.Repeat] may follow.
var ErrStale = errors.New("the server had closed the connection")

// Conn is a logical connection to one server. It borrows a socket when a
// request begins and keeps it until it is released or its lane ends. One goroutine
// uses it at a time.
type Conn struct {
	mu     sync.Mutex // held by who uses a lentConn
	lane   *Lane      // nil: the native client's
	server *Server
	// follows is nil but for a client that is not a lane's: it keeps the connection for
	// longer than a call, and the server may leave in between.
	follows *Pool
	sock    atomic.Pointer[socket] // written by the user, read by Lane.abort
	phase   phase
	renew   bool // a reply is complete: the next read or write gets its timeout anew
	silent  bool // a reply is waited for, and no byte of it has come

	// eager means that the socket goes back with each complete reply of gomemcache's,
	// as nobody knows when the next request comes.
	eager   bool
	length  int // of gomemcache's request, 0 where that cannot be told
	written int // of what was written in it

	// replyDone means that the last reply has been read to its end, or that nothing
	// was sent: the socket is fit for another request.
	replyDone bool

	// repeatable means that the request may be sent again: it changes nothing, no
	// byte of a reply has come, and its socket may have been closed before it.
	repeatable bool
	request    []byte // gomemcache's, where it is repeatable

	moreReplies int       // how often a client's SetDeadline may still renew
	reply       replyScan // of gomemcache's request; the pipeline reads its own
	large       [][]byte  // a large value with its line, which gomemcache does not have yet
}

// Server returns the server that the connection is to.
func (c *Conn) Server() *Server { return c.server }

// Begin starts a request: it makes sure of a live socket, connecting where
// there is none, before the first byte is written, so that a server that was
// restarted costs no call.
func (c *Conn) Begin() error {
	_, err := c.begin()
	return err
}

// BeginRead is Begin for a request that changes nothing. Where it fails with
// [ErrStale] it may be sent again.
func (c *Conn) BeginRead() error {
	reused, err := c.begin()
	c.repeatable = reused
	return err
}

func (c *Conn) begin() (reused bool, err error) {
	c.repeatable = false
	if s := c.sock.Load(); s != nil {
		if now := sinceStart(); c.replyDone && s.good(now) {
			c.start(s, now)
			return true, nil
		}
		c.server.stale.Add(1) // since the last request of the same call
		c.Drop()
	}
	if c.follows != nil && c.server.retired.Load() {
		c.server = c.follows.server(c.server.Address)
	}
	if err := c.server.Admit(); err != nil {
		return false, err
	}
	return c.have(c.server.borrow(c.ctx()))
}

// Repeat begins a request again, on a new socket in the place of the one that the server
// has closed.
func (c *Conn) Repeat() error {
	if err := c.server.Admit(); err != nil {
		c.Drop()
		return err
	}
	_, err := c.have(c.server.replace(c.ctx(), c.sock.Swap(nil)))
	return err
}

func (c *Conn) ctx() context.Context {
	if c.lane == nil {
		return c.server.closing
	}
	return c.lane.ctx
}

func (c *Conn) have(h handed) (reused bool, err error) {
	if h.err != nil {
		return false, h.err
	}
	c.sock.Store(h.sock)
	c.start(h.sock, h.at)
	return h.reused, nil
}

func (c *Conn) start(s *socket, now time.Duration) {
	c.replyDone = true
	c.phase = writing
	c.renew = false
	c.reply.on = false
	s.armWrite(now)
	c.keepAborted(s)
}

// Meta reports whether the server has shown that it speaks the meta protocol on
// the socket that Begin made sure of. What is sent until the next Begin goes
// there or nowhere.
func (c *Conn) Meta() bool {
	s := c.sock.Load()
	return s != nil && s.meta
}

// Asked reports whether the server was asked for the meta protocol on that socket.
func (c *Conn) Asked() bool {
	s := c.sock.Load()
	return s != nil && s.askAgain.IsZero()
}

// Write is gomemcache's: a write after a read begins the next request. A retrieval
// comes in one write, so that it can be sent again.
func (c *Conn) Write(p []byte) (int, error) {
	if c.phase == writing {
		c.written += len(p)
		return c.Send(p)
	}
	reused, err := c.begin()
	if err != nil {
		return 0, err
	}
	c.repeatable = reused && len(p) <= maxRepeat && bytes.HasPrefix(p, []byte("get"))
	n, err := c.Send(p)
	// What follows takes less time while the server is at work.
	if c.repeatable || err == ErrStale {
		c.request = append(c.request[:0], p...)
	}
	if c.eager {
		c.length, c.written = lengthOf(p), len(p)
	}
	c.reply.begin(p)
	c.moreReplies = c.reply.keys - 1
	if err == ErrStale {
		return len(p), c.sendAgain()
	}
	return n, err
}

// sendAgain sends gomemcache's request on a new socket.
func (c *Conn) sendAgain() error {
	if err := c.Repeat(); err != nil {
		return err
	}
	c.reply.begin(c.request)
	_, err := c.Send(c.request)
	return err
}

// Send writes within the request that Begin started.
func (c *Conn) Send(p []byte) (int, error) {
	s := c.sock.Load()
	if s == nil {
		return 0, net.ErrClosed
	}
	if c.phase == reading || c.renew {
		c.phase = writing
		c.renew = false
		s.armWrite(sinceStart())
		c.keepAborted(s)
	}
	if !c.replyDone || len(p) > maxAtOnce {
		c.watch()
	}
	c.replyDone = false
	n, err := s.Write(p)
	if err != nil {
		return n, c.fail(err)
	}
	return n, nil
}

func (c *Conn) Read(p []byte) (int, error) {
	s := c.sock.Load()
	if s == nil {
		return 0, net.ErrClosed
	}
	if c.phase == writing || c.renew {
		c.phase = reading
		c.renew = false
		c.silent = true
		s.armRead(sinceStart())
		c.keepAborted(s)
		c.watch()
	}
	if c.large != nil {
		return c.readLarge(s, p)
	}
	n, err := s.Read(p)
	if n > 0 {
		if c.silent {
			c.silent = false
			s.hear()
		}
		c.repeatable = false
		err = nil // TLS tells of the end with the last bytes, and again at the next read
	}
	if err != nil {
		if err = c.fail(err); err == ErrStale && c.reply.on {
			if err = c.sendAgain(); err == nil {
				return c.Read(p)
			}
		}
		return n, err
	}
	if c.reply.on {
		return c.follow(p[:n])
	}
	return n, nil
}

// follow reads along with gomemcache. It returns how much of p is its reply.
func (c *Conn) follow(p []byte) (int, error) {
	n, state := c.reply.read(p)
	switch state {
	case replyComplete, replyRefused:
		if state == replyComplete {
			c.Complete()
		} else {
			c.Refused()
		}
		if c.eager && state == replyComplete { // a call of the driver's counts for itself
			c.server.Count(c.reply.counts())
		}
		switch {
		case !c.eager:
		case c.length == 0 || c.written == c.length:
			c.Release()
		default:
			c.Drop() // there is another request behind it, by hand
		}
	case replyOutOfStep:
		c.server.succeeded()
		c.Drop()
	case replyMalformed:
		c.server.succeeded()
		c.Drop()
		return 0, &Error{c.server.String(), protocol.ErrUnexpected}
	case replyLarge:
		c.large = [][]byte{bytes.Clone(p[n:])} // for the next Read
	}
	return n, nil
}

// readLarge is Read for a large value. gomemcache reserves what a value's line
// announces, so it gets the line when the value has come. The pieces are let go one
// by one, as it takes them.
func (c *Conn) readLarge(s *socket, p []byte) (int, error) {
	for c.reply.skip > 0 {
		piece := make([]byte, min(c.reply.skip, protocol.GrowBy))
		if _, err := io.ReadFull(s, piece); err != nil {
			return 0, c.fail(err)
		}
		c.large = append(c.large, piece)
		c.reply.skip -= len(piece)
	}
	n := copy(p, c.large[0])
	if c.large[0] = c.large[0][n:]; len(c.large[0]) == 0 {
		c.large[0] = nil
		c.large = c.large[1:]
	}
	if len(c.large) == 0 {
		c.large = nil
	}
	return n, nil
}

// Progress says that a command is written or a reply is complete, so that the
// next read or write has its whole timeout. A reply is a sign of life.
func (c *Conn) Progress() {
	c.renew = true
	if c.phase == reading {
		c.server.succeeded()
	}
}

// Complete says that the last reply of the request is. A socket whose request
// did not come to it is not used again.
func (c *Conn) Complete() {
	c.replyDone = true
	c.server.prove()
	c.server.succeeded()
}

// Refused is Complete for a reply that is an error line: the server may close the
// connection after it, so the socket is looked at before its next use.
func (c *Conn) Refused() {
	c.Complete()
	if s := c.sock.Load(); s != nil {
		s.used -= checkAfter
	}
}

// SetDeadline is gomemcache's: it means that it waits for another reply. The
// time is of no interest, the timeouts are ours. Only as many replies count as
// were asked for, so that a single-key call has one read timeout.
func (c *Conn) SetDeadline(time.Time) error {
	if c.phase == reading && c.moreReplies > 0 {
		c.moreReplies--
		c.renew = true
	}
	return nil
}

func (c *Conn) watch() {
	if c.lane != nil {
		c.lane.watch()
	}
}

// keepAborted follows what sets a deadline: an abort's stays.
func (c *Conn) keepAborted(s *socket) {
	if c.lane != nil && c.lane.aborted.Load() {
		s.SetDeadline(longAgo)
	}
}

// Drop closes the socket, because the request did not end in step. The next
// request connects anew.
func (c *Conn) Drop() {
	if s := c.sock.Swap(nil); s != nil {
		s.reset()
	}
	c.phase = resting
}

// settle ends the call's use of the connection, and of its socket if fit.
func (c *Conn) settle(fit bool) {
	s := c.sock.Load()
	if s == nil || !fit || !c.replyDone {
		c.Drop()
		return
	}
	c.sock.Store(nil)
	c.phase = resting
	c.server.putIdle(s)
}

// Release ends the use of the socket before the call does, so that nobody waits for
// it who waits for another server.
func (c *Conn) Release() {
	if c.lane == nil {
		c.settle(true)
		return
	}
	c.lane.mu.Lock() // abort must not reach the socket's next user
	c.settle(!c.lane.aborted.Load())
	c.lane.mu.Unlock()
}

// Close is gomemcache's, after an error or for a connection too many. The socket
// goes back where the reply was complete, as a refusal is.
func (c *Conn) Close() error {
	if c.phase == reading && c.sock.Load() != nil {
		c.server.succeeded()
	}
	if c.lane == nil {
		c.Drop() // a complete reply's socket has gone back already
		return nil
	}
	c.Release()
	c.lane.forget(c)
	return nil
}

func (c *Conn) SetReadDeadline(t time.Time) error  { return c.SetDeadline(t) }
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.SetDeadline(t) }

func (c *Conn) LocalAddr() net.Addr  { return c.server } // nobody asks
func (c *Conn) RemoteAddr() net.Addr { return c.server }
