package memcacheddriver

import (
	"context"
	"fmt"
	"math"
	"time"

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
	call
	ttl     *time.Duration // of CASTTL
	current *pipeline.Found
}

// CompareAndSwap reads key, calls update with its value, and stores what update
// returns, if the key has not changed in between; otherwise it stores nothing
// and returns an error that is [kv.ErrConflict]: call it again, in a loop for a
// contended key. So it does where [MemcachedDB.SetServers] or [WithDiscovery] has given
// the key another server meanwhile. A key that is not there, or is gone by the time of
// the swap, is [kv.ErrNotFound]. An error of update's ends it and is in the chain of the
// one returned.
//
// update may keep and change its argument, and holds up no connection however
// long it takes. It is called once, or not at all.
//
// The item's flags stay, and so does what it has left to live, exactly, however
// often it is swapped, also where an Expire changes it while update runs; [CASTTL]
// sets another. For that the server's clock is read (stats), in the exchange before
// the last one: what changes the life of a key that expires in the moment between
// the two is undone. Behind memcached's own proxy it cannot be read, and each swap
// may give or take a second. On a server or proxy without the meta protocol
// (memcached before 1.6.10, twemproxy), or one that did not answer when it was asked
// for that, the rest of the life cannot be read: there the swapped value does not
// expire unless CASTTL says so. A server without CAS numbers (memcached -C) gives
// [kv.ErrNotSupported].
//
// It ends with ctx, but does not interrupt update. Each of its exchanges with the
// server, two, or three or a few more for a key that expires, has write and read
// timeouts of its own. A swap that was cut off by ctx or by a failure may or may not
// have happened.
func (db *MemcachedDB) CompareAndSwap(ctx context.Context, key string, update func(current []byte) ([]byte, error), opts ...CASOption) (err error) {
	w := &swap{}
	w.call, err = db.call(ctx, "cas", key)
	defer w.end(&err)
	if err != nil {
		return err
	}
	for _, opt := range opts {
		opt(w)
	}
	if err := w.viaConn(w.read, nil); err != nil {
		return err
	}
	w.found(len(w.current.Value))
	err = errPanic
	value, err := update(w.current.Value)
	if err != nil {
		return &OpError{Op: w.op, Keys: []string{key}, Err: fmt.Errorf("update: %w", err)}
	}
	w.current.Value = value
	if w.pick(w.key) != w.node {
		// Its CAS number is one of the server that the key was read from.
		return &OpError{Op: w.op, Keys: []string{key}, Err: fmt.Errorf("%w: the list of servers has changed, and the key's server with it", kv.ErrConflict)}
	}
	if err := w.viaConn(w.write, nil); err != nil {
		return err
	}
	w.stored(len(value))
	return nil
}

func (w *swap) read(c *pool.Conn) (err error) {
	w.current, err = pipeline.Fetch(c, w.key)
	switch {
	case err != nil:
		return err
	case w.current == nil:
		return kv.ErrNotFound
	}
	return checkCAS(w.current.CAS)
}

func (w *swap) write(c *pool.Conn) error {
	began := time.Now()
	expires, due, subsecond, err := w.expiration(c)
	if err != nil {
		return err
	}
	set := pipeline.Set{
		Item:       pipeline.Item{Key: w.key, Value: w.current.Value},
		Flags:      w.current.Flags,
		Expiration: expires,
		CAS:        w.current.CAS,
	}
	left := int64(-1)
	var result pipeline.SetResult
	if subsecond {
		// Only a meta set tells the CAS number that the removal needs.
		err = pipeline.SetAll(c, []pipeline.Set{set}, func(_ int, r pipeline.SetResult) { result = r })
	} else {
		left, result, err = pipeline.Swap(c, set)
	}
	if err != nil {
		return err
	}
	switch result.Status {
	case pipeline.StatusExists:
		return kv.ErrConflict
	case pipeline.StatusNotFound, pipeline.StatusNotStored:
		return kv.ErrNotFound
	case pipeline.StatusRefused:
		return result.Err
	}
	switch {
	case subsecond:
		w.node.remover.Add(began, due, pipeline.KeyCAS{Key: w.key, CAS: result.CAS})
	case left > 0 && expires.Classic == 0 && w.ttl == nil:
		// The key has been given a life since it was read, which the swap has just
		// undone.
		_, _, err = pipeline.Touch(c, w.key, seconds(time.Duration(left)*time.Second))
	}
	return err
}

// expiration returns that of the value to store, and when the driver is to remove
// it where the life is subsecond.
func (w *swap) expiration(c *pool.Conn) (expires pipeline.Expiration, due time.Time, subsecond bool, err error) {
	if w.ttl != nil {
		if w.session.isSubsecond(*w.ttl) {
			return subsecondExpiration, time.Now().Add(*w.ttl), true, nil
		}
		return seconds(*w.ttl), due, false, nil
	}
	left := w.current.TTL
	due, subsecond = w.node.remover.Due(w.key, w.current.CAS)
	if subsecond {
		// The number may be another value's since the server was restarted, or the
		// life another one since the key was read.
		switch now, err := pipeline.TTL(c, w.key); {
		case err == pipeline.ErrNoMeta:
		case err != nil:
			return expires, due, false, err
		case 0 <= now && now <= backstop:
			return subsecondExpiration, due, true, nil
		default:
			left = now
		}
	}
	if left >= 0 {
		expires, err = keepExpiration(c, w.key, left)
	}
	return expires, due, false, err
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
// It had left seconds to live when it was read, and is asked for that again, as it
// may have been given another life since.
//
// Writing back the seconds that were read would not do: where the server's clock
// ticks between the read and the write the key gains a second, so that one that
// is swapped without pause would never expire. The time is therefore written as a
// Unix time by the server's own clock, which is the same however often it is read
// and written.
func keepExpiration(c *pool.Conn, key string, left int64) (pipeline.Expiration, error) {
	at, now, err := pipeline.ExpiresAt(c, key)
	switch {
	case err == pipeline.ErrNoMeta:
	case err != nil && err != pipeline.ErrNoClock:
		return pipeline.Expiration{}, err
	case now == 0:
		return pipeline.Expiration{}, kv.ErrNotFound
	case now < 0:
		return pipeline.Expiration{}, nil // the swap will tell whether the value has changed, too
	case err == nil && at <= math.MaxInt32:
		return pipeline.Expiration{Meta: int32(at), Classic: int32(at)}, nil
	default:
		left = now
	}
	return seconds(time.Duration(left) * time.Second), nil
}
