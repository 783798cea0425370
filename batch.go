package memcacheddriver

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/link"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// MGet returns the values of keys in their order, nil for a miss. Servers are
// asked at the same time, each in one exchange. Where a server fails or ctx ends,
// it returns what has come together with the error, which has an [OpError] for
// each such server with the keys that are not known (a store's MGet then returns
// the error alone). The values are the caller's to keep and change. No keys are no
// error.
func (db *MemcachedDB) MGet(ctx context.Context, keys []string) ([][]byte, error) {
	values := make([][]byte, len(keys))
	if len(keys) == 1 {
		value, err := db.Get(ctx, keys[0])
		if err == kv.ErrNotFound {
			err = nil
		}
		values[0] = value
		return values, err
	}
	err := db.batch(ctx, "mget", keys, func(c *pool.Conn, g *group) {
		err := pipeline.Get(c, g.keys, func(i int, value []byte) { values[g.index(i)] = value })
		g.fillDuplicates(values)
		for i := range g.keys {
			if value := values[g.index(i)]; value != nil {
				g.found(len(value))
			}
		}
		if err != nil {
			g.fail(g.without(values), err)
			return
		}
		g.misses = len(g.keys) - g.hits
	})
	return values, err
}

// fillDuplicates gives a key that is named twice its value twice, also where the
// server sent it once.
func (g *group) fillDuplicates(values [][]byte) {
	misses := 0
	for i := range g.keys {
		if values[g.index(i)] == nil {
			misses++
		}
	}
	if misses == 0 || misses == len(g.keys) {
		return
	}
	found := make(map[string][]byte, len(g.keys)-misses)
	for i, key := range g.keys {
		if value := values[g.index(i)]; value != nil {
			found[key] = value
		}
	}
	for i, key := range g.keys {
		if at := g.index(i); values[at] == nil && found[key] != nil {
			values[at] = append([]byte{}, found[key]...)
		}
	}
}

// without returns the keys that have no value.
func (g *group) without(values [][]byte) []string {
	var keys []string
	for i, key := range g.keys {
		if values[g.index(i)] == nil {
			keys = append(keys, key)
		}
	}
	return keys
}

// MSet stores pairs, all with the same ttl, which is as for [MemcachedDB.Set].
// It tries every server; the error has an [OpError] for each server that failed,
// with the keys that may or may not have been stored, and one for each kind of
// refusal: [ErrValueTooLarge] with the keys that were not stored, or, where a
// server has run out of memory, with those that it may not have stored. It ends
// with ctx.
func (db *MemcachedDB) MSet(ctx context.Context, pairs map[string][]byte, ttl time.Duration) error {
	if len(pairs) == 1 {
		for key, value := range pairs {
			return db.Set(ctx, key, value, ttl)
		}
	}
	keys := make([]string, 0, len(pairs))
	for key := range pairs {
		keys = append(keys, key)
	}
	return db.batch(ctx, "mset", keys, func(c *pool.Conn, g *group) {
		items := make([]pipeline.Item, len(g.keys))
		for i, key := range g.keys {
			items[i] = pipeline.Item{Key: key, Value: pairs[keys[g.index(i)]]}
		}
		if g.session.isSubsecond(ttl) {
			g.setSubsecond(c, items, ttl)
			return
		}
		var lost []string // some may be both refused and unanswered
		unanswered, err := pipeline.MSet(c, items, expiration(ttl, time.Now), func(items []pipeline.Item, err error) {
			refused := keysOf(items)
			lost = append(lost, refused...)
			g.refuse(err, refused...)
		})
		if err != nil {
			lost = append(lost, keysOf(unanswered)...)
			g.fail(keysOf(unanswered), err)
		}
		slices.Sort(lost)
		for _, it := range items {
			if _, found := slices.BinarySearch(lost, it.Key); !found {
				g.stored(len(it.Value))
			}
		}
	})
}

