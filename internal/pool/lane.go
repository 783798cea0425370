package pool

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
)

// longAgo is a deadline that ends every read and write at once.
var longAgo = time.Unix(1, 0)

// Lane is what one call holds while it runs. Because no other call uses it, its
// context is known to all that happens on it.
type Lane struct {
	// Client does its requests on this lane.
	Client *memcache.Client

	pool *Pool
	ctx  context.Context

	watched atomic.Bool
	stop    func() bool // of context.AfterFunc; nil where the lane is not watched
	abortFn func()      // abort, made once
	aborted atomic.Bool
	done    chan struct{} // abort tells that it has run

	mu    sync.Mutex
	conns []*Conn // all that are not closed
	pipes []*Conn // by Server.Index, those of Conn
}

func newLane(p *Pool) *Lane {
	l := &Lane{
		pool:  p,
		done:  make(chan struct{}, 1),
		pipes: make([]*Conn, len(p.Servers)),
	}
	l.abortFn = l.abort
	l.Client = memcache.NewFromSelector((*selector)(p))
	l.Client.MaxIdleConns = 1
	l.Client.DialContext = func(_ context.Context, _, address string) (net.Conn, error) {
		return l.newConn(p.server(address)), nil
	}
	return l
}

// Conn returns the lane's own connection to s, for the pipeline.
func (l *Lane) Conn(s *Server) *Conn {
	if c := l.pipes[s.Index]; c != nil {
		return c
	}
	c := l.newConn(s)
	l.pipes[s.Index] = c
	return c
}

func (l *Lane) newConn(s *Server) *Conn {
	c := &Conn{lane: l, server: s}
	l.mu.Lock()
	l.conns = append(l.conns, c)
	l.mu.Unlock()
	return c
}

// Spoil makes the lane close its sockets, because a reply was not what its
// client should have accepted.
func (l *Lane) Spoil() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		c.Drop()
	}
}

// forget drops a connection that its client closed.
func (l *Lane) forget(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, o := range l.conns {
		if o == c {
			l.conns = append(l.conns[:i], l.conns[i+1:]...)
			return
		}
	}
}

// watch comes before anything that may wait for the server: from then on the end of the
// context aborts it. It does not come earlier, as it takes less time while the server
// is at work.
func (l *Lane) watch() {
	if l.ctx.Done() != nil && !l.watched.Load() && l.watched.CompareAndSwap(false, true) {
		l.stop = context.AfterFunc(l.ctx, l.abortFn)
	}
}

// abort ends all that the lane waits for. A deadline that is set afterwards
// does not undo it: whoever sets one looks at aborted after it.
func (l *Lane) abort() {
	l.aborted.Store(true)
	l.mu.Lock()
	for _, c := range l.conns {
		if s := c.sock.Load(); s != nil {
			s.SetDeadline(longAgo)
		}
	}
	l.mu.Unlock()
	l.done <- struct{}{}
}

// unbind frees the lane from its context, and reports whether that has ended.
func (l *Lane) unbind() (aborted bool) {
	if l.stop == nil {
		return false
	}
	if !l.stop() {
		<-l.done // running or done: it must not reach the next call
	}
	l.stop = nil
	l.watched.Store(false)
	return l.aborted.Load()
}

// end gives the sockets back and reports whether the lane can be used again.
// returned is false where its function panicked or called runtime.Goexit.
func (l *Lane) end(returned bool) bool {
	aborted := l.unbind()
	l.mu.Lock()
	for _, c := range l.conns {
		c.settle(returned && !aborted)
	}
	l.mu.Unlock()
	if aborted {
		l.aborted.Store(false)
	}
	l.ctx = context.Background()
	return returned
}
