package memcacheddriver

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// MemcachedDB is a [driver.Driver] for one or more Memcached servers. It is made
// by [New], and safe for concurrent use.
type MemcachedDB struct {
	opening sync.Mutex // one Open or Close at a time
	session atomic.Pointer[session]
}

// session is what a MemcachedDB has between Open and Close.
type session struct {
	pool     *pool.Pool
	removers []*remover // by Server.Index
	ttlQuery bool
}

// New returns a driver that is not open yet.
func New() *MemcachedDB { return &MemcachedDB{} }

// Open readies the driver for the servers of dsn. It dials nothing and looks up
// no name, so a service starts while a cache node is down; [MemcachedDB.Ping] is
// the check. ctx is not used.
//
// The DSN is a comma-separated list of servers, with parameters at its end if
// wanted; the package documentation has its grammar. Keys are spread over the
// servers as plain gomemcache clients with the same list do.
//
// It returns [ErrInvalidDSN], [ErrInvalidOption] or [ErrAlreadyOpen].
func (db *MemcachedDB) Open(ctx context.Context, dsn string, opts ...driver.Option) error {
	db.opening.Lock()
	defer db.opening.Unlock()
	if db.session.Load() != nil {
		return &OpError{Op: "open", Err: ErrAlreadyOpen}
	}
	s, err := newSession(dsn, opts)
	if err != nil {
		return &OpError{Op: "open", Err: err}
	}
	db.session.Store(s)
	return nil
}

func newSession(dsn string, opts []driver.Option) (*session, error) {
	c := defaultConfig()
	addrs, err := parseDSN(dsn, &c)
	if err != nil {
		return nil, err
	}
	o := collect(opts)
	if len(settingsOf(o).store) > 0 {
		return nil, fmt.Errorf("%w: WithStoreOptions is for OpenStore; give the options to kv.Open", ErrInvalidOption)
	}
	if err := c.applyOptions(o); err != nil {
		return nil, err
	}
	infof, warnf := func(string, ...any) {}, func(string, ...any) {}
	if o.Logger != nil {
		infof, warnf = o.Logger.Infof, o.Logger.Warnf
	}
	if c.user != "" && c.tls == nil {
		for _, a := range addrs {
			if !isLocal(a) {
				warnf("memcacheddriver: the credentials for server %s cross the network in the clear; use TLS", a)
			}
		}
	}
	p := pool.New(pool.Config{
		Addrs:        addrs,
		DialTimeout:  c.dialTimeout,
		WriteTimeout: c.writeTimeout,
		ReadTimeout:  c.readTimeout,
		MaxIdle:      c.maxIdleConns,
		MaxIdleTime:  c.connMaxIdleTime,
		FailureLimit: c.failureLimit,
		RetryAfter:   c.retryTimeout,
		TLS:          c.tls,
		User:         c.user,
		Password:     c.password,
		Infof:        infof,
		Warnf:        warnf,
	})
	return &session{pool: p, removers: newRemovers(p), ttlQuery: c.ttlQuery}, nil
}

