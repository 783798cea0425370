package memcacheddriver

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/link"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
)

// MemcachedDB is a [driver.Driver] for one or more Memcached servers. It is made
// by [New], and safe for concurrent use.
type MemcachedDB struct {
	opts    []driver.Option
	opening sync.Mutex // one Open or Close at a time
	fetches flights    // by keys
	session atomic.Pointer[session]
}

// New returns a driver that is not open yet. Each Open has opts, before its own: for
// drivers that are opened by their name and a DSN alone, which has no words for a
// [Tracer] or a TLS configuration:
//
//	kv.RegisterDriver("memcached", func() driver.Driver { return memcacheddriver.New(memcacheddriver.WithTracer(t)) })
func New(opts ...driver.Option) *MemcachedDB { return &MemcachedDB{opts: slices.Clone(opts)} }

// Open readies the driver for the servers of dsn. It dials nothing and looks up
// no name, so a service starts while a cache node is down; [MemcachedDB.Ping] is
// the check. ctx is not used.
//
// The DSN is a comma-separated list of servers, with parameters at its end if
// wanted; the package documentation has its grammar. Keys are spread over the
// servers as plain gomemcache clients with the same list do, unless [WithDistribution]
// says otherwise.
//
// It returns [ErrInvalidDSN], [ErrInvalidOption] or [ErrAlreadyOpen].
func (db *MemcachedDB) Open(ctx context.Context, dsn string, opts ...driver.Option) error {
	c, err := newConfig(dsn, append(slices.Clip(db.opts), opts...))
	if err == nil && len(c.store) > 0 {
		err = fmt.Errorf("%w: WithStoreOptions is for OpenStore; give the options to kv.Open", ErrInvalidOption)
	}
	if err == nil {
		err = db.open(c)
	}
	if err != nil {
		return &OpError{Op: "open", Err: err}
	}
	return nil
}

func newConfig(dsn string, opts []driver.Option) (c config, err error) {
	c = defaultConfig()
	servers, err := parseDSN(dsn, &c)
	if err == nil {
		err = c.apply(opts)
	}
	if err == nil {
		err = c.setServers(servers)
	}
	return c, err
}

func (db *MemcachedDB) open(c config) error {
	db.opening.Lock()
	defer db.opening.Unlock()
	if db.session.Load() != nil {
		return ErrAlreadyOpen
	}
	db.session.Store(newSession(c))
	return nil
}

// Close closes all connections. Calls in flight are cut and give [ErrNotOpen],
// as do all later ones. Closing twice, or what was never open, is no error.
func (db *MemcachedDB) Close() error {
	db.opening.Lock()
	defer db.opening.Unlock()
	if s := db.session.Swap(nil); s != nil {
		s.close()
	}
	return nil
}

// opened returns the session of an open driver, and an error where a call on keys cannot
// begin.
func (db *MemcachedDB) opened(op string, keys ...string) (*session, error) {
	s, prefix := db.session.Load(), ""
	if s != nil {
		prefix = s.cfg.keyPrefix
	}
	err := checkKeys(op, prefix, keys...)
	if err == nil && s == nil {
		err = &OpError{Op: op, Err: ErrNotOpen}
	}
	return s, err
}

// Do runs fn with a gomemcache client that is bound to ctx: when ctx ends, what
// fn waits for on the network fails at once with an error that is ctx's. It
// gives what the driver has no method for (Increment, Append, GetAndTouch, …)
// contexts, pooled connections and all else that the driver does.
//
// The client is for fn alone. fn may use it from several goroutines; they should end
// before it does. Once fn has returned, panicked or called [runtime.Goexit], the
// client refuses to be used, by an error that is [net.ErrClosed], and what a
// goroutine still waits for on the network is cut off with the same error: it counts
// against no server, and other calls do not notice.
//
// Do returns fn's error as it is, or an error that is ctx's, [ErrNotOpen], or that of a
// [WithDiscovery] that has found no servers yet, without having called fn. A write that was cut off may or may not have happened.
func (db *MemcachedDB) Do(ctx context.Context, fn func(*memcache.Client) error) (err error) {
	s, err := db.opened("do")
	o := s.begin(ctx, "do", "", false)
	defer func() { o.end(nil, err) }()
	if err == nil {
		err = s.ready(o.ctx, "do")
	}
	if err != nil {
		return err
	}
	called := false
	err = errPanic
	err = s.pool.Lend(o.ctx, func(c *memcache.Client) error {
		called = true
		return fn(c)
	})
	if err != nil && !called {
		return &OpError{Op: "do", Err: err}
	}
	return err
}

// Get returns the value of key, which is the caller's to keep and change. A key
// that is not there is [kv.ErrNotFound] itself. A value of no bytes is not nil.
// Get ends with ctx, at the latest after the dial, write and read timeouts, and once
// more the dial timeout where it had to wait for a connection; or twice that where it is
// sent again, as the server had closed its connection.
func (db *MemcachedDB) Get(ctx context.Context, key string) (value []byte, err error) {
	c, err := db.call(ctx, "get", key)
	defer c.end(&err)
	if err != nil {
		return nil, err
	}
	err = c.viaClient(memcache.ErrCacheMiss, func(client *memcache.Client) (err error) {
		value, err = get(client, c.key)
		return err
	}, func(l *link.Links) error {
		found := false
		value, found, err = l.Get(c.ctx, c.key)
		return orMiss(found, err)
	})
	switch err {
	case nil:
		c.node.links.Got(c.key, len(value))
		c.found(len(value))
		return value, nil
	case memcache.ErrCacheMiss:
		return nil, kv.ErrNotFound
	}
	return nil, err
}

