package memcacheddriver

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/discovery"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/link"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// aloneCalls is up to how many single-key calls on a server go alone, each on a socket
// of its own; those above share links, of which a server has sharedLinks.
const (
	aloneCalls  = 8
	sharedLinks = 2
)

// session is what a MemcachedDB has between Open and Close.
type session struct {
	cfg   config
	pool  *pool.Pool
	nodes atomic.Pointer[nodes]

	watcher *discovery.Watcher // nil where the servers are the DSN's

	changing sync.Mutex             // one change of nodes at a time
	known    map[*pool.Server]*node // those in nodes, and those that left not long ago

	infof, warnf func(format string, args ...any)

	toldOfUnit atomic.Bool // by isSubsecond
}

func newSession(c config) *session {
	infof, warnf := func(string, ...any) {}, func(string, ...any) {}
	if c.logger != nil {
		q := &logQueue{warnf: c.logger.Warnf}
		infof, warnf = q.lineUp(c.logger.Infof), q.lineUp(c.logger.Warnf)
	}
	s := &session{cfg: c, infof: infof, warnf: warnf, known: make(map[*pool.Server]*node)}
	s.nodes.Store(new(nodes))
	s.pool = pool.New(pool.Config{
		Servers:      c.servers,
		Ketama:       c.distribution == Ketama,
		Await:        s.awaitServers,
		DialTimeout:  c.dialTimeout,
		WriteTimeout: c.writeTimeout,
		ReadTimeout:  c.readTimeout,
		MaxOpen:      c.maxOpenConns,
		MaxIdle:      min(c.maxIdleConns, c.maxOpenConns),
		MaxIdleTime:  c.connMaxIdleTime,
		FailureLimit: c.failureLimit,
		RetryAfter:   c.retryTimeout,
		TLS:          c.tls,
		User:         c.user,
		Password:     c.password,
		Infof:        infof,
		Warnf:        warnf,
	})
	if c.discovery != "" {
		s.watcher = s.newWatcher()
	}
	s.follow(s.pool.List())
	return s
}

func (s *session) close() {
	if s.watcher != nil {
		s.watcher.Close()
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	for _, n := range s.known {
		n.remover.Stop()
	}
	s.pool.Close()
	for _, n := range s.known {
		n.links.Close()
		n.remover.Wait()
	}
}

// viaClient does a single-key call by gomemcache, or by shared where many are under way
// and it is not nil. no is the error that is the server's no to this call, nil where it
// has none: it comes back as it is, every other as an [OpError], as gomemcache has errors
// for what another command is answered too. A call that has no no does not care for what
// is over.
func (s *session) viaClient(ctx context.Context, op string, n *node, key string, no error, call func(*memcache.Client) error, shared func(*link.Links) error) error {
	err := s.single(ctx, n, key, no != nil, func(l *pool.Lane) error {
		err := call(l.Client(n.server))
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
	return opError(op, n.server, err, key)
}

// viaConn does a single-key call on a connection to its server, for what gomemcache
// cannot do, or by shared where many are under way and it is not nil. A miss comes back
// as it is, every other error as an [OpError].
func (s *session) viaConn(ctx context.Context, op string, n *node, key string, call func(*pool.Conn) error, shared func(*link.Links) error) error {
	err := s.single(ctx, n, key, true, func(l *pool.Lane) error { return call(l.Conn(n.server)) }, shared)
	if err == nil || err == kv.ErrNotFound {
		return err
	}
	return opError(op, n.server, err, key)
}

// single does a single-key call, alone or shared. Where it cares it first removes a value
// that is over.
func (s *session) single(ctx context.Context, n *node, key string, cares bool, alone func(*pool.Lane) error, shared func(*link.Links) error) error {
	defer n.links.End()
	share := n.links.Begin(key) && shared != nil
	if cares {
		if err := s.removeOver(ctx, n, key); err != nil {
			return err
		}
	}
	if share {
		return shared(n.links)
	}
	return s.pool.Do(ctx, alone)
}
