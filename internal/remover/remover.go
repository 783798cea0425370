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
	// maxPending is how many values are remembered, at about 180 bytes each and the
	// key. Those above it live as long as the server's own TTL lets them.
	maxPending = 1 << 20

	// batchSize is how many values are removed in one exchange.
	batchSize = 1000

	// slot is how exact a removal is, so that a million values need no million
	// timers.
	slot = time.Millisecond

	// retryAfter is when a removal that failed is tried again, and giveUpAfter for how
	// long: a server that was frozen, with its clock, has values whose time is over.
	retryAfter  = 250 * time.Millisecond
	giveUpAfter = time.Minute
)

// Remover removes the values of one server. It is safe for concurrent use, and
// has a goroutine only while it removes.
type Remover struct {
	remove func([]pipeline.KeyCAS) error
	limit  int       // of pending
	start  time.Time // what times are counted from

	pending sync.Map     // *value by key, until the server has confirmed that it is gone
	size    atomic.Int32 // of pending

	mu       sync.Mutex                 // to change all that follows, and pending
	slots    map[time.Duration][]string // keys, by when to look at them
	over     []pipeline.KeyCAS          // whose time is, still to be removed
	draining bool
	closed   bool
	done     sync.WaitGroup // of the goroutine
}

// value is one that is to be removed. Only at changes, under mu.
type value struct {
	cas   uint64
	due   time.Duration
	added time.Duration
	at    time.Duration // the slot that the key stands in, or inNone
}

// inNone is later than every slot: what is being removed stands in none, and one
// that is written meanwhile must get a slot.
const inNone = math.MaxInt64

// New returns a Remover that removes by remove those of the values that their
// keys still have. Where it fails, it is tried again for a while.
func New(remove func([]pipeline.KeyCAS) error) *Remover {
	return &Remover{
		remove: remove,
		limit:  maxPending,
		start:  time.Now(),
		slots:  make(map[time.Duration][]string),
	}
}

// Add remembers to remove v at due, and nothing else of its key. began is when
// the call began that wrote it.
func (r *Remover) Add(began, due time.Time, v pipeline.KeyCAS) {
	// Of two writes at once the server has kept the later; and a value with the same
	// number has been touched since.
	r.add(due, v, func(p *value) bool { return v.CAS <= p.cas && began.Sub(r.start) < p.added })
}

// Touch is Add for a call that gave another life to a value.
func (r *Remover) Touch(began, due time.Time, v pipeline.KeyCAS) {
	r.add(due, v, func(p *value) bool { return v.CAS < p.cas && began.Sub(r.start) < p.added })
}

func (r *Remover) add(due time.Time, v pipeline.KeyCAS, isOlder func(than *value) bool) {
	if v.CAS == 0 { // a server without CAS numbers (-C)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.find(v.Key); r.closed || p != nil && isOlder(p) {
		return
	}
	r.put(v.Key, &value{cas: v.CAS, due: due.Sub(r.start), added: time.Since(r.start)})
}

func (r *Remover) find(key string) *value {
	if p, ok := r.pending.Load(key); ok {
		return p.(*value)
	}
	return nil
}

// put remembers p. A key stands in another slot only if it must be looked at
// earlier than it would be, so that one that is written often stands in one. It
// needs mu.
func (r *Remover) put(key string, p *value) {
	p.at = p.due.Truncate(slot) + slot // rounded up: never too early
	if old := r.find(key); old == nil {
		if int(r.size.Load()) >= r.limit {
			return
		}
		r.size.Add(1)
	} else if old.at <= p.at {
		p.at = old.at
		r.pending.Store(key, p)
		return
	}
	r.pending.Store(key, p)
	r.stand(key, p.at)
}

// stand puts key into a slot. It needs mu.
func (r *Remover) stand(key string, at time.Duration) {
	if r.slots[at] == nil {
		time.AfterFunc(time.Until(r.start.Add(at)), func() { r.end(at) })
	}
	r.slots[at] = append(r.slots[at], key)
}

