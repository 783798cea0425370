package pool

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
)

// errReturned is what a client that was lent gives from then on.
var errReturned = fmt.Errorf("the client of a Do was used after its function had returned; it is for that function alone: %w", net.ErrClosed)

// Lend runs fn with a client of its own, on which ctx aborts every read, write and
// dial. fn may leave goroutines behind that still use the client: what they do is
// refused, or cut off, and reaches no other call. Lend returns fn's error, or says
// that ctx has ended already.
func (p *Pool) Lend(ctx context.Context, fn func(*memcache.Client) error) error {
	if ctx.Err() != nil {
		return &contextError{ctx}
	}
	l := newLoan(p)
	ctx, l.cancel = context.WithCancelCause(ctx)
	l.ctx = ctx
	l.watch() // once, as goroutines may use the lane until after its end
	defer l.end()
	return fn(l.client)
}

// loan is a lane whose client is lent to a function of the user's. It is not used
// again, as nobody knows who still has the client.
type loan struct {
	*Lane
	cancel context.CancelCauseFunc // of the lane's context
	over   atomic.Bool
}

func newLoan(p *Pool) *loan {
	l := &loan{Lane: newLane()}
	l.client = memcache.NewFromSelector((*selector)(p))
	l.client.MaxIdleConns = 1
	l.client.DialContext = func(_ context.Context, _, address string) (net.Conn, error) {
		if l.over.Load() {
			return nil, errReturned
		}
		c := l.newConn(p.server(address))
		c.follows = p
		c.eager = true // or its user could wait for a socket that only he holds
		return &lentConn{c, l}, nil
	}
	return l
}

// end gives the sockets back, but for those that are in use: their operations are
// aborted and waited for.
func (l *loan) end() {
	l.over.Store(true) // before any lock is asked for: who holds it has it for the last time
	aborted := l.unbind()
	l.cancel(errReturned)
	l.mu.Lock()
	conns := slices.Clone(l.conns)
	l.mu.Unlock()
	var busy []*Conn
	for _, c := range conns {
		if !c.mu.TryLock() {
			busy = append(busy, c)
			continue
		}
		c.settle(!aborted)
		c.mu.Unlock()
	}
	if len(busy) == 0 {
		return
	}
	l.abort()
	for _, c := range busy {
		c.mu.Lock()
		c.Drop()
		c.mu.Unlock()
	}
}

// lentConn is a Conn that its user may still use when the loan is over.
type lentConn struct {
	*Conn
	loan *loan
}

// use runs an operation, one at a time, unless the loan is over.
func (c *lentConn) use(operation func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.loan.over.Load() {
		return errReturned
	}
	err := operation()
	if err != nil && c.loan.over.Load() {
		return errReturned
	}
	return err
}

func (c *lentConn) Read(p []byte) (n int, err error) {
	err = c.use(func() (err error) { n, err = c.Conn.Read(p); return err })
	return n, err
}

func (c *lentConn) Write(p []byte) (n int, err error) {
	err = c.use(func() (err error) { n, err = c.Conn.Write(p); return err })
	return n, err
}

func (c *lentConn) SetDeadline(t time.Time) error {
	return c.use(func() error { return c.Conn.SetDeadline(t) })
}

func (c *lentConn) Close() error { return c.use(c.Conn.Close) }
