package memcacheddriver

import (
	"context"
	"slices"
	"sync"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// group is what a batch asks of one server, and what went wrong there.
type group struct {
	session *session
	node    *node
	keys    []string
	indexes []int // of keys in the batch; nil where they are all of it
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
func (g *group) fail(op string, keys []string, err error) {
	g.errs = append(g.errs, opError(op, g.node.server, err, keys...))
}

// refuse records that the server refused keys; those with the same reason are
// one error.
func (g *group) refuse(op string, err error, keys ...string) {
	refusal := opError(op, g.node.server, err, keys...).(*OpError)
	for _, e := range g.errs {
		if e := e.(*OpError); e.Err.Error() == refusal.Err.Error() {
			e.Keys = append(e.Keys, keys...)
			return
		}
	}
	g.errs = append(g.errs, refusal)
}

// split groups keys by their servers.
func (s *session) split(keys []string) []*group {
	nodes := s.nodes.Load()
	if len(nodes.all) == 1 {
		return []*group{{session: s, node: nodes.all[0], keys: keys}}
	}
	byServer := make([]*group, len(nodes.all))
	for i, key := range keys {
		at := nodes.list.Pick(key)
		g := byServer[at]
		if g == nil {
			g = &group{session: s, node: nodes.all[at]}
			byServer[at] = g
		}
		g.keys = append(g.keys, key)
		g.indexes = append(g.indexes, i)
	}
	return slices.DeleteFunc(byServer, func(g *group) bool { return g == nil })
}

// each runs fn for all groups at the same time, on one lane, and joins what went
// wrong.
func (s *session) each(ctx context.Context, op string, groups []*group, fn func(*pool.Conn, *group)) error {
	err := s.pool.Do(ctx, func(l *pool.Lane) error {
		run := func(c *pool.Conn, g *group) {
			if err := s.removeOver(ctx, g.node, g.keys...); err != nil {
				g.fail(op, g.keys, err)
				return
			}
			fn(c, g)
			c.Release()
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
			keys = append(keys, g.keys...)
		}
		return &OpError{Op: op, Keys: keys, Err: err}
	}
	var errs []error
	for _, g := range groups {
		errs = append(errs, g.errs...)
	}
	return joinErrors(errs)
}
