package memcacheddriver

import (
	"context"
	"slices"
	"sync"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// group is what a batch asks of one server, and what went wrong there.
type group struct {
	operation
	op      string
	session *session
	node    *node
	keys    []string // as they are on the server
	indexes []int    // of keys in the batch; nil where they are all of it
	errs    []error
}

// index returns that of key i of the group in the batch.
func (g *group) index(i int) int {
	if g.indexes == nil {
		return i
	}
	return g.indexes[i]
}

// fail records that keys were not served.
func (g *group) fail(keys []string, err error) {
	keys = slices.Clone(g.session.callerKeys(keys)) // they may be the slice of the call
	g.errs = append(g.errs, opError(g.op, g.node.server, err, keys...))
}

// refuse records that the server refused keys; those with the same reason are
// one error.
func (g *group) refuse(err error, keys ...string) {
	refusal := opError(g.op, g.node.server, err, g.session.callerKeys(keys)...).(*OpError)
	for _, e := range g.errs {
		if e := e.(*OpError); e.Err.Error() == refusal.Err.Error() {
			e.Keys = append(e.Keys, refusal.Keys...)
			return
		}
	}
	g.errs = append(g.errs, refusal)
}

// split groups keys by their servers.
func (s *session) split(op string, keys []string) []*group {
	nodes := s.nodes.Load()
	if len(nodes.all) == 1 {
		return []*group{{op: op, session: s, node: nodes.all[0], keys: keys}}
	}
	byServer := make([]*group, len(nodes.all))
	for i, key := range keys {
		at := nodes.list.Pick(key)
		g := byServer[at]
		if g == nil {
			g = &group{op: op, session: s, node: nodes.all[at]}
			byServer[at] = g
		}
		g.keys = append(g.keys, key)
		g.indexes = append(g.indexes, i)
	}
	return slices.DeleteFunc(byServer, func(g *group) bool { return g == nil })
}

// each runs fn for all groups at the same time, on one lane, and joins what went
// wrong.
func (s *session) each(ctx context.Context, groups []*group, fn func(*pool.Conn, *group)) error {
	err := s.pool.Do(ctx, func(l *pool.Lane) error {
		run := func(c *pool.Conn, g *group) {
			keys := g.keys
			if s.cfg.tracedKeys {
				keys = s.callerKeys(keys)
			}
			g.operation = s.begin(ctx, g.op, g.node.server.Address, true, keys...)
			if err := s.removeOver(ctx, g.node, g.keys...); err != nil {
				g.fail(g.keys, err)
			} else {
				fn(c, g)
				c.Release()
			}
			g.end(g.node, joinErrors(g.errs))
		}
		var others sync.WaitGroup
		for _, g := range groups[1:] {
			c := l.Conn(g.node.server)
			others.Go(func() { run(c, g) })
		}
		run(l.Conn(groups[0].node.server), groups[0])
		others.Wait()
		return nil
	})
	if err != nil {
		var keys []string
		for _, g := range groups {
			keys = append(keys, s.callerKeys(g.keys)...)
		}
		return &OpError{Op: groups[0].op, Keys: keys, Err: err}
	}
	var errs []error
	for _, g := range groups {
		errs = append(errs, g.errs...)
	}
	return joinErrors(errs)
}
