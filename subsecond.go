package memcacheddriver

import (
	"context"
	"time"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/link"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// backstop is the server's TTL for a value with one under a second, which the
// driver removes itself: for the case that it is not there any more. It is 3, not
// 1: the server's clock may tick right after the write, and go on by 2 where its
// timer is late, which ends a TTL of 2 at once.
const backstop = 3

// isSubsecond reports whether the driver has to keep ttl itself. Every call with a
// TTL asks it, so here is where the log tells, once, of one whose unit was
// forgotten: kv.WithTTL(60) is 60 ns.
func (s *session) isSubsecond(ttl time.Duration) bool {
	if ttl <= 0 || ttl >= time.Second {
		return false
	}
	if ttl < time.Millisecond && s.toldOfUnit.CompareAndSwap(false, true) {
		s.warnf("memcacheddriver: a TTL of %v is under a millisecond: is its unit missing? Seconds are written 60*time.Second", ttl)
	}
	return true
}

// subsecondExpiration is rounded up where the server does not tell the CAS number
// that a removal needs.
var subsecondExpiration = pipeline.Expiration{Meta: backstop, Classic: 1}

// removeSubsecond removes those of values that their keys still have. On a connection
// on which the server was not asked what it speaks it fails with
// [pipeline.ErrNoMeta].
func removeSubsecond(c *pool.Conn, values []pipeline.KeyCAS) error {
	if len(values) == 0 {
		return nil
	}
	err := pipeline.DeleteCAS(c, values, backstop)
	if err == pipeline.ErrNoMeta && c.Asked() {
		return nil // the server is not the one any more that had them
	}
	return err
}

// removeOver removes from their server those of keys' values whose time is over,
// so that what a call does next does not see them.
func (s *session) removeOver(ctx context.Context, n *node, keys ...string) error {
	over := n.remover.Over(keys...)
	if len(over) == 0 {
		return nil
	}
	err := s.pool.Do(ctx, func(l *pool.Lane) error { return removeSubsecond(l.Conn(n.server), over) })
	switch err {
	case nil:
		n.remover.Removed(over)
	case pipeline.ErrNoMeta:
		return nil // as on a server without meta: they end with the server's own TTL
	}
	return err
}

// storeSubsecond stores one value and remembers to remove it.
func (c *call) storeSubsecond(value []byte, ttl time.Duration, mode pipeline.Mode) (stored bool, err error) {
	n, began := c.node, time.Now()
	shared := func(l *link.Links) error {
		r, err := l.Set(c.ctx, &pipeline.Set{Item: pipeline.Item{Key: c.key, Value: value}, Expiration: subsecondExpiration, Mode: mode}, true)
		if stored = err == nil && r.Status == pipeline.StatusStored; stored {
			n.removeLater(began, ttl, pipeline.KeyCAS{Key: c.key, CAS: r.CAS})
		}
		return err
	}
	if len(value) > link.MaxValue {
		shared = nil
	}
	err = c.viaConn(func(conn *pool.Conn) (refusal error) {
		err := n.storeAllSubsecond(conn, []pipeline.Item{{Key: c.key, Value: value}}, ttl, mode, func(_ int, r pipeline.SetResult) {
			stored, refusal = r.Status == pipeline.StatusStored, r.Err
		})
		if err != nil {
			return err
		}
		return refusal
	}, shared)
	return stored, err
}

// storeAllSubsecond stores items on their server and remembers to remove those
// that were stored.
func (n *node) storeAllSubsecond(c *pool.Conn, items []pipeline.Item, ttl time.Duration, mode pipeline.Mode, answered func(i int, r pipeline.SetResult)) error {
	sets := make([]pipeline.Set, len(items))
	for i, it := range items {
		sets[i] = pipeline.Set{Item: it, Expiration: subsecondExpiration, Mode: mode}
	}
	began := time.Now()
	return pipeline.SetAll(c, sets, func(i int, r pipeline.SetResult) {
		if r.Status == pipeline.StatusStored {
			n.removeLater(began, ttl, pipeline.KeyCAS{Key: items[i].Key, CAS: r.CAS})
		}
		answered(i, r)
	})
}

// removeLater remembers to remove what a write has stored that began at began.
func (n *node) removeLater(began time.Time, ttl time.Duration, v pipeline.KeyCAS) {
	n.remover.Add(began, time.Now().Add(ttl), v)
}
