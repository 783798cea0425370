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
	list   *List // that has it while it is idle
	client *memcache.Client
	at     *Server // that client's requests go to

	ctx context.Context

	watched atomic.Bool
	stop    func() bool // of context.AfterFunc; nil where the lane is not watched
	abortFn func()      // abort, made once
	aborted atomic.Bool
	done    chan struct{} // abort tells that it has run

	mu    sync.Mutex
	conns []*Conn           // all that are not closed
	pipes map[*Server]*Conn // those of Conn
}

func newLane() *Lane {
	l := &Lane{done: make(chan struct{}, 1)}
	l.abortFn = l.abort
	return l
}

func (list *List) newLane() *Lane {
	l := newLane()
	l.list = list
	l.pipes = make(map[*Server]*Conn)
	l.client = memcache.NewFromSelector((*onlyServer)(l))
	l.client.MaxIdleConns = 1
	l.client.DialContext = func(context.Context, string, string) (net.Conn, error) {
		return l.newConn(l.at), nil
	}
	return l
}

// Client returns a client that does its requests on this lane, until the next call for
// another server. It does not pick the server anew, which may be another one by now.
func (l *Lane) Client(s *Server) *memcache.Client {
	l.at = s
	return l.client
}

// onlyServer is the server of Client as gomemcache sees it.
type onlyServer Lane

func (l *onlyServer) PickServer(string) (net.Addr, error) { return l.at, nil }
func (l *onlyServer) Each(f func(net.Addr) error) error   { return f(l.at) }

// Conn returns the lane's own connection to s, for the pipeline.
func (l *Lane) Conn(s *Server) *Conn {
	c := l.pipes[s]
	if c == nil {
		c = l.newConn(s)
		l.pipes[s] = c
	}
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
