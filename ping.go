package memcacheddriver

import (
	"context"
	"math"
	"sync/atomic"
	"time"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// pingGrace is how long a Ping that needs no more than one answer waits for the others:
// to end them at once would cost their connections.
const pingGrace = 100 * time.Millisecond

// Ping asks every server for its version, all at once, and returns an error
// that names each one that did not answer; with [PingAny] none as soon as one has and the
// others have had a tenth of a second more. It counts for and against a server's
// health as any call does, and ends with ctx. With [WithDiscovery], the first one also
// looks the servers up.
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
	ctx, cancel := context.WithCancel(o.ctx)
	defer cancel()
	enough := time.AfterFunc(math.MaxInt64, cancel)
	defer enough.Stop()
	nodes := s.nodes.Load().all
	groups := make([]*group, len(nodes))
	for i, n := range nodes {
		groups[i] = &group{op: "ping", session: s, node: n}
	}
	var answered atomic.Bool
	err = s.each(ctx, groups, func(c *pool.Conn, g *group) {
		if _, err := pipeline.Version(c); err != nil {
			g.fail(nil, err)
		} else if s.cfg.pingPolicy == PingAny && answered.CompareAndSwap(false, true) {
			enough.Reset(pingGrace)
		}
	})
	if answered.Load() {
		return nil
	}
	return err
}
