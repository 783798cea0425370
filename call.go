package memcacheddriver

import (
	"context"
	"strings"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/link"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// call is one on a single key, under way.
type call struct {
	*session
	operation
	op   string
	key  string // as it is on the server
	node *node
}

// call begins one, which is to be ended also where there is an error.
func (db *MemcachedDB) call(ctx context.Context, op, key string) (c call, err error) {
	c, err = db.callUnready(ctx, op, key)
	if err == nil {
		err = c.ready()
	}
	return c, err
}

// callUnready is call for one that may need no server.
func (db *MemcachedDB) callUnready(ctx context.Context, op, key string) (c call, err error) {
	c.op = op
	if c.session, err = db.opened(op, key); err == nil {
		c.key = c.cfg.keyPrefix + key
		c.node = c.pick(c.key)
	}
	server := ""
	if c.node != nil {
		server = c.node.server.Address
	}
	c.operation = c.begin(ctx, op, server, false, key)
	return c, err
}

// ready waits until the call knows its server.
func (c *call) ready() error {
	if c.node != nil {
		return nil
	}
	err := c.session.ready(c.ctx, c.op, c.callerKey())
	if err == nil {
		c.node = c.pick(c.key)
	}
	return err
}

func (c *call) callerKey() string { return c.key[len(c.cfg.keyPrefix):] }

// end counts the call, and tells who traces it.
func (c *call) end(err *error) { c.operation.end(c.node, *err) }

// viaClient does the call by gomemcache, or by shared where many are under way and it is
// not nil. no is the error that is the server's no to this call, nil where it has none: it
// comes back as it is, every other as an [OpError], as gomemcache has errors for what
// another command is answered too. A call that has no no does not care for what is over.
func (c *call) viaClient(no error, alone func(*memcache.Client) error, shared func(*link.Links) error) error {
	err := c.do(no != nil, func(l *pool.Lane) error {
		err := alone(l.Client(c.node.server))
		if err != nil && err != no {
			l.Spoil()
		}
		return err
	}, shared)
	if err == nil || err == no {
		return err
	}
	if strings.HasPrefix(err.Error(), "memcache: ") {
		err = replyError(err)
	}
	return opError(c.op, c.node.server, err, c.callerKey())
}

// viaConn does the call on a connection to its server, for what gomemcache cannot do, or
// by shared where many are under way and it is not nil. A miss comes back as it is, every
// other error as an [OpError].
func (c *call) viaConn(alone func(*pool.Conn) error, shared func(*link.Links) error) error {
	err := c.do(true, func(l *pool.Lane) error { return alone(l.Conn(c.node.server)) }, shared)
	if err == nil || err == kv.ErrNotFound {
		return err
	}
	return opError(c.op, c.node.server, err, c.callerKey())
}

// do does the call, alone or shared. Where it cares it first removes a value that is
// over.
func (c *call) do(cares bool, alone func(*pool.Lane) error, shared func(*link.Links) error) error {
	defer c.node.links.End()
	share := c.node.links.Begin(c.key) && shared != nil
	if cares {
		if err := c.removeOver(c.ctx, c.node, c.key); err != nil {
			return err
		}
	}
	if share {
		return shared(c.node.links)
	}
	return c.pool.Do(c.ctx, alone)
}
