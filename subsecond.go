package memcacheddriver

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// A TTL of less than a second is more than memcached can keep: it counts whole
// seconds. Where the server speaks the meta protocol, the driver that wrote such
// a value removes it when its time is over, if it is still the one that it wrote
// (by its CAS number). The server has a TTL as well, the backstop, for the case
// that the driver is not there any more.

// backstop is the server's TTL for such a value. It is 2, not 1: the server's
// clock may tick right after the write, which ends a TTL of 1 at once.
const backstop = 2

// maxPending is how many such values of one server are remembered, at about
// 130 bytes each and the key. Those above it live until their backstop.
const maxPending = 1 << 20

// removeBatch is how many values are removed in one exchange.
const removeBatch = 1000

func isSubsecond(ttl time.Duration) bool { return 0 < ttl && ttl < time.Second }

// errClassic means that a server does not speak the meta protocol.
var errClassic = errors.New("no meta protocol")

// storeSubsecond stores one value and remembers to remove it. The error is
// errClassic where the server cannot tell a CAS number.
func (db *MemcachedDB) storeSubsecond(ctx context.Context, op, key string, value []byte, ttl time.Duration, mode pipeline.Mode) (stored bool, err error) {
	err = db.onServer(ctx, op, key, func(s *session, c *pool.Conn) error {
		outcomes, err := s.storeAllSubsecond(c, []pipeline.Item{{Key: key, Value: value}}, ttl, mode)
		if err != nil {
			return err
		}
		stored = outcomes[0].Code == "HD"
		return outcomes[0].Err
	})
	return stored, err
}

// storeAllSubsecond stores items and remembers to remove those that were stored.
func (s *session) storeAllSubsecond(c *pool.Conn, items []pipeline.Item, ttl time.Duration, mode pipeline.Mode) ([]pipeline.Outcome, error) {
	if meta, err := pipeline.SpeaksMeta(c); err != nil || !meta {
		return nil, cmp.Or(err, errClassic)
	}
	stores := make([]pipeline.Store, len(items))
	for i, it := range items {
		stores[i] = pipeline.Store{Item: it, Expiration: backstop, Mode: mode}
	}
	outcomes, err := pipeline.StoreAll(c, stores)
	due := time.Now().Add(ttl)
	for i, out := range outcomes {
		switch {
		case out.Code == "HD":
			s.removerOf(c.Server()).add(items[i].Key, out.CAS, due)
		case out.Err == nil && (mode == pipeline.ModeSet || out.Code != "NS"):
			outcomes[i].Err = ErrProtocol // not an answer to such a set
		}
	}
	return outcomes, err
}

// expireSubsecond gives key a TTL under a second. The error is errClassic where
// the server cannot tell a CAS number.
func (db *MemcachedDB) expireSubsecond(ctx context.Context, key string, ttl time.Duration) error {
	return db.onServer(ctx, "expire", key, func(s *session, c *pool.Conn) error {
		if meta, err := pipeline.SpeaksMeta(c); err != nil || !meta {
			return cmp.Or(err, errClassic)
		}
		cas, found, err := pipeline.Touch(c, key, backstop)
		if err != nil {
			return err
		}
		if !found {
			return kv.ErrNotFound
		}
		s.removerOf(c.Server()).add(key, cas, time.Now().Add(ttl))
		return nil
	})
}

func (s *session) removerOf(server *pool.Server) *remover { return s.removers[server.Index] }

// remover removes the values of one server when their time is over. It has a
// goroutine only while it does so.
type remover struct {
	pool   *pool.Pool
	server *pool.Server

	size atomic.Int32 // of byKey

	mu      sync.Mutex
	byKey   map[string]*pending
	queue   queue // the next due is first; those being removed are not in it
	timer   *time.Timer
	running bool
	closed  bool
	done    sync.WaitGroup // of the goroutine
}

// pending is a value to be removed.
type pending struct {
	key   string
	cas   uint64
	due   time.Time
	place int // in the queue; -1 while it is being removed
}

