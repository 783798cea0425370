package memcacheddriver

import (
	"context"
	"fmt"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// CASOption configures one CompareAndSwap.
type CASOption func(*swap)

// CASTTL gives the swapped value a ttl of its own, kept as by [MemcachedDB.Set]
// (0: no expiry), instead of what the current one has left.
func CASTTL(ttl time.Duration) CASOption {
	return func(s *swap) { s.ttl = &ttl }
}

// swap is one CompareAndSwap under way.
type swap struct {
	session *session
	server  *pool.Server
	key     string
	ttl     *time.Duration // of CASTTL

	current    memcache.Item // Value, Flags, CasID
	expiration int32         // of the value to store, unless ttl says otherwise
}

// CompareAndSwap reads key, calls update with its value, and stores what update
// returns, if the key has not changed in between; otherwise it stores nothing
// and returns an error that is [kv.ErrConflict]: call it again, in a loop for a
// contended key. A key that is not there, or is gone by the time of the swap, is
// [kv.ErrNotFound]. An error of update's ends it and is in the chain of the one
// returned.
//
// update may keep and change its argument, and holds up no connection however
// long it takes. It is called once, or not at all.
//
// The item's flags stay, and so does what it has left to live, exactly, however
// often it is swapped; [CASTTL] sets another. For that the server's clock is read
// (stats). Behind memcached's own proxy it cannot be, and each swap may give or
// take a second. On a server or proxy without the meta protocol (memcached before
// 1.6.10, twemproxy), or one that did not answer when it was asked for that, the
// rest of the life cannot be read: there the swapped value does not expire unless
// CASTTL says so. A server without CAS numbers (memcached -C) gives
// [kv.ErrNotSupported].
//
// It ends with ctx, but does not interrupt update. Each of its exchanges with the
// server, two, or three or a few more for a key that expires, has write and read
// timeouts of its own. A swap that was cut off by ctx or by a failure may or may not
// have happened.
func (db *MemcachedDB) CompareAndSwap(ctx context.Context, key string, update func(current []byte) ([]byte, error), opts ...CASOption) error {
	const op = "cas"
	s, err := db.use(op, key)
	if err != nil {
		return err
	}
	w := &swap{session: s, server: s.pool.Pick(key), key: key}
	for _, opt := range opts {
		opt(w)
	}
	if err := w.finish(op, s.pool.Do(ctx, w.read)); err != nil {
		return err
	}
	value, err := update(w.current.Value)
	if err != nil {
		return &OpError{Op: op, Keys: []string{key}, Err: fmt.Errorf("update: %w", err)}
	}
	w.current.Value = value
	return w.finish(op, s.pool.Do(ctx, w.write))
}

// finish makes one of a swap's answers, or an [OpError], of err.
func (w *swap) finish(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case err == memcache.ErrCASConflict:
		return &OpError{op, w.server.String(), []string{w.key}, kv.ErrConflict}
	case err == memcache.ErrCacheMiss, err == memcache.ErrNotStored:
		return kv.ErrNotFound
	}
	return w.session.failure(op, w.key, err)
}

func (w *swap) read(l *pool.Lane) error {
	c := l.Conn(w.server)
	found, err := pipeline.Fetch(c, w.key)
	if err != nil {
		return err
	}
	if found == nil {
		return memcache.ErrCacheMiss
	}
	if err := checkCAS(found.CAS); err != nil {
		return err
	}
	w.current = memcache.Item{Key: w.key, Value: found.Value, Flags: found.Flags, CasID: found.CAS}
	if found.TTL >= 0 && w.ttl == nil {
		w.expiration, err = keepExpiration(c, w.key, found.TTL)
	}
	return err
}

func (w *swap) write(l *pool.Lane) error {
	due, subsecond := w.session.removerOf(w.key).Due(w.key, w.current.CasID)
	expirations := pipeline.Expiration{Meta: w.expiration, Classic: w.expiration}
	if w.ttl != nil {
		due, subsecond = time.Now().Add(*w.ttl), w.session.isSubsecond(*w.ttl)
		expirations = subsecondExpiration
		w.expiration = expiration(*w.ttl, time.Now())
	}
	if !subsecond {
		w.current.Expiration = w.expiration
		return l.Client.CompareAndSwap(&w.current)
	}
	// Only a meta set tells the CAS number that the removal needs.
	var result pipeline.SetResult
	err := pipeline.SetAll(l.Conn(w.server), []pipeline.Set{{
		Item:       pipeline.Item{Key: w.key, Value: w.current.Value},
		Flags:      w.current.Flags,
		Expiration: expirations,
		CAS:        w.current.CasID,
	}}, func(_ int, r pipeline.SetResult) { result = r })
	if err != nil {
		return err
	}
	switch result.Status {
	case pipeline.StatusStored:
		w.session.removerOf(w.key).Add(due, pipeline.KeyCAS{Key: w.key, CAS: result.CAS})
		return nil
	case pipeline.StatusExists:
		return memcache.ErrCASConflict
	case pipeline.StatusNotFound, pipeline.StatusNotStored:
		return memcache.ErrCacheMiss
	}
	return result.Err
}

// checkCAS refuses what cannot be compared: the server would take 0 for no
// comparison, and one without CAS numbers would never find one equal.
func checkCAS(cas uint64) error {
	if cas == 0 {
		return fmt.Errorf("%w: the server has no CAS numbers (memcached -C)", kv.ErrNotSupported)
	}
	return nil
}

// keepExpiration returns the expiration that lets a key expire when it would have.
//
// Writing back the seconds that were read would not: where the server's clock
// ticks between the read and the write the key gains a second, so that one that
// is swapped without pause would never expire. The time is therefore written as a
// Unix time by the server's own clock, which is the same however often it is read
// and written.
func keepExpiration(c *pool.Conn, key string, seconds int64) (int32, error) {
	at, err := pipeline.ExpiresAt(c, key)
	switch {
	case err == pipeline.ErrNoClock, err == pipeline.ErrNoMeta:
		return expiration(time.Duration(seconds)*time.Second, time.Now()), nil
	case err != nil:
		return 0, err
	case at == 0:
		return 0, memcache.ErrCacheMiss
	case at < 0:
		return 0, nil // since it was read; the swap will tell whether it changed
	}
	return clampUnix(at), nil
}
