package memcacheddriver

import (
	"sync"
	"sync/atomic"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/discovery"
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
		Dialing:      s.dialing(),
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