func (g *group) setSubsecond(c *pool.Conn, items []pipeline.Item, ttl time.Duration) {
	answered := 0
	err := g.node.storeAllSubsecond(c, items, ttl, 0, func(i int, r pipeline.SetResult) {
		answered++
		if r.Err != nil {
			g.refuse(r.Err, items[i].Key)
			return
		}
		g.stored(len(items[i].Value))
	})
	if err != nil {
		g.fail(keysOf(items[answered:]), err)
	}
}

func keysOf(items []pipeline.Item) []string {
	keys := make([]string, len(items))
	for i, it := range items {
		keys[i] = it.Key
	}
	return keys
}

// Delete removes keys and returns how many were there. It tries every server;
// the error has an [OpError] for each server that failed, with the keys that may
// or may not have been removed. It ends with ctx.
func (db *MemcachedDB) Delete(ctx context.Context, keys ...string) (int64, error) {
	if len(keys) == 1 {
		return db.delete(ctx, keys[0])
	}
	var deleted atomic.Int64
	err := db.batch(ctx, "delete", keys, func(c *pool.Conn, g *group) {
		n, answered, err := pipeline.Delete(c, g.keys, func(i int, err error) { g.refuse(err, g.keys[i]) })
		deleted.Add(n)
		if err != nil {
			g.fail(g.keys[answered:], err)
		}
	})
	return deleted.Load(), err
}

func (db *MemcachedDB) delete(ctx context.Context, key string) (n int64, err error) {
	c, err := db.call(ctx, "delete", key)
	defer c.end(&err)
	if err != nil {
		return 0, err
	}
	err = c.viaClient(memcache.ErrCacheMiss, func(client *memcache.Client) error {
		return client.Delete(c.key)
	}, func(l *link.Links) error {
		return orMiss(l.Delete(c.ctx, c.key))
	})
	switch err {
	case nil:
		return 1, nil
	case memcache.ErrCacheMiss:
		return 0, nil
	default:
		return 0, err
	}
}

// Exists returns how many of keys are there; one that is named twice counts
// twice. No value is fetched from a server that speaks the meta protocol
// (memcached 1.6.10). Where a server fails or ctx ends, it returns the count of the
// others together with the error (a store's Exists the error alone).
func (db *MemcachedDB) Exists(ctx context.Context, keys ...string) (int64, error) {
	if len(keys) == 1 {
		return db.exists(ctx, keys[0])
	}
	var count atomic.Int64
	err := db.batch(ctx, "exists", keys, func(c *pool.Conn, g *group) {
		n, err := pipeline.Exists(c, g.keys)
		if err != nil {
			g.fail(g.keys, err)
			return
		}
		g.hits, g.misses = int(n), len(g.keys)-int(n)
		count.Add(n)
	})
	return count.Load(), err
}

func (db *MemcachedDB) exists(ctx context.Context, key string) (n int64, err error) {
	c, err := db.call(ctx, "exists", key)
	defer c.end(&err)
	if err != nil {
		return 0, err
	}
	err = c.viaConn(func(conn *pool.Conn) error {
		n, err = pipeline.Exists(conn, []string{c.key})
		return err
	}, func(l *link.Links) error {
		found, err := l.Exists(c.ctx, c.key)
		if found {
			n = 1
		}
		return err
	})
	if err == nil {
		c.hits, c.misses = int(n), 1-int(n)
	}
	return n, err
}

// batch groups keys by their servers and runs fn for each group.
func (db *MemcachedDB) batch(ctx context.Context, op string, keys []string, fn func(*pool.Conn, *group)) (err error) {
	s, err := db.opened(op, keys...)
	if err == nil && len(keys) == 0 {
		return nil
	}
	o := s.begin(ctx, op, "", false, keys...)
	defer func() { o.end(nil, err) }()
	if err == nil {
		err = s.ready(o.ctx, op, keys...)
	}
	if err != nil {
		return err
	}
	groups := s.split(op, s.serverKeys(keys))
	err = s.each(o.ctx, groups, fn)
	for _, g := range groups {
		o.add(&g.operation)
	}
	return err
}
