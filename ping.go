package memcacheddriver

import (
	"context"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// Ping asks every server for its version, all at once, and returns an error
// that names each one that did not answer. It counts for and against a server's
// health as any call does, and ends with ctx. With [WithDiscovery], the first one also
// looks the servers up.
func (db *MemcachedDB) Ping(ctx context.Context) error {
	s, err := db.use(ctx, "ping")
	if err != nil {
		return err
	}
	nodes := s.nodes.Load().all
	groups := make([]*group, len(nodes))
	for i, n := range nodes {
		groups[i] = &group{node: n}
	}
	return s.each(ctx, "ping", groups, func(c *pool.Conn, g *group) {
		if _, err := pipeline.Version(c); err != nil {
			g.fail("ping", nil, err)
		}
	})
}
