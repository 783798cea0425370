// Package link lets the single-key calls of many goroutines travel together: on a few
// sockets per server, whose requests are written behind each other as they come, and
// whose replies are read in that order.
//
//	Links    the shared links to one server
//	link     a queue of requests, and a socket while there is something to do
//	writer   takes all that is queued, and writes it at once
//	reader   reads the replies, and wakes the callers
//
// A caller never touches the socket, so it may leave at any time. What it has not
// written is not written any more; what it has is read and thrown away.
package link

import (
	"context"
	"sync/atomic"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// MaxValue is the longest value that a link takes: a larger one keeps the others
// waiting for longer than a socket of its own costs.
const MaxValue = 8 << 10

// Links are the shared links to one server. They are safe for concurrent use, and have
// goroutines only while there is something to do, and a moment longer.
type Links struct {
	server *pool.Server
	alone  int32        // how many calls in flight go each on a socket of its own
	calls  atomic.Int32 // in flight, shared or not
	links  []*link
	paused pause

	// large has the hashes of some keys whose values were too long for a link when they
	// were last got, each in its own place.
	large     [1024]atomic.Uint64
	someLarge atomic.Bool // there has been one
}

// New returns n links to a server, for the calls above the first few in flight, each
// of which goes alone.
func New(server *pool.Server, n, alone int) *Links {
	ls := &Links{server: server, alone: int32(alone)}
	for range n {
		ls.links = append(ls.links, newLink(server, &ls.paused))
	}
	return ls
}

// Begin counts a single-key call, until End, and reports whether it is to be shared: as
// it is not one of the first few, or would have to wait for a socket. A key whose value
// keeps others waiting goes alone.
func (ls *Links) Begin(key string) (shared bool) {
	many := ls.calls.Add(1) > ls.alone || ls.server.Full()
	return many && len(ls.links) > 0 && !ls.isLarge(key) && !ls.paused.lasts()
}

func (ls *Links) isLarge(key string) bool {
	h := hash(key)
	return ls.large[h%uint64(len(ls.large))].Load() == h
}

// Got remembers whether the value of key is too long for a link.
func (ls *Links) Got(key string, size int) {
	if size <= MaxValue && !ls.someLarge.Load() {
		return
	}
	h := hash(key)
	place := &ls.large[h%uint64(len(ls.large))]
	switch {
	case size > MaxValue:
		place.Store(h)
		ls.someLarge.Store(true)
	case place.Load() == h:
		place.Store(0)
	}
}

// End follows Begin.
func (ls *Links) End() { ls.calls.Add(-1) }

// Stats returns how many calls have been shared, and how many links are open.
func (ls *Links) Stats() (calls uint64, open int) {
	for _, l := range ls.links {
		l.mu.Lock()
		calls += l.calls
		if l.open {
			open++
		}
		l.mu.Unlock()
	}
	return calls, open
}

// Close waits for the goroutines, which the end of the pool's sockets ends. Calls from
// then on give [pool.ErrClosed].
func (ls *Links) Close() {
	for _, l := range ls.links {
		l.close()
	}
}

// Get returns the value of key, which is the caller's; ok is false for a miss.
func (ls *Links) Get(ctx context.Context, key string) (value []byte, ok bool, err error) {
	r := newRequest(get, key)
	if err := ls.do(ctx, r); err != nil {
		return nil, false, err
	}
	value, ok = r.value, r.found
	r.free()
	return value, ok, nil
}

// GetTTL is Get with the seconds that the value has left: -1 for no end, and where only
// the meta protocol tells it.
func (ls *Links) GetTTL(ctx context.Context, key string) (value []byte, ttl int64, ok bool, err error) {
	r := newRequest(get, key)
	r.wantTTL = true
	if err := ls.do(ctx, r); err != nil {
		return nil, 0, false, err
	}
	value, ttl, ok = r.value, r.ttl, r.found
	r.free()
	return value, ttl, ok, nil
}

// Exists reports whether the server holds key.
func (ls *Links) Exists(ctx context.Context, key string) (bool, error) {
	return ls.ask(ctx, newRequest(exists, key))
}

// Delete deletes key, and reports whether it was there.
func (ls *Links) Delete(ctx context.Context, key string) (bool, error) {
	return ls.ask(ctx, newRequest(remove, key))
}

func (ls *Links) ask(ctx context.Context, r *request) (bool, error) {
	if err := ls.do(ctx, r); err != nil {
		return false, err
	}
	found := r.found
	r.free()
	return found, nil
}

// Set does s. A refusal is an error. wantCAS asks for the CAS number, which only the
// meta protocol tells. The value is the caller's again when Set returns.
func (ls *Links) Set(ctx context.Context, s *pipeline.Set, wantCAS bool) (pipeline.SetResult, error) {
	r := newRequest(set, s.Key)
	r.set, r.wantCAS = *s, wantCAS
	if err := ls.do(ctx, r); err != nil {
		return pipeline.SetResult{}, err
	}
	result := r.result
	r.free()
	return result, nil
}

// Touch gives key another expiration. It returns its CAS number, 0 where only the meta
// protocol tells it; ok is false for a miss.
func (ls *Links) Touch(ctx context.Context, key string, expiration pipeline.Expiration) (cas uint64, ok bool, err error) {
	r := newRequest(touch, key)
	r.set.Expiration = expiration
	if err := ls.do(ctx, r); err != nil {
		return 0, false, err
	}
	cas, ok = r.result.CAS, r.found
	r.free()
	return cas, ok, nil
}
