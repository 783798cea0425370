package link

import (
	"errors"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

const (
	// maxRequests and maxBytes bound what is written ahead of its replies. What is
	// above waits in the queue.
	maxRequests = 1024
	maxBytes    = 256 << 10

	// linger is for how long a link keeps its socket with nothing to do.
	linger = 100 * time.Millisecond
)

// errBehind does not tell the other call's reply, which may quote what was sent.
var errBehind = errors.New("the connection was closed before the reply came, after one to another call from which the next cannot be told")

// errIdle ends a stream that has nothing to do.
var errIdle = errors.New("idle")

// link is a queue of requests and, while there are some, a stream with its goroutines.
type link struct {
	server *pool.Server
	paused *pause
	expiry time.Duration // of a call, from its own start

	// encoding is held while values are read: a caller that leaves waits for its end,
	// as its value is its own again. It comes before mu.
	encoding sync.Mutex

	mu      sync.Mutex
	work    sync.Cond // there is something to write, room to write it, or ended
	queue   queue
	calls   uint64
	running bool // a goroutine serves the queue
	closed  bool
	serving sync.WaitGroup

	// What follows is the stream's.
	sent     []*request // whose replies are due, but for those that the reader has
	inFlight int        // taken from the queue and not answered
	bytes    int        // of what is in flight
	dueSince time.Time  // when inFlight was 0 last
	open     bool
	draining bool // nothing more is to be written on it
	ended    bool
	err      error // what ended it
	writing  bool  // err is the writer's
}

func newLink(server *pool.Server, paused *pause) *link {
	write, read := server.Timeouts()
	l := &link{server: server, paused: paused, expiry: write + read}
	if l.expiry < 0 { // more than a Duration holds
		l.expiry = 1<<63 - 1
	}
	l.work.L = &l.mu
	return l
}

// enqueue hands r over; false after close.
func (l *link) enqueue(r *request) bool {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return false
	}
	l.queue.push(r)
	l.calls++
	if !l.running {
		l.running = true
		l.serving.Go(l.run)
	}
	l.mu.Unlock()
	l.work.Signal()
	return true
}

// leave is for a caller that does not wait any longer. Nobody reads its value when it
// returns.
func (l *link) leave(r *request) {
	l.mu.Lock()
	if r.queued {
		l.queue.remove(r)
		l.mu.Unlock()
		return
	}
	r.left.Store(true)
	l.mu.Unlock()
	if r.kind == set {
		l.encoding.Lock()
		//lint:ignore SA2001 it is waited for, not held
		l.encoding.Unlock()
	}
}

// close waits until nothing runs, which is soon after the pool is closed.
func (l *link) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.serving.Wait()
}

// run serves the queue, by one stream after another, until there is nothing to do.
func (l *link) run() {
	for last := (*pool.Stream)(nil); ; {
		began := time.Now()
		t, err := l.server.OpenStream(last)
		if last = t; err == nil {
			l.serve(t)
			err = l.server.Down()
		}
		l.mu.Lock()
		switch {
		case errors.Is(err, pool.ErrPoolTimeout):
			l.failQueue(err, began) // the others have not waited as long
		case err != nil:
			l.failQueue(err, time.Now())
		default:
			l.expireQueue(time.Now())
		}
		if l.queue.first == nil {
			l.running = false
			l.mu.Unlock()
			if last != nil {
				last.Forget()
			}
			return
		}
		l.mu.Unlock()
	}
}

// failQueue fails what was begun until then. It needs mu.
func (l *link) failQueue(err error, then time.Time) {
	for r := l.queue.first; r != nil; {
		next := r.next
		if !r.begun.After(then) {
			l.queue.remove(r)
			r.complete(err)
		}
		r = next
	}
}

// expireQueue needs mu.
func (l *link) expireQueue(now time.Time) {
	for r := l.queue.first; r != nil; {
		next := r.next
		if !now.Before(r.by) {
			l.queue.remove(r)
			r.complete(l.server.TimedOut())
		}
		r = next
	}
}

// serve uses a stream until it ends.
func (l *link) serve(t *pool.Stream) {
	l.mu.Lock()
	l.sent, l.inFlight, l.bytes, l.ended, l.err, l.writing = l.sent[:0], 0, 0, false, nil, false
	l.open, l.draining = true, false
	for r := l.queue.first; r != nil; r = r.next {
		r.by = time.Now().Add(l.expiry) // the wait for a socket was the dial timeout's
	}
	l.mu.Unlock()
	r := newReader(l, t)
	w := &writer{link: l, stream: t, meta: t.Meta(), unwritten: never}
	var reading sync.WaitGroup
	reading.Go(func() { l.end(t, r.run(), false) })
	w.run()
	reading.Wait()
	l.sortOut(t, r, w)
}

// end says that the reader or the writer has ended, and why. The other one is to end,
// too: a writer by itself where the reader has nothing to do; a reader at once, but for
// when the server closed the connection, as replies may still come.
func (l *link) end(t *pool.Stream, err error, writing bool) {
	l.mu.Lock()
	if !l.ended {
		l.ended, l.err, l.writing = true, err, writing
	}
	l.mu.Unlock()
	l.work.Signal()
	if err != errIdle && !(writing && pool.Closed(err)) {
		t.Cut()
	}
}

// sortOut ends the stream, and what is still in flight: it fails, or goes again. What
// was never written goes again where the server closed the connection, and once a read
// that got no byte of its reply, if the connection may have been closed before it. After
// one that never answered, nothing does.
func (l *link) sortOut(t *pool.Stream, r *reader, w *writer) {
	if l.err == errIdle {
		l.mu.Lock()
		l.open = false
		l.mu.Unlock()
		t.Release()
		return
	}
	var reply *protocol.ReplyError
	full := errors.As(l.err, &reply) && reply.TooManyConns() && !r.answered // told to whoever comes
	outOfStep := isReply(l.err) && !full
	closed := pool.Closed(l.err) || outOfStep
	used := t.Reused() || r.answered
	silent := !l.writing && errors.Is(l.err, os.ErrDeadlineExceeded)

	var again, lost []*request
	l.mu.Lock()
	l.open = false
	for i, first := range slices.Concat(r.due[r.next:], l.sent) {
		begun := i == 0 && r.begun
		for q := first; q != nil; {
			next := q.more
			q.more = nil
			switch {
			case q.left.Load():
			case l.server.Closing():
				lost = append(lost, q)
			case closed && (used || outOfStep) && first.token >= w.unwritten:
				again = append(again, q)
			case closed && (used || outOfStep) && q.isRead() && !begun && !q.repeated:
				q.repeated = true
				again = append(again, q)
			default:
				lost = append(lost, q)
			}
			q = next
		}
	}
	for _, q := range slices.Backward(again) {
		l.queue.pushFront(q)
	}
	l.mu.Unlock()
	counts := true
	if silent { // one failure, whatever the number of links; none where only some wait
		counts = l.paused.begin() && !t.OthersHeard(time.Now().Add(-r.silence/2))
	}
	if len(again) > 0 {
		t.Keep() // they go on a new connection
	}

	var err error
	switch {
	case full:
		t.Close()
		err = l.err
	case outOfStep:
		t.Drop()
		err = l.server.Lost(errBehind)
	case closed && used && len(lost) == 0:
		t.Stale()
	case !counts:
		t.Close()
		err = l.server.TimedOut()
	default:
		err = t.Fail(l.err, l.writing)
	}
	for _, q := range lost {
		q.complete(err)
	}
	if full || closed && !used && !outOfStep {
		l.mu.Lock()
		l.failQueue(err, time.Now())
		l.mu.Unlock()
	}
}
