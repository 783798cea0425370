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
func (db *MemcachedDB) TTL(ctx context.Context, key string) (time.Duration, error) {
	s, err := db.use("ttl", key)
	if err != nil {
		return 0, err
	}
	if !s.ttlQuery {
		return 0, &OpError{Op: "ttl", Keys: []string{key}, Err: fmt.Errorf("%w: open the driver with WithTTLQuery", kv.ErrNotSupported)}
	}
	var seconds int64
	err = s.viaConn(ctx, "ttl", key, func(c *pool.Conn) error {
		seconds, err = pipeline.TTL(c, key)
		switch {
		case err == pipeline.ErrNoMeta:
			return fmt.Errorf("%w: %w", kv.ErrNotSupported, err)
		case err == nil && seconds == 0:
			return kv.ErrNotFound
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	if seconds < 0 {
		return NoExpiry, nil
	}
	return time.Duration(seconds) * time.Second, nil
}

// Expire gives key a new ttl, kept as by [MemcachedDB.Set]: 0 is no expiry, a
// negative one removes it, one under a second is exact. A key that is not there is
// [kv.ErrNotFound] itself. An Expire that was cut off by ctx or by a failure may or
// may not have happened.
func (db *MemcachedDB) Expire(ctx context.Context, key string, ttl time.Duration) error {
	s, err := db.use("expire", key)
	if err != nil {
		return err
	}
	if isSubsecond(ttl) {
		return s.expireSubsecond(ctx, key, ttl)
	}
	s.removerOf(key).Forget(key)
	err = s.viaClient(ctx, "expire", key, memcache.ErrCacheMiss, func(c *memcache.Client) error {
		return c.Touch(key, expiration(ttl, time.Now()))
	})
	if err == memcache.ErrCacheMiss {
		return kv.ErrNotFound
	}
	return err
}