func newRemovers(p *pool.Pool) []*remover {
	removers := make([]*remover, len(p.Servers))
	for i, server := range p.Servers {
		removers[i] = &remover{pool: p, server: server, byKey: make(map[string]*pending)}
	}
	return removers
}

// add remembers to remove the value of key with that CAS number, and nothing
// else of key.
func (r *remover) add(key string, cas uint64, due time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || cas == 0 { // a server without CAS numbers (-C)
		return
	}
	if p := r.byKey[key]; p != nil && p.place >= 0 {
		if cas >= p.cas { // of two writes at once the server has kept the later
			p.cas, p.due = cas, due
			heap.Fix(&r.queue, p.place)
		}
	} else if len(r.queue) < maxPending {
		p = &pending{key: key, cas: cas, due: due}
		r.byKey[key] = p
		r.size.Store(int32(len(r.byKey)))
		heap.Push(&r.queue, p)
	}
	r.arm()
}

// expired reports whether the time of that value of key is over, though it may
// not have been removed yet: a busy machine may wake a reader first.
func (r *remover) expired(key string, cas uint64) bool {
	if r.size.Load() == 0 {
		return false
	}
	due, ok := r.due(key, cas)
	return ok && !time.Now().Before(due)
}

// due returns when the value of key with that CAS number is to be removed; ok is
// false for one that is not.
func (r *remover) due(key string, cas uint64) (due time.Time, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.byKey[key]; p != nil && p.cas == cas {
		return p.due, true
	}
	return due, false
}

// forget leaves key alone, as it gets a TTL that the server can keep.
func (r *remover) forget(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.byKey[key]; p != nil {
		if p.place >= 0 {
			heap.Remove(&r.queue, p.place)
		}
		r.drop(p)
	}
}

// drop forgets p, unless another has taken its place. It needs mu.
func (r *remover) drop(p *pending) {
	if r.byKey[p.key] == p {
		delete(r.byKey, p.key)
		r.size.Store(int32(len(r.byKey)))
	}
}

// arm sets the timer for the next that is due. It needs mu.
func (r *remover) arm() {
	if r.running || r.closed || len(r.queue) == 0 {
		return
	}
	wait := time.Until(r.queue[0].due)
	if r.timer == nil {
		r.timer = time.AfterFunc(wait, r.run)
	} else {
		r.timer.Reset(wait)
	}
}

// run removes all that is due.
func (r *remover) run() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.running {
		return
	}
	r.running = true
	r.done.Add(1)
	defer r.done.Done()
	for {
		var due []*pending
		for now := time.Now(); len(due) < removeBatch && len(r.queue) > 0 && !r.queue[0].due.After(now); {
			due = append(due, heap.Pop(&r.queue).(*pending))
		}
		if len(due) == 0 {
			break
		}
		revisions := make([]pipeline.Revision, len(due))
		for i, p := range due {
			revisions[i] = pipeline.Revision{Key: p.key, CAS: p.cas}
		}
		r.mu.Unlock()
		// Where it fails, the backstop does it.
		_ = r.pool.Do(context.Background(), func(l *pool.Lane) error {
			return pipeline.DeleteRevisions(l.Conn(r.server), revisions)
		})
		r.mu.Lock()
		for _, p := range due {
			r.drop(p)
		}
	}
	r.running = false
	r.arm()
}

// stop makes the remover forget everything; its goroutine ends with the pool's
// Close.
func (r *remover) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.byKey, r.queue = nil, nil
	if r.timer != nil {
		r.timer.Stop()
	}
}

// queue is a heap.Interface.
type queue []*pending

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

func (q *queue) Push(x any) {
	p := x.(*pending)
	p.place = len(*q)
	*q = append(*q, p)
}

func (q *queue) Pop() any {
	n := len(*q) - 1
	p := (*q)[n]
	(*q)[n] = nil
	*q = (*q)[:n]
	p.place = -1
	return p
}
