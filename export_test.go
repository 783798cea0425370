package memcacheddriver

import "github.com/xraph/grove/kv/drivers/memcacheddriver/internal/link"

// ShareAll makes an open driver that no call uses share links for every single-key call
// that can, or for none.
func ShareAll(db *MemcachedDB, share bool) {
	alone := 1 << 30
	if share {
		alone = 0
	}
	for _, n := range db.session.Load().nodes.Load().all {
		n.links = link.New(n.server, sharedLinks, alone)
	}
}
