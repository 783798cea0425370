package memcacheddriver

import (
	"context"
	"strings"
	"sync/atomic"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/link"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/remover"
)

// aloneCalls is up to how many single-key calls on a server go alone, each on a socket
// of its own; those above share links, of which a server has sharedLinks.
const (
	aloneCalls  = 8
	sharedLinks = 2
)

// session is what a MemcachedDB has between Open and Close.
type session struct {
	pool     *pool.Pool
	links    []*link.Links      // by Server.Index
	removers []*remover.Remover // by Server.Index
	ttlQuery bool

	warnf      func(format string, args ...any)
	toldOfUnit atomic.Bool // by isSubsecond
}

func newSession(c config) *session {
	infof, warnf := func(string, ...any) {}, func(string, ...any) {}
	if c.logger != nil {
		q := &logQueue{warnf: c.logger.Warnf}
		infof, warnf = q.lineUp(c.logger.Infof), q.lineUp(c.logger.Warnf)
	}
	s := &session{
		pool: pool.New(pool.Config{
			Addrs:        c.addrs,
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
		}),
		ttlQuery: c.ttlQuery,
		warnf:    warnf,
	}
	shared := min(sharedLinks, c.maxOpenConns-1) // one is left for what does not share
	for _, server := range s.pool.Servers {
		s.links = append(s.links, link.New(server, shared, min(aloneCalls, c.maxOpenConns-shared)))
		s.removers = append(s.removers, remover.New(func(values []pipeline.KeyCAS) error {
			return s.pool.Do(context.Background(), func(l *pool.Lane) error {
				return removeSubsecond(l.Conn(server), values)
			})
		}))
	}
	return s
}

func (s *session) close() {
	for _, r := range s.removers {
		r.Stop()
	}
	s.pool.Close()
	for _, l := range s.links {
		l.Close()
	}
	for _, r := range s.removers {
		r.Wait()
	}
}

// viaClient does a single-key call by gomemcache, or by shared where many are under way
// and it is not nil. no is the error that is the server's no to this call, nil where it
// has none: it comes back as it is, every other as an [OpError], as gomemcache has errors
// for what another command is answered too. A call that has no no does not care for what
// is over.
func (s *session) viaClient(ctx context.Context, op string, server *pool.Server, key string, no error, call func(*memcache.Client) error, shared func(*link.Links) error) error {
	err := s.single(ctx, server, key, no != nil, func(l *pool.Lane) error {
		err := call(l.Client)
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
	return opError(op, server, err, key)
}

// viaConn does a single-key call on a connection to key's server, for what gomemcache
// cannot do, or by shared where many are under way and it is not nil. A miss comes back
// as it is, every other error as an [OpError].
func (s *session) viaConn(ctx context.Context, op, key string, call func(*pool.Conn) error, shared func(*link.Links) error) error {
	server := s.pool.Pick(key)
	err := s.single(ctx, server, key, true, func(l *pool.Lane) error { return call(l.Conn(server)) }, shared)
	if err == nil || err == kv.ErrNotFound {
		return err
	}
	return opError(op, server, err, key)
}

// single does a single-key call, alone or shared. Where it cares it first removes a value
// that is over.
func (s *session) single(ctx context.Context, server *pool.Server, key string, cares bool, alone func(*pool.Lane) error, shared func(*link.Links) error) error {
	links := s.links[server.Index]
	defer links.End()
	share := links.Begin(key) && shared != nil
	if cares {
		if err := s.removeOver(ctx, server, key); err != nil {
			return err
		}
	}
	if share {
		return shared(links)
	}
	return s.pool.Do(ctx, alone)
}
