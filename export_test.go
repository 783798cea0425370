package memcacheddriver

import "github.com/xraph/grove/kv/drivers/memcacheddriver/internal/link"

// ShareAll makes an open driver that no call uses share links for every single-key call
// that can, or for none.
func ShareAll(db *MemcachedDB, share bool) {
	alone := 1 << 30
	if share {
		alone = 0
	}
	s := db.session.Load()
	for i, server := range s.pool.Servers {
		s.links[i] = link.New(server, sharedLinks, alone)
	}
}
