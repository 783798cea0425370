package memcacheddriver

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// MGet returns the values of keys in their order, nil for a miss. Servers are
// asked at the same time, each in one exchange. Where a server fails or ctx ends,
// it returns what has come together with the error, which has an [OpError] for
// each such server with the keys that are not known (a store's MGet then returns
// the error alone). Values of up to 256 bytes share memory, 1 KB at a time: clone
// one that is kept for long. No keys are no error.
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
		err := pipeline.Get(c, g.keys, func(i int, value []byte) { values[g.place(i)] = value })
		g.copyToTwins(values)
		if err != nil {
			g.fail("mget", g.without(values), err)
		}
	})
	return values, err
}

// copyToTwins gives a key that is named twice its value twice, also where the
// server sent it once.
func (g *group) copyToTwins(values [][]byte) {
	misses := 0
	for i := range g.keys {
		if values[g.place(i)] == nil {
			misses++
		}
	}
	if misses == 0 || misses == len(g.keys) {
		return
	}
	found := make(map[string][]byte, len(g.keys)-misses)
	for i, key := range g.keys {
		if value := values[g.place(i)]; value != nil {
			found[key] = value
		}
	}
	for i, key := range g.keys {
		if at := g.place(i); values[at] == nil && found[key] != nil {
			values[at] = append([]byte{}, found[key]...)
		}
	}
}

// without returns the keys that have no value.
func (g *group) without(values [][]byte) []string {
	var keys []string
	for i, key := range g.keys {
		if values[g.place(i)] == nil {
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
		// Small items in front, as SetQuietly wants them.
		items := make([]pipeline.Item, len(g.keys))
		front, back := 0, len(items)
		for _, key := range g.keys {
			it := pipeline.Item{Key: key, Value: pairs[key]}
			if it.Small() {
				items[front] = it
				front++
			} else {
				back--
				items[back] = it
			}
		}
		for i := range items {
			g.keys[i] = items[i].Key
		}
		answered, err := g.set(c, items, ttl)
		if err != nil {
			g.fail("mset", g.keys[answered:], err)
		}
	})
}

func (g *group) set(c *pool.Conn, items []pipeline.Item, ttl time.Duration) (answered int, err error) {
	refused := func(from, to int, err error) {
		for _, key := range g.keys[from:to] {
			g.refuse("mset", key, err)
		}
	}
	if isSubsecond(ttl) {
		outcomes, err := g.session.storeAllSubsecond(c, items, ttl, pipeline.ModeSet)
		for i, out := range outcomes {
			if out.Err != nil {
				refused(i, i+1, out.Err)
			}
		}
		if err != errClassic {
			return len(outcomes), err
		}
	}
	exp := expiration(ttl, time.Now())
	meta, err := pipeline.SpeaksMeta(c)
	if err != nil {
		return 0, err
	}
	if meta {
		return pipeline.SetQuietly(c, items, exp, refused)
	}
	return pipeline.Set(c, items, exp, refused)
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
		n, answered, err := pipeline.Delete(c, g.keys, func(i int, err error) { g.refuse("delete", g.keys[i], err) })
		deleted.Add(n)
		if err != nil {
			g.fail("delete", g.keys[answered:], err)
		}
	})
	return deleted.Load(), err
}

// Exists returns how many of keys are there; one that is named twice counts
// twice. No value is fetched from a server that speaks the meta protocol
// (memcached 1.6.10). Where a server fails or ctx ends, it returns the count of the
// others together with the error (a store's Exists the error alone).
func (db *MemcachedDB) Exists(ctx context.Context, keys ...string) (int64, error) {
	var count atomic.Int64
	err := db.batch(ctx, "exists", keys, func(c *pool.Conn, g *group) {
		n, err := g.exists(c)
		if err != nil {
			g.fail("exists", g.keys, err)
			return
		}
		count.Add(n)
	})
	return count.Load(), err
}

func (g *group) exists(c *pool.Conn) (n int64, err error) {
	meta, err := pipeline.SpeaksMeta(c)
	if err != nil {
		return 0, err
	}
	if meta {
		err = pipeline.Exists(c, g.keys, func(int) { n++ })
		return n, err
	}
	there := make(map[string]bool)
	err = pipeline.Count(c, g.keys, func(i int) { there[g.keys[i]] = true })
	for _, key := range g.keys {
		if there[key] {
			n++
		}
	}
	return n, err
}

// group is what a batch asks of one server, and what went wrong there.
type group struct {
	session *session
	server  *pool.Server
	keys    []string
	places  []int // of keys in the batch; nil where they are all of it
	errs    []error
}

// place returns where key i of the group stands in the batch.
func (g *group) place(i int) int {
	if g.places == nil {
		return i
	}
	return g.places[i]
}

// fail records that keys were not served.
func (g *group) fail(op string, keys []string, err error) {
	g.errs = append(g.errs, opError(op, g.server.String(), err, keys...))
}

// refuse records that the server refused a key; those with the same reason are
// one error.
func (g *group) refuse(op, key string, err error) {
	refusal := opError(op, g.server.String(), err, key).(*OpError)
	for _, e := range g.errs {
		if e := e.(*OpError); e.Err.Error() == refusal.Err.Error() {
			e.Keys = append(e.Keys, key)
			return
		}
	}
	g.errs = append(g.errs, refusal)
}

// batch checks all keys, groups them by their servers and runs fn for each
// group.
func (db *MemcachedDB) batch(ctx context.Context, op string, keys []string, fn func(*pool.Conn, *group)) error {
	if err := checkKeys(op, keys...); err != nil {
		return err
	}
	s, err := db.use(op)
	if err != nil || len(keys) == 0 {
		return err
	}
	return s.each(ctx, op, s.split(keys), fn)
}

// split groups keys by their servers.
func (s *session) split(keys []string) []*group {
	if len(s.pool.Servers) == 1 {
		return []*group{{session: s, server: s.pool.Servers[0], keys: keys}}
	}
	byServer := make([]*group, len(s.pool.Servers))
	for i, key := range keys {
		server := s.pool.Pick(key)
		g := byServer[server.Index]
		if g == nil {
			g = &group{session: s, server: server}
			byServer[server.Index] = g
		}
		g.keys = append(g.keys, key)
		g.places = append(g.places, i)
	}
	return slices.DeleteFunc(byServer, func(g *group) bool { return g == nil })
}

// each runs fn for all groups at the same time, on one lane, and joins what went
// wrong.
func (s *session) each(ctx context.Context, op string, groups []*group, fn func(*pool.Conn, *group)) error {
	err := s.pool.Do(ctx, func(l *pool.Lane) error {
		var others sync.WaitGroup
		for _, g := range groups[1:] {
			c := l.Conn(g.server)
			others.Go(func() { fn(c, g) })
		}
		fn(l.Conn(groups[0].server), groups[0])
		others.Wait()
		return nil
	})
	if err != nil {
		return opError(op, "", err)
	}
	var errs []error
	for _, g := range groups {
		errs = append(errs, g.errs...)
	}
	return joinErrors(errs)
}
