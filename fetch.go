package memcacheddriver

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/link"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

const opFetch = "fetch"

const (
	defaultFetchJitter = 0.05
	defaultFetchLease  = 5 * time.Second
	defaultFetchWait   = 3 * time.Second

	// A caller that waits for another process's load looks again after a pause, which
	// doubles.
	firstPause = 2 * time.Millisecond
	lastPause  = 100 * time.Millisecond

	// exchangeTime is what an exchange with the cache may take where FetchWait is less.
	exchangeTime = 100 * time.Millisecond
)

// FetchOption configures one [Fetch], which gives [ErrInvalidOption] for one that makes no
// sense: a negative duration, or what each says itself.
type FetchOption func(*fetch)

// FetchRefresh loads a value anew when it has no more than ahead, which is less than the
// ttl (or it is [ErrInvalidOption]), left to live: one caller loads and waits for it, the others get the value that
// there is, and so does that one if the load fails or its context ends; after a failure
// nobody tries again for a second. The default, 0, is never. It needs a server with CAS
// numbers and the meta protocol (memcached 1.6.10), which tells what is left in whole
// seconds; elsewhere it has no effect.
func FetchRefresh(ahead time.Duration) FetchOption { return func(f *fetch) { f.ahead = ahead } }

// FetchNotFound remembers for ttl that there is no value, where load returns an error that
// is [kv.ErrNotFound]: while there is none, Fetch then returns [kv.ErrNotFound] itself,
// without loading, until ttl is over or [DeleteFetched] is called. The default, 0, is not
// to. It ends as a ttl of [MemcachedDB.Set], but in whole seconds.
func FetchNotFound(ttl time.Duration) FetchOption { return func(f *fetch) { f.noneTTL = ttl } }

// FetchJitter makes each ttl longer or shorter by up to a fraction, at random, so that
// values that were stored together do not all expire together. The default is 0.05; 0 is
// none, and what is negative, or 1 or more, is [ErrInvalidOption].
func FetchJitter(fraction float64) FetchOption { return func(f *fetch) { f.jitter = fraction } }

// FetchLease sets after how long the right to load is another's, if the process that has
// it dies or loses the server. It is prolonged as long as load runs, and need not be as
// long as that. The default is 5 s; it lasts up to two seconds longer. 0 is
// [ErrInvalidOption].
func FetchLease(ttl time.Duration) FetchOption { return func(f *fetch) { f.lease = ttl } }

// FetchWait sets how long callers wait for the load of another process before they load
// themselves, and at most for the server to take what they have loaded. The default is 3 s;
// 0 is not at all, but for a tenth of a second that an exchange with the server may take.
func FetchWait(wait time.Duration) FetchOption { return func(f *fetch) { f.wait = wait } }

