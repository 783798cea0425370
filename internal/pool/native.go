package pool

import (
	"context"
	"net"

	"github.com/bradfitz/gomemcache/memcache"
)

// newNative makes the client of Native. No lane says when its calls end: its
// connections give their socket back when a reply is complete.
func (p *Pool) newNative() *memcache.Client {
	c := memcache.NewFromSelector((*selector)(p))
	c.MaxIdleConns = p.cfg.MaxIdle
	// gomemcache's own timeout has no effect, as ours are set below it; but it is
	// what a reader of the client sees.
	c.Timeout = p.cfg.ReadTimeout
	c.DialContext = func(_ context.Context, _, address string) (net.Conn, error) {
		return &Conn{server: p.server(address), follows: p, eager: true}, nil
	}
	return c
}
