// Package remover keeps times to live of less than a second, which is more than
// memcached can: it counts whole seconds. Whoever wrote such a value removes it
// when its time is over, if it is still the one that was written, by its CAS
// number.
package remover

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
)

const (
	// maxPending is how many keys are remembered, at about 120 bytes each and the
	// key. Those above it live as long as the server's own TTL lets them.
	maxPending = 1 << 20

	// batchSize is how many values are removed in one exchange.
	batchSize = 1000

	// slot is how exact a removal is, so that a million values need no million
	// timers.
	slot = time.Millisecond
)

// Remover removes the values of one server. It is safe for concurrent use, and
// has a goroutine only while it removes.
type Remover struct {
	remove func([]pipeline.KeyCAS) error
	limit  int       // of pending
	start  time.Time // what times are counted from

	size atomic.Int32 // of pending

	mu       sync.Mutex
	pending  map[string]value
	slots    map[time.Duration][]string // keys, by when to look at them
	over     []pipeline.KeyCAS          // whose time is, still to be removed
	draining bool
	closed   bool
	done     sync.WaitGroup // of the goroutine
}

// value is one that is to be removed.
type value struct {
	cas uint64
	due time.Duration
	at  time.Duration // the slot that the key stands in, or inNone
}

// inNone is later than every slot: what is being removed stands in none, and one
// that is written meanwhile must get a slot.
const inNone = math.MaxInt64

// New returns a Remover that removes by remove those of the values that their
// keys still have. Where it fails, the server's own TTL ends them.
func New(remove func([]pipeline.KeyCAS) error) *Remover {
	return &Remover{
		remove:  remove,
		limit:   maxPending,
		start:   time.Now(),
		pending: make(map[string]value),
		slots:   make(map[time.Duration][]string),
	}
}

// Add remembers to remove values at due, and nothing else of their keys.
func (r *Remover) Add(due time.Time, values ...pipeline.KeyCAS) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return
	}
	for _, v := range values {
		p, known := r.pending[v.Key]
		switch {
		case v.CAS == 0: // a server without CAS numbers (-C)
		case known && v.CAS < p.cas: // of two writes at once the server has kept the later
		case !known && len(r.pending) >= r.limit:
		default:
			p.cas, p.due = v.CAS, due.Sub(r.start)
			r.put(v.Key, p, !known)
		}
	}
	r.size.Store(int32(len(r.pending)))
}

// put remembers p, in another slot only if it must be looked at earlier than it
// would be, so that a key that is written often stands in one. It needs mu.
func (r *Remover) put(key string, p value, move bool) {
	at := p.due.Truncate(slot) + slot // rounded up: never too early
	if move || at < p.at {
		p.at = at
		if r.slots[at] == nil {
			time.AfterFunc(time.Until(r.start.Add(at)), func() { r.end(at) })
		}
		r.slots[at] = append(r.slots[at], key)
	}
	r.pending[key] = p
}

// Over reports whether the time of that value of key is, though it may not have
// been removed yet.
func (r *Remover) Over(key string, cas uint64) bool {
	due, ok := r.Due(key, cas)
	return ok && !time.Now().Before(due)
}

// Due returns when the value of key with that CAS number is to be removed; ok is
// false for one that is not.
func (r *Remover) Due(key string, cas uint64) (due time.Time, ok bool) {
	if r.size.Load() == 0 {
		return due, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.pending[key]
	return r.start.Add(p.due), ok && p.cas == cas
}

// Forget leaves key alone, as it gets a TTL that the server can keep.
func (r *Remover) Forget(key string) {
	if r.size.Load() == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.pending, key)
	r.size.Store(int32(len(r.pending)))
}

// Stop makes the Remover forget everything. Its goroutine ends with the removal
// under way, which Wait waits for.
func (r *Remover) Stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.pending, r.slots, r.over = nil, nil, nil
	r.size.Store(0)
}

// Wait returns when, after Stop, nothing is under way any more.
func (r *Remover) Wait() { r.done.Wait() }

// end hands the values of a slot whose time is over to the goroutine that removes
// them, which it becomes where there is none.
func (r *Remover) end(at time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	keys := r.slots[at]
	delete(r.slots, at)
	now := time.Since(r.start)
	for _, key := range keys {
		switch p, ok := r.pending[key]; {
		case !ok || p.at != at: // forgotten, or in another slot by now
		case p.due > now:
			r.put(key, p, true)
		default:
			r.over = append(r.over, pipeline.KeyCAS{Key: key, CAS: p.cas})
			p.at = inNone
			r.pending[key] = p
		}
	}
	if r.draining || len(r.over) == 0 {
		return
	}
	r.draining = true
	r.done.Add(1)
	defer r.done.Done()
	for len(r.over) > 0 {
		batch := r.over[:min(len(r.over), batchSize)]
		r.over = r.over[len(batch):]
		r.mu.Unlock()
		_ = r.remove(batch)
		r.mu.Lock()
		for _, v := range batch {
			if p := r.pending[v.Key]; p.cas == v.CAS && p.at == inNone {
				delete(r.pending, v.Key)
			}
		}
		r.size.Store(int32(len(r.pending)))
	}
	r.over = nil
	r.draining = false
	if len(r.pending) == 0 && !r.closed {
		r.pending = make(map[string]value) // a map does not shrink
	}
}