// Fetch returns the value of key, or what load returns, which it stores for ttl (0: no
// expiry). The store's codec makes bytes of it and a T of the bytes, in any case, so that
// a miss gives what a hit will.
//
// Of all callers that miss the same key, in all processes, one loads, and the others wait
// for its value. Those of one driver share the load: what it returns, an error as well, is
// theirs, and if it panics so do they. Its context has the values of the first caller's,
// and ends when none of them waits any more, though not by Close. Those of other processes
// wait for the value to appear, as long as [FetchWait] says, or for the loader to fail or
// to die, see [FetchLease]; then they load. A load that fetches its own key waits for
// itself. Of one that goes on when nobody waits any more the value may or may not be
// stored, and an error or a panic is lost.
//
// A cache that does not answer is no error: load is called, once at a time for a driver,
// and its value returned without being stored. Nor is one that refuses the value, for its
// size, or holds one that the codec cannot decode, which is replaced. [MemcachedDB.Stats]
// counts what goes wrong, and a [Tracer] is told: each exchange for the lease is a "fetch".
// The errors are load's as it is, that of ctx (within milliseconds of its end),
// [kv.ErrNotFound] by [FetchNotFound], those of the codec, [ErrNotOpen],
// [ErrInvalidOption], kv.ErrKeyEmpty and [ErrInvalidKey]: a key has six bytes less than
// elsewhere. The lease is an item beside it, the key with ~lease behind it; no key of
// yours should end so.
//
// What was loaded is stored only if there is no other value by then, or in a refresh if
// nothing has changed the value, and only if the key was not deleted by [DeleteFetched]. A
// plain Delete takes the value that is there, but not one that is being loaded. A change of
// the servers meanwhile keeps it from being stored.
//
// The store's hooks do not see it. It panics if the store is on another driver. It is safe
// for concurrent use, but callers of a key are to agree on T, the codec, load, ttl and
// options: those of the first one count.
func Fetch[T any](ctx context.Context, store *kv.Store, key string, ttl time.Duration, load func(context.Context) (T, error), opts ...FetchOption) (value T, err error) {
	f, err := newFetch(Unwrap(store), key, ttl, opts)
	if err != nil {
		return value, err
	}
	raw, due, err := f.get(ctx)
	switch {
	case err == nil:
		if value, err = decodeAs[T](store, raw); err == nil && !due {
			return value, nil
		}
		due = due && err == nil
	case err == kv.ErrNotFound:
	case errors.Is(err, ErrNotOpen):
		return value, err
	case ctx.Err() != nil: // whatever the Get came to
		return value, &OpError{Op: opFetch, Keys: []string{key}, Err: pool.Ended(ctx)}
	default:
		f.down = true
	}
	f.usable = func(raw []byte) bool { _, err := decodeAs[T](store, raw); return err == nil }
	f.load = func(ctx context.Context) ([]byte, error) {
		value, err := load(ctx)
		if err != nil {
			return nil, err
		}
		raw, err := store.Codec().Encode(value)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", kv.ErrCodecEncode, err)
		}
		return append([]byte{}, raw...), nil // not nil, and not the codec's
	}
	if raw, err = f.share(ctx, raw, due); err != nil {
		return *new(T), err
	}
	return decodeAs[T](store, raw)
}

func decodeAs[T any](store *kv.Store, raw []byte) (value T, err error) {
	if err := store.Codec().Decode(raw, &value); err != nil {
		return *new(T), fmt.Errorf("%w: %w", kv.ErrCodecDecode, err)
	}
	return value, nil
}

// DeleteFetched deletes keys, and sees to it that what a [Fetch] is just loading for them,
// in any process, is not stored: call it when the source has changed. Fetches on this
// driver that begin afterwards load anew. It tries every server; an error has an [OpError]
// for each that failed, with the keys that may or may not have been deleted: what was
// loaded for them may be there. So it is with all keys where ctx ends it.
//
// What remains: those on other drivers may still get what is being loaded there. A value
// that was just being stored can be there for a moment after DeleteFetched has returned,
// until its loader has noticed. It stays until it expires if that process dies in this very
// moment, if the server cannot be reached to take it back or does the command only then
// (it was frozen), or if it has no CAS numbers (memcached -C).
func DeleteFetched(ctx context.Context, store *kv.Store, keys ...string) error {
	db := Unwrap(store)
	for _, key := range keys {
		if err := db.checkFetchKey(key); err != nil {
			return err
		}
	}
	err := db.batch(ctx, "delete", keys, func(c *pool.Conn, g *group) {
		leases := make([]string, len(g.keys))
		for i, key := range g.keys {
			leases[i] = key + leaseSuffix
		}
		// One after the other: a proxy may send the commands of one exchange to
		// several servers at once.
		refused := func(i int, err error) { g.refuse(err, g.keys[i]) }
		answered := 0
		_, _, err := pipeline.Delete(c, leases, refused)
		if err == nil {
			_, answered, err = pipeline.Delete(c, g.keys, refused)
		}
		if err != nil {
			g.fail(g.keys[answered:], err)
		}
	})
	for _, key := range keys {
		db.fetches.forget(key)
	}
	return err
}