// isLocal reports whether a is this machine by its name.
func isLocal(a pool.Addr) bool {
	host, _, err := net.SplitHostPort(a.Address)
	if a.Net == "unix" || err != nil || host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Close closes all connections. Calls in flight are cut and give [ErrNotOpen],
// as do all later ones. Closing twice, or what was never open, is no error.
func (db *MemcachedDB) Close() error {
	db.opening.Lock()
	defer db.opening.Unlock()
	if s := db.session.Swap(nil); s != nil {
		for _, r := range s.removers {
			r.stop()
		}
		s.pool.Close()
		for _, r := range s.removers {
			r.done.Wait()
		}
	}
	return nil
}

// use returns the session of an open driver.
func (db *MemcachedDB) use(op string) (*session, error) {
	s := db.session.Load()
	if s == nil {
		return nil, &OpError{Op: op, Err: ErrNotOpen}
	}
	return s, nil
}

// Do runs fn with a gomemcache client that is bound to ctx: when ctx ends, what
// fn waits for on the network fails at once with an error that is ctx's. It
// gives what the driver has no method for (Increment, Append, GetAndTouch, …)
// contexts, pooled connections and all else that the driver does.
//
// The client is for fn alone: it must not be kept after fn has returned. fn may
// use it from several goroutines, as long as they end before it does. Do
// returns fn's error as it is, or an error that is ctx's or [ErrNotOpen] without
// having called fn. A write that was cut off may or may not have happened.
func (db *MemcachedDB) Do(ctx context.Context, fn func(*memcache.Client) error) error {
	s, err := db.use("do")
	if err != nil {
		return err
	}
	called := false
	err = s.pool.Do(ctx, func(l *pool.Lane) error {
		called = true
		return fn(l.Client)
	})
	if err != nil && !called {
		return opError("do", "", err)
	}
	return err
}

// single does a single-key call on a lane. gomemcache's answers that are no
// failures come back as they are, everything else as an [OpError].
func (db *MemcachedDB) single(ctx context.Context, op, key string, call func(*memcache.Client) error) error {
	if err := checkKeys(op, key); err != nil {
		return err
	}
	s, err := db.use(op)
	if err != nil {
		return err
	}
	err = s.pool.Do(ctx, func(l *pool.Lane) error {
		err := call(l.Client)
		if err == ErrProtocol {
			l.Spoil()
		}
		return err
	})
	switch err {
	case nil, memcache.ErrCacheMiss, memcache.ErrNotStored, memcache.ErrCASConflict:
		return err
	}
	return s.failure(op, key, err)
}

// onServer runs fn on a connection to key's server, for what gomemcache cannot
// do. A miss and errClassic come back as they are, every other error as an
// [OpError].
func (db *MemcachedDB) onServer(ctx context.Context, op, key string, fn func(*session, *pool.Conn) error) error {
	if err := checkKeys(op, key); err != nil {
		return err
	}
	s, err := db.use(op)
	if err != nil {
		return err
	}
	server := s.pool.Pick(key)
	err = s.pool.Do(ctx, func(l *pool.Lane) error { return fn(s, l.Conn(server)) })
	switch err {
	case nil, kv.ErrNotFound, errClassic:
		return err
	}
	return opError(op, server.String(), err, key)
}

// failure makes an [OpError] of an error of gomemcache's or of the pool's.
func (s *session) failure(op, key string, err error) error {
	if strings.HasPrefix(err.Error(), "memcache: ") {
		err = replyError(err)
	}
	return opError(op, s.pool.Pick(key).String(), err, key)
}

// Get returns the value of key, which is the caller's to keep and change. A key
// that is not there is [kv.ErrNotFound] itself. A value of no bytes is not nil.
// Get ends with ctx, at the latest after the dial, write and read timeouts. A
// value whose TTL under a second is over, by this driver's reckoning, is a miss.
func (db *MemcachedDB) Get(ctx context.Context, key string) ([]byte, error) {
	var item *memcache.Item
	err := db.single(ctx, "get", key, func(c *memcache.Client) (err error) {
		item, err = get(c, key)
		return err
	})
	if err == memcache.ErrCacheMiss {
		return nil, kv.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	if s := db.session.Load(); s != nil && s.removerOf(s.pool.Pick(key)).expired(key, item.CasID) {
		return nil, kv.ErrNotFound
	}
	return item.Value, nil
}

// get is gomemcache's, which does not look whether it is key's value that came.
func get(c *memcache.Client, key string) (*memcache.Item, error) {
	item, err := c.Get(key)
	if err == nil && item.Key != key {
		return nil, ErrProtocol
	}
	return item, err
}

// Set stores value under key. A ttl of 0 is no expiry, and a negative one has
// expired already, so that the key is gone. memcached counts whole seconds by a
// clock of its own: a ttl that is not whole is rounded up, and the value ends up
// to a second before that; one of 1 s may end at once. A ttl of more than 30 days
// is sent as a date, by this machine's clock.
//
// A ttl under a second is exact to a few milliseconds where the server speaks
// the meta protocol (memcached 1.6.10): the driver removes the value itself when
// its time is over, unless it has been replaced. If the driver is closed before,
// cannot reach the server, or the server has no CAS numbers (memcached -C), the
// server does so after at most 2 s. A longer life that another client gives it by
// touch does not count. Elsewhere it is rounded up to a second.
//
// value is the caller's again when Set returns. A Set that was cut off by ctx or
// by a failure may or may not have happened.
func (db *MemcachedDB) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	_, err := db.store(ctx, "set", key, value, ttl, pipeline.ModeSet)
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

func (db *MemcachedDB) store(ctx context.Context, op, key string, value []byte, ttl time.Duration, mode pipeline.Mode) (bool, error) {
	if isSubsecond(ttl) {
		if stored, err := db.storeSubsecond(ctx, op, key, value, ttl, mode); err != errClassic {
			return stored, err
		}
	}
	err := db.single(ctx, op, key, func(c *memcache.Client) error {
		item := &memcache.Item{Key: key, Value: value, Expiration: expiration(ttl, time.Now())}
		switch mode {
		case pipeline.ModeAdd:
			return c.Add(item)
		case pipeline.ModeReplace:
			return c.Replace(item)
		}
		return isStored(c.Set(item))
	})
	if err == memcache.ErrNotStored {
		return false, nil
	}
	return err == nil, err
}

// isStored refuses the answers that a set does not have: what a broken proxy did
// not store must not pass for stored.
func isStored(err error) error {
	switch err {
	case memcache.ErrNotStored, memcache.ErrCASConflict, memcache.ErrCacheMiss:
		return ErrProtocol
	}
	return err
}

func (db *MemcachedDB) delete(ctx context.Context, key string) (int64, error) {
	switch err := db.single(ctx, "delete", key, func(c *memcache.Client) error { return c.Delete(key) }); err {
	case nil:
		return 1, nil
	case memcache.ErrCacheMiss:
		return 0, nil
	default:
		return 0, err
	}
}

// Client returns a gomemcache client for all that the driver has no method for.
// It uses the driver's connections, timeouts, TLS, authentication and health,
// but knows no context: where one matters use [MemcachedDB.Do]. It is safe for
// concurrent use and works until Close. Its Timeout and MaxIdleConns have no
// effect; the driver's options have. Its errors are gomemcache's: a miss is
// [memcache.ErrCacheMiss]. A client
// from before Open fails with [ErrNotOpen] for ever: ask again after Open.
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

// Ping asks every server for its version, all at once, and returns an error
// that names each one that did not answer. It counts for and against a server's
// health as any call does, and ends with ctx.
func (db *MemcachedDB) Ping(ctx context.Context) error {
	s, err := db.use("ping")
	if err != nil {
		return err
	}
	groups := make([]*group, len(s.pool.Servers))
	for i, server := range s.pool.Servers {
		groups[i] = &group{server: server}
	}
	return s.each(ctx, "ping", groups, func(c *pool.Conn, g *group) {
		if _, err := pipeline.Version(c); err != nil {
			g.fail("ping", nil, err)
		}
	})
}
