package link

import (
	"context"
	"errors"
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

type kind uint8

const (
	get kind = iota
	exists
	remove
	set
	touch
)

// request is a call on its way. It belongs to the link's queue, then to the writer, then
// to the reader; whoever completes it lets go of it.
type request struct {
	kind    kind
	key     string
	set     pipeline.Set // of a set; its Expiration of a touch
	wantCAS bool
	wantTTL bool // of a get
	begun   time.Time
	by      time.Time // when its own timeouts end it

	queued     bool // under link.mu, as next and prev
	prev, next *request

	left     atomic.Bool // nobody waits any more; set under link.mu
	repeated bool        // it has been sent before
	single   bool        // not to be merged with others

	meta  bool     // how it was sent
	token uint64   // its number on its stream
	size  int      // of what was sent
	more  *request // the next of one merged get, whose first is on its way for all

	// The answer.
	found  bool
	value  []byte
	ttl    int64 // seconds; -1 for none, and where it was not told
	result pipeline.SetResult
	err    error
	done   chan struct{} // holds one
}

var requests = sync.Pool{New: func() any { return &request{done: make(chan struct{}, 1)} }}

func newRequest(k kind, key string) *request {
	r := requests.Get().(*request)
	r.kind, r.key, r.ttl = k, key, -1
	return r
}

// free makes r another call's. Nobody else may have it.
func (r *request) free() {
	r.set = pipeline.Set{}
	r.key, r.value, r.result, r.err = "", nil, pipeline.SetResult{}, nil
	r.wantCAS, r.wantTTL, r.repeated, r.single, r.found = false, false, false, false, false
	requests.Put(r)
}

// isRead reports whether r changes nothing.
func (r *request) isRead() bool { return r.kind == get || r.kind == exists }

// complete wakes the caller, who may use r at once.
func (r *request) complete(err error) {
	r.err = err
	r.done <- struct{}{}
}

// do sends r and waits for its answer. Where it returns an error, r has been let go.
func (ls *Links) do(ctx context.Context, r *request) error {
	if ctx.Err() != nil {
		r.free()
		return pool.Ended(ctx)
	}
	if err := ls.server.Admit(); err != nil {
		r.free()
		return err
	}
	l := ls.pick(r.key)
	r.begun = time.Now()
	r.by = r.begun.Add(l.expiry)
	if !l.enqueue(r) {
		r.free()
		return pool.ErrClosed
	}
	if ended := ctx.Done(); ended == nil {
		<-r.done
	} else {
		select {
		case <-r.done:
		case <-ended:
			l.leave(r)
			return ls.server.Cancelled(ctx)
		}
	}
	err := r.err
	if err == nil {
		return nil
	}
	if !r.left.Load() { // else its reply is still to come
		r.free()
	}
	var at *pool.Error
	if ctx.Err() != nil && errors.As(err, &at) {
		return ls.server.Cancelled(ctx)
	}
	return err
}

// pick returns the link of a key: it is always the same, so that a write whose caller
// has left is not overtaken by that caller's next call on a link.
func (ls *Links) pick(key string) *link {
	if len(ls.links) == 1 {
		return ls.links[0]
	}
	return ls.links[hash(key)%uint64(len(ls.links))]
}

var seed = maphash.MakeSeed()

func hash(key string) uint64 { return maphash.String(seed, key) }

// queue holds the requests that nobody has taken yet, in their order.
type queue struct{ first, last *request }

func (q *queue) push(r *request) {
	r.queued = true
	r.prev, r.next = q.last, nil
	if q.last == nil {
		q.first = r
	} else {
		q.last.next = r
	}
	q.last = r
}

// pushFront is for what has to go again.
func (q *queue) pushFront(r *request) {
	r.queued = true
	r.prev, r.next = nil, q.first
	if q.first == nil {
		q.last = r
	} else {
		q.first.prev = r
	}
	q.first = r
}

func (q *queue) remove(r *request) {
	r.queued = false
	if r.prev == nil {
		q.first = r.next
	} else {
		r.prev.next = r.next
	}
	if r.next == nil {
		q.last = r.prev
	} else {
		r.next.prev = r.prev
	}
	r.prev, r.next = nil, nil
}

// isReply reports whether err is what a server has said, or nothing that a server
// says, and not that it could not be read.
func isReply(err error) bool {
	var reply *protocol.ReplyError
	return errors.As(err, &reply) || errors.Is(err, protocol.ErrUnexpected)
}
