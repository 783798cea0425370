package memcacheddriver

import (
	"context"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// Ping asks every server for its version, all at once, and returns an error
// that names each one that did not answer; with [PingAny] none as soon as one has. It
// counts for and against a server's health as any call does, and ends with ctx. With
// [WithDiscovery], the first one also looks the servers up.
func (db *MemcachedDB) Ping(ctx context.Context) (err error) {
	s, err := db.opened("ping")
	o := s.begin(ctx, "ping", "", false)
	defer func() { o.end(nil, err) }()
	if err == nil {
		err = s.ready(o.ctx, "ping")
	}
	if err != nil {
		return err
	}
	nodes := s.nodes.Load().all
	groups := make([]*group, len(nodes))
	for i, n := range nodes {
		groups[i] = &group{op: "ping", session: s, node: n}
	}
	if s.cfg.pingPolicy == PingAny && len(groups) > 1 {
		return s.pingAny(o.ctx, groups)
	}
	return s.ping(o.ctx, groups...)
}

func (s *session) ping(ctx context.Context, groups ...*group) error {
	return s.each(ctx, groups, func(c *pool.Conn, g *group) {
		if _, err := pipeline.Version(c); err != nil {
			g.fail(nil, err)
		}
	})
}

// pingAny returns when one of groups has answered. It leaves the others to the driver's
// timeouts: to cut them would cost a server that is merely slower its connection.
func (s *session) pingAny(ctx context.Context, groups []*group) error {
	if ctx.Err() != nil {
		return s.ping(ctx, groups...)
	}
	answers := make(chan error, len(groups))
	for _, g := range groups {
		go func() { answers <- s.ping(context.WithoutCancel(ctx), g) }()
	}
	var errs []error
	for range groups {
		select {
		case err := <-answers:
			if err == nil {
				return nil
			}
			errs = append(errs, err)
		case <-ctx.Done():
			return joinErrors(append(errs, &OpError{Op: "ping", Err: pool.Ended(ctx)}))
		}
	}
	return joinErrors(errs)
}