// get is gomemcache's, which does not look whether it is key's value that came.
func get(c *memcache.Client, key string) ([]byte, error) {
	item, err := c.Get(key)
	switch {
	case err != nil:
		return nil, err
	case item.Key != key:
		return nil, ErrProtocol
	}
	return item.Value, nil
}

// orMiss makes gomemcache's miss of a key that a link did not find.
func orMiss(found bool, err error) error {
	if err == nil && !found {
		return memcache.ErrCacheMiss
	}
	return err
}

// Set stores value under key. A ttl of 0 is no expiry, and a negative one has
// expired already, so that the key is gone. memcached counts whole seconds by a
// clock of its own: a ttl that is not whole is rounded up, and the value ends up
// to a second before that; one of 1 s may end at once. A ttl of more than 30 days
// is sent as a date, by this machine's clock, and ends up to two seconds before; one
// that ends after January 2038, which no memcached knows, ends then, or after 30
// days if that is later.
//
// A ttl under a second is exact to a few milliseconds where the server speaks
// the meta protocol (memcached 1.6.10): the driver removes the value itself when
// its time is over, unless it has been replaced, or given another life by Expire, or
// one of more than 3 s by another client. None of the driver's calls sees it from
// then on, even where it could not be removed yet, unless an Expire of the key is just
// under way; Do, Client and other clients see it until it is. If the driver is closed before, or the
// server has no CAS numbers (memcached -C), the server ends it after at most 3 s.
// Elsewhere it is rounded up to a second.
//
// value is the caller's again when Set returns. A Set that was cut off by ctx or
// by a failure may or may not have happened.
func (db *MemcachedDB) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	_, err := db.store(ctx, "set", key, value, ttl, 0)
	return err
}

// SetNX stores value under key if key is not there, and reports whether it did;
// ttl and what a call that was cut off leaves behind are as for
// [MemcachedDB.Set].
func (db *MemcachedDB) SetNX(ctx context.Context, key string, value []byte, ttl time.Duration) (bool, error) {
	return db.store(ctx, "setnx", key, value, ttl, pipeline.ModeAdd)
}

// SetXX stores value under key if key is there, and reports whether it did; ttl
// and what a call that was cut off leaves behind are as for [MemcachedDB.Set].
func (db *MemcachedDB) SetXX(ctx context.Context, key string, value []byte, ttl time.Duration) (bool, error) {
	return db.store(ctx, "setxx", key, value, ttl, pipeline.ModeReplace)
}

func (db *MemcachedDB) store(ctx context.Context, op, key string, value []byte, ttl time.Duration, mode pipeline.Mode) (stored bool, err error) {
	c, err := db.call(ctx, op, key)
	defer c.end(&err)
	if err != nil {
		return false, err
	}
	if c.isSubsecond(ttl) {
		stored, err = c.storeSubsecond(value, ttl, mode)
	} else {
		stored, err = c.store(value, expiration(ttl, time.Now), mode)
	}
	if stored {
		c.stored(len(value))
	}
	return stored, err
}

func (c *call) store(value []byte, expires int32, mode pipeline.Mode) (stored bool, err error) {
	var no error
	if mode != 0 {
		no = memcache.ErrNotStored
	}
	shared := func(l *link.Links) error {
		r, err := l.Set(c.ctx, &pipeline.Set{Item: pipeline.Item{Key: c.key, Value: value}, Expiration: pipeline.Expiration{Meta: expires, Classic: expires}, Mode: mode}, false)
		if err == nil && r.Status != pipeline.StatusStored {
			return memcache.ErrNotStored
		}
		return err
	}
	if len(value) > link.MaxValue {
		shared = nil
	}
	err = c.viaClient(no, func(client *memcache.Client) error {
		item := &memcache.Item{Key: c.key, Value: value, Expiration: expires}
		switch mode {
		case pipeline.ModeAdd:
			return client.Add(item)
		case pipeline.ModeReplace:
			return client.Replace(item)
		}
		return client.Set(item)
	}, shared)
	if err == memcache.ErrNotStored {
		return false, nil
	}
	return err == nil, err
}

// Client returns a gomemcache client for all that the driver has no method for.
// It uses the driver's connections, timeouts, TLS, authentication and health,
// but knows no context: where one matters use [MemcachedDB.Do]. It is safe for
// concurrent use and works until Close. Its Timeout and MaxIdleConns have no
// effect; the driver's options have. Its errors are gomemcache's: a miss is
// [memcache.ErrCacheMiss]. A client from before Open fails with [ErrNotOpen] for
// ever: ask again after Open. With [WithDiscovery], calls that come before the servers are
// known wait for the look-up, at most the dial and the read timeout.
func (db *MemcachedDB) Client() *memcache.Client {
	s := db.session.Load()
	if s == nil {
		return memcache.NewFromSelector(notOpen{})
	}
	return s.pool.Native()
}

// notOpen is the selector of a client without a session.
type notOpen struct{}

func (notOpen) PickServer(string) (net.Addr, error) { return nil, ErrNotOpen }
func (notOpen) Each(func(net.Addr) error) error     { return ErrNotOpen }
