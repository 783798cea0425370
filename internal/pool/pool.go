// Package pool is the connection layer of memcacheddriver. It owns every
// socket, so that contexts, timeouts, liveness, health, TLS and authentication
// are done once, under gomemcache and under the pipeline alike.
//
//	Lane    what one call holds: a gomemcache client and that call's context
//	Conn    the net.Conn that a client sees: a logical connection to one server,
//	        which borrows a socket when a request begins
//	socket  an open network connection, with a server's idle list to rest in
//	Server  an address, its sockets, its health and its counters
package pool

import (
	"context"
	"crypto/tls"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
)

// ErrClosed is what calls get after Close, and calls in flight that Close cut.
var ErrClosed = errors.New("the driver is not open (Open comes first, and nothing after Close)")

// Config is what a Pool is made of. Every field is taken as it is: defaults and
// checks are the caller's.
type Config struct {
	// Servers are those that keys are spread over at first; one that is named twice
	// weighs double.
	Servers []Entry
	Ketama  bool // spread as libmemcached's KETAMA_WEIGHTED, not as gomemcache

	// Await waits until SetServers has named the first ones, where Servers are none.
	Await func(context.Context) error

	DialTimeout  time.Duration // name look-up, connect, TLS, authentication, meta?
	WriteTimeout time.Duration
	ReadTimeout  time.Duration

	MaxOpen     int           // sockets per server, those that are dialled included
	MaxIdle     int           // idle ones of them
	MaxIdleTime time.Duration // 0 means for ever

	FailureLimit int           // failures in a row until a server is down; 0 means never
	RetryAfter   time.Duration // how often one call probes a server that is down

	TLS            *tls.Config // nil means plain
	User, Password string      // User "" means no authentication

	// Dialing is told of each dial that begins, and what it returns how that ends; nil is
	// nobody.
	Dialing func(server string) (done func(error))

	Infof, Warnf func(format string, args ...any)
}

// Pool holds the lanes and the servers. It is safe for concurrent use.
type Pool struct {
	cfg  Config
	list atomic.Pointer[List]

	changing sync.Mutex // one change of the list at a time
	known    []*Server  // those in the list, and those that left it not long ago

	closing context.Context // ends with Close
	close   context.CancelFunc

	native *memcache.Client
}

// New makes a pool. It dials and looks up nothing.
func New(cfg Config) *Pool {
	p := &Pool{cfg: cfg}
	p.closing, p.close = context.WithCancel(context.Background())
	p.list.Store(newList(cfg.Servers, cfg.Ketama, p.meet))
	p.native = p.newNative()
	return p
}

// Do runs fn with a lane of its own, on which ctx aborts every read, write and
// dial. fn must not keep the lane. Do returns its error, or says that ctx
// has ended already.
func (p *Pool) Do(ctx context.Context, fn func(*Lane) error) error {
	l, err := p.take(ctx)
	if err != nil {
		return err
	}
	returned := false // stays so when fn panics or calls runtime.Goexit
	defer func() { p.release(l, returned) }()
	err = fn(l)
	returned = true
	return err
}

func (p *Pool) take(ctx context.Context) (*Lane, error) {
	if err := ctx.Err(); err != nil {
		return nil, &contextError{ctx}
	}
	if p.closing.Err() != nil {
		return nil, ErrClosed
	}
	list := p.list.Load()
	l, ok := list.lanes.Get().(*Lane)
	if !ok {
		l = list.newLane()
	}
	l.ctx = ctx
	return l, nil
}

func (p *Pool) release(l *Lane, returned bool) {
	if l.end(returned) {
		l.list.lanes.Put(l)
	}
}

// Native returns a gomemcache client for any number of goroutines, over the
// same sockets as the lanes, with the same timeouts and health, without a
// context.
func (p *Pool) Native() *memcache.Client { return p.native }

// Close closes every socket and cuts what is in flight, which then fails with
// ErrClosed. It may be called more than once.
func (p *Pool) Close() {
	p.close()
	p.changing.Lock()
	defer p.changing.Unlock()
	for _, s := range p.known {
		s.closeAll()
	}
}
