package memcacheddriver

import (
	"context"
	"time"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// backstop is the server's TTL for a value with one under a second, which the
// driver removes itself: for the case that it is not there any more. It is 3, not
// 1: the server's clock may tick right after the write, and go on by 2 where its
// timer is late, which ends a TTL of 2 at once.
const backstop = 3

// subsecondExpiration is rounded up where the server does not tell the CAS number
// that a removal needs.
var subsecondExpiration = pipeline.Expiration{Meta: backstop, Classic: 1}

// storeSubsecond stores one value and remembers to remove it.
func (s *session) storeSubsecond(ctx context.Context, op, key string, value []byte, ttl time.Duration, mode pipeline.Mode) (stored bool, err error) {
	err = s.viaConn(ctx, op, key, func(c *pool.Conn) (refusal error) {
		err := s.storeAllSubsecond(c, []pipeline.Item{{Key: key, Value: value}}, ttl, mode, func(_ int, r pipeline.SetResult) {
			stored, refusal = r.Status == pipeline.StatusStored, r.Err
		})
		if err != nil {
			return err
		}
		return refusal
	})
	return stored, err
}

// storeAllSubsecond stores items on their server and remembers to remove those
// that were stored.
func (s *session) storeAllSubsecond(c *pool.Conn, items []pipeline.Item, ttl time.Duration, mode pipeline.Mode, answered func(i int, r pipeline.SetResult)) error {
	sets := make([]pipeline.Set, len(items))
	for i, it := range items {
		sets[i] = pipeline.Set{Item: it, Expiration: subsecondExpiration, Mode: mode}
	}
	var stored []pipeline.KeyCAS
	err := pipeline.SetAll(c, sets, func(i int, r pipeline.SetResult) {
		if r.Status == pipeline.StatusStored {
			stored = append(stored, pipeline.KeyCAS{Key: items[i].Key, CAS: r.CAS})
		}
		answered(i, r)
	})
	s.removers[c.Server().Index].Add(time.Now().Add(ttl), stored...)
	return err
}

// expireSubsecond gives key a TTL under a second.
func (s *session) expireSubsecond(ctx context.Context, key string, ttl time.Duration) error {
	return s.viaConn(ctx, "expire", key, func(c *pool.Conn) error {
		cas, found, err := pipeline.Touch(c, key, subsecondExpiration)
		if err != nil {
			return err
		}
		if !found {
			return kv.ErrNotFound
		}
		s.removerOf(key).Add(time.Now().Add(ttl), pipeline.KeyCAS{Key: key, CAS: cas})
		return nil
	})
}