// checkFetchKey refuses a key whose lease's key would be too long.
func (db *MemcachedDB) checkFetchKey(key string) error {
	s, err := db.opened(opFetch, key)
	if err == nil && len(s.cfg.keyPrefix)+len(key)+len(leaseSuffix) > maxKey {
		err = &OpError{Op: opFetch, Keys: []string{key}, Err: fmt.Errorf("%w; Fetch needs %d of them for the key of its lease", ErrInvalidKey, len(leaseSuffix))}
	}
	return err
}

// fetch is one Fetch under way.
type fetch struct {
	db  *MemcachedDB
	key string
	ttl time.Duration

	ahead, noneTTL, lease, wait time.Duration
	jitter                      float64

	load   func(context.Context) ([]byte, error)
	usable func([]byte) bool // the codec can decode it
	down   bool              // the cache does not answer
}

func newFetch(db *MemcachedDB, key string, ttl time.Duration, opts []FetchOption) (*fetch, error) {
	f := &fetch{db: db, key: key, ttl: ttl, jitter: defaultFetchJitter, lease: defaultFetchLease, wait: defaultFetchWait}
	for _, opt := range opts {
		opt(f)
	}
	var wrong string
	switch {
	case f.ahead < 0 || ttl > 0 && f.ahead >= ttl:
		wrong = "FetchRefresh is not between 0 and the ttl"
	case f.noneTTL < 0:
		wrong = "FetchNotFound is negative"
	case f.wait < 0:
		wrong = "FetchWait is negative"
	case f.lease <= 0:
		wrong = "FetchLease is not positive"
	case !(0 <= f.jitter && f.jitter < 1):
		wrong = "FetchJitter is not between 0 and 1"
	}
	if wrong != "" {
		return nil, &OpError{Op: opFetch, Keys: []string{key}, Err: fmt.Errorf("%w: %s", ErrInvalidOption, wrong)}
	}
	return f, db.checkFetchKey(key)
}

// get returns what the cache has, and whether it is due to be loaded anew.
func (f *fetch) get(ctx context.Context) (raw []byte, due bool, err error) {
	if f.ahead == 0 {
		raw, err = f.db.Get(ctx, f.key)
		return raw, false, err
	}
	raw, left, err := f.db.getTTL(ctx, f.key)
	return raw, err == nil && f.isDue(left), err
}

// isDue reports whether a value that has left seconds to live, -1 for no end, is to be
// loaded anew.
func (f *fetch) isDue(left int64) bool {
	return left >= 0 && f.ahead > 0 && time.Duration(left)*time.Second <= f.ahead
}

// getTTL is Get with the seconds that the value has left: -1 for no end, and where only
// the meta protocol tells it.
func (db *MemcachedDB) getTTL(ctx context.Context, key string) (value []byte, left int64, err error) {
	c, err := db.call(ctx, "get", key)
	defer c.end(&err)
	if err != nil {
		return nil, 0, err
	}
	err = c.viaConn(func(conn *pool.Conn) error {
		found, err := pipeline.Fetch(conn, c.key)
		if err == nil && found == nil {
			return kv.ErrNotFound
		}
		if err == nil {
			value, left = found.Value, found.TTL
		}
		return err
	}, func(l *link.Links) (err error) {
		ok := false
		if value, left, ok, err = l.GetTTL(c.ctx, c.key); err == nil && !ok {
			return kv.ErrNotFound
		}
		return err
	})
	if err == nil {
		c.node.links.Got(c.key, len(value))
		c.found(len(value))
	}
	return value, left, err
}

