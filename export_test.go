package memcacheddriver

import (
	"net"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/link"
)

// WithResolver makes discovery by SRV ask r.
func WithResolver(r *net.Resolver) driver.Option {
	return setting(func(c *config) error {
		c.resolver = r
		return nil
	})
}

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

// Fetchers returns how many wait for what Fetch is loading for a key.
func Fetchers(store *kv.Store, key string) int {
	fs := &Unwrap(store).fetches
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.byKey[key]; f != nil {
		return f.waiting
	}
	return 0
}
