package memcacheddriver

import (
	"context"
	"fmt"
	"time"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/link"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// NoExpiry is what TTL returns for a key that does not expire.
const NoExpiry time.Duration = -1

// TTL returns how long key has left to live, in whole seconds as memcached
// counts them: the key is gone at most that much later. [NoExpiry], -1, is for
// ever, and an absent key is [kv.ErrNotFound] itself. Asking is no use of the
// key: it does not keep it from being evicted. For a ttl under a second it is that
// of the server's backstop, up to 3 s.
//
// It gives [kv.ErrNotSupported] unless the driver was opened with
// [WithTTLQuery], and on a server or proxy without the meta protocol (memcached
// before 1.6.10, twemproxy).
func (db *MemcachedDB) TTL(ctx context.Context, key string) (ttl time.Duration, err error) {
	c, err := db.callUnready(ctx, "ttl", key)
	defer c.end(&err)
	if err == nil && !c.cfg.ttlQuery {
		err = &OpError{Op: c.op, Keys: []string{key}, Err: fmt.Errorf("%w: open the driver with WithTTLQuery", kv.ErrNotSupported)}
	}
	if err == nil {
		err = c.ready()
	}
	if err != nil {
		return 0, err
	}
	var left int64
	err = c.viaConn(func(conn *pool.Conn) error {
		left, err = pipeline.TTL(conn, c.key)
		switch {
		case err == pipeline.ErrNoMeta:
			return fmt.Errorf("%w: %w", kv.ErrNotSupported, err)
		case err == nil && left == 0:
			return kv.ErrNotFound
		}
		return err
	}, nil)
	if err != nil {
		return 0, err
	}
	c.found(0)
	if left < 0 {
		return NoExpiry, nil
	}
	return time.Duration(left) * time.Second, nil
}

// Expire gives key a new ttl, kept as by [MemcachedDB.Set]: 0 is no expiry, a
// negative one removes it, one under a second is exact. A key that is not there is
// [kv.ErrNotFound] itself. An Expire that was cut off by ctx or by a failure may or
// may not have happened.
func (db *MemcachedDB) Expire(ctx context.Context, key string, ttl time.Duration) (err error) {
	c, err := db.call(ctx, "expire", key)
	defer c.end(&err)
	if err != nil {
		return err
	}
	expires := seconds(ttl)
	if c.isSubsecond(ttl) {
		expires = subsecondExpiration
	}
	n, began := c.node, time.Now()
	held := n.remover.Hold(c.key) // or a value of a shorter life would be removed after all
	touched := func(cas uint64, found bool, err error) error {
		switch {
		case err != nil:
			return err
		case !found:
			return kv.ErrNotFound
		case 0 < ttl && ttl <= backstop*time.Second: // also instead of a shorter life that is still to be remembered
			n.remover.Touch(began, time.Now().Add(ttl), pipeline.KeyCAS{Key: c.key, CAS: cas})
		}
		c.found(0)
		return nil
	}
	shared := func(l *link.Links) error { return touched(l.Touch(c.ctx, c.key, expires)) }
	if held.Over() != nil { // to be removed first, on the same connection
		shared = nil
	}
	err = c.viaConn(func(conn *pool.Conn) error {
		if err := removeSubsecond(conn, held.Over()); err != nil && err != pipeline.ErrNoMeta {
			return err
		}
		return touched(pipeline.Touch(conn, c.key, expires))
	}, shared)
	if err != nil && err != kv.ErrNotFound {
		n.remover.Release(held)
	}
	return err
}