// forget needs mu.
func (r *Remover) forget(key string) {
	if _, known := r.pending.LoadAndDelete(key); known {
		r.size.Add(-1)
	}
}

// Due returns when the value of key with that CAS number is to be removed; ok is
// false for one that is not.
func (r *Remover) Due(key string, cas uint64) (due time.Time, ok bool) {
	p := r.find(key)
	if p == nil || p.cas != cas {
		return due, false
	}
	return r.start.Add(p.due), true
}

// Over returns those of the values of keys whose time is over and that the server
// may still have. A call removes them before it does what it is for.
func (r *Remover) Over(keys ...string) (over []pipeline.KeyCAS) {
	if r.size.Load() == 0 {
		return nil
	}
	now := time.Since(r.start)
	for _, key := range keys {
		if p := r.find(key); p != nil && p.due <= now {
			over = append(over, pipeline.KeyCAS{Key: key, CAS: p.cas})
		}
	}
	return over
}

// Removed says that the server has none of values any more.
func (r *Remover) Removed(values []pipeline.KeyCAS) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.removed(values)
}

func (r *Remover) removed(values []pipeline.KeyCAS) {
	now := time.Since(r.start)
	for _, v := range values {
		if p := r.find(v.Key); p != nil && p.cas == v.CAS && p.due <= now {
			r.forget(v.Key)
		}
	}
}

// Held is a value that is not removed, as its key is getting another TTL.
type Held struct {
	key  string
	over bool
	*value
}

// Hold forgets the value of key, unless Release follows, for a call that gives the
// key another TTL.
func (r *Remover) Hold(key string) Held {
	if r.size.Load() == 0 {
		return Held{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.find(key)
	r.forget(key)
	return Held{key, p != nil && p.due <= time.Since(r.start), p}
}

// Over returns h if its time was over already.
func (h Held) Over() []pipeline.KeyCAS {
	if !h.over {
		return nil
	}
	return []pipeline.KeyCAS{{Key: h.key, CAS: h.cas}}
}

// Release removes h at its time after all, as the call has failed.
func (r *Remover) Release(h Held) {
	if h.value == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed && r.find(h.key) == nil {
		r.put(h.key, &value{cas: h.cas, due: h.due, added: h.added})
	}
}

// Stop makes the Remover forget everything. Its goroutine ends with the removal
// under way, which Wait waits for.
func (r *Remover) Stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.slots, r.over = nil, nil
	r.pending.Clear()
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
		switch p := r.find(key); {
		case p == nil || p.at != at: // forgotten, or in another slot by now
		case p.due > now:
			p.at = p.due.Truncate(slot) + slot
			r.stand(key, p.at)
		default:
			r.over = append(r.over, pipeline.KeyCAS{Key: key, CAS: p.cas})
			p.at = inNone
		}
	}
	r.drain()
}

// drain removes all that is over. Where the server does not answer it comes again
// after a while. It needs mu, which it gives up meanwhile.
func (r *Remover) drain() {
	if r.draining || len(r.over) == 0 {
		return
	}
	r.done.Add(1)
	defer r.done.Done()
	r.draining = true
	for len(r.over) > 0 {
		batch := r.over[:min(len(r.over), batchSize)]
		r.mu.Unlock()
		err := r.remove(batch)
		r.mu.Lock()
		switch {
		case r.closed:
			return
		case err != nil:
			time.AfterFunc(retryAfter, func() {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.giveUp()
				r.draining = false
				r.drain()
			})
			return
		}
		r.removed(batch)
		r.over = r.over[len(batch):]
	}
	r.over = nil
	r.draining = false
}

// giveUp forgets what has been over for too long. It needs mu.
func (r *Remover) giveUp() {
	now := time.Since(r.start)
	for len(r.over) > 0 {
		v := r.over[0]
		if p := r.find(v.Key); p != nil && p.cas == v.CAS {
			if now < p.due+giveUpAfter {
				return
			}
			r.forget(v.Key)
		}
		r.over = r.over[1:]
	}
}