// share returns the value to be, which one of those that ask for it on this driver fetches
// for all. Where the one that there is is due, who does not load has that.
func (f *fetch) share(ctx context.Context, old []byte, due bool) ([]byte, error) {
	for {
		raw, err := f.db.fetches.do(ctx, f.key, !due, func(ctx context.Context) ([]byte, error) {
			switch {
			case f.down:
				return f.load(ctx)
			case due:
				return f.refresh(ctx)
			}
			return f.fill(ctx)
		})
		switch {
		case due && err != nil && !errors.Is(err, kv.ErrNotFound):
			return old, nil
		case err != nil && ctx.Err() != nil:
			return nil, &OpError{Op: opFetch, Keys: []string{f.key}, Err: pool.Ended(ctx)}
		case err != errInFlight:
			return raw, err
		}
		// It was a refresh that has come to nothing, and the value is gone by now.
	}
}

// limit ends what waits for the cache or for another process, and has time for an exchange
// where nobody is to wait.
func (f *fetch) limit() time.Duration { return max(f.wait, exchangeTime) }

// fill gets the value of a key that has none, from load or from another process's.
func (f *fetch) fill(ctx context.Context) ([]byte, error) {
	l := newLease(f.db, f.key, f.lease)
	limited, cancel := context.WithTimeout(ctx, f.limit())
	defer cancel()
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		value, holder, err := l.look(limited)
		switch {
		case err != nil:
		case value != nil && f.usable(value):
			return value, nil
		case holder == noValue:
			return nil, kv.ErrNotFound
		case holder == "":
			var won bool
			var found *pipeline.Found
			if won, found, err = l.take(limited); won {
				return f.loadLeased(ctx, l, found)
			}
		}
		switch {
		case ctx.Err() != nil: // nobody waits any more
			return nil, ctx.Err()
		case err != nil || f.wait == 0:
			return f.load(ctx)
		}
		select {
		case <-limited.Done():
		case <-time.After(pause/2 + rand.N(pause)):
		}
	}
}

// refresh loads the value of a key anew that is about to expire, unless another process
// does, or the server has no CAS numbers to replace it by.
func (f *fetch) refresh(ctx context.Context) ([]byte, error) {
	l := newLease(f.db, f.key, f.lease)
	limited, cancel := context.WithTimeout(ctx, f.limit())
	defer cancel()
	won, found, err := l.take(limited)
	if err != nil || !won {
		return nil, errInFlight
	}
	if found != nil && found.CAS == 0 {
		f.finish(ctx, l, outcome{})
		return nil, errInFlight
	}
	return f.loadLeased(ctx, l, found)
}

// loadLeased loads, unless somebody has just stored what is wanted, and stores what comes
// of it.
func (f *fetch) loadLeased(ctx context.Context, l *lease, found *pipeline.Found) (raw []byte, err error) {
	var o outcome
	defer func() { f.finish(ctx, l, o) }() // also where load panics
	if found != nil && f.usable(found.Value) && !f.isDue(found.TTL) {
		return found.Value, nil
	}
	stop := l.keep(ctx)
	defer stop()
	raw, err = f.load(ctx)
	o = outcome{old: found, noneTTL: f.noneTTL}
	switch {
	case err == nil:
		o.value, o.ttl = raw, f.jittered()
	case errors.Is(err, kv.ErrNotFound):
		o.none = true
	}
	return raw, err
}

// finish waits for the end of a lease for as long as who wants the value can be expected to.
func (f *fetch) finish(ctx context.Context, l *lease, o outcome) {
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		l.finish(context.WithoutCancel(ctx), o)
	}()
	select {
	case <-finished:
	case <-time.After(f.limit()):
	}
}

// jittered returns the ttl, a little longer or shorter.
func (f *fetch) jittered() time.Duration {
	if f.ttl <= 0 {
		return f.ttl
	}
	d := time.Duration(float64(f.ttl) * f.jitter * (2*rand.Float64() - 1))
	if d > math.MaxInt64-f.ttl {
		return math.MaxInt64
	}
	return max(1, f.ttl+d)
}
