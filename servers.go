package memcacheddriver

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/link"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/remover"
)

// node is a server with what the driver keeps for it.
type node struct {
	server  *pool.Server
	links   *link.Links
	remover *remover.Remover
}

// nodes are the servers that keys are spread over. They do not change.
type nodes struct {
	list *pool.List
	all  []*node // as in list
}

// pick returns the node that holds key, nil while no servers have been discovered.
func (s *session) pick(key string) *node {
	ns := s.nodes.Load()
	if len(ns.all) == 0 {
		return nil
	}
	return ns.all[ns.list.Pick(key)]
}

func (s *session) newNode(server *pool.Server) *node {
	shared := min(sharedLinks, s.cfg.maxOpenConns-1) // one is left for what does not share
	return &node{
		server: server,
		links:  link.New(server, shared, min(aloneCalls, s.cfg.maxOpenConns-shared)),
		remover: remover.New(func(values []pipeline.KeyCAS) error {
			return s.pool.Do(context.Background(), func(l *pool.Lane) error {
				return removeSubsecond(l.Conn(server), values)
			})
		}),
	}
}

// SetServers replaces the servers, which are written as in a DSN, without memcached://,
// credentials and parameters: those of Open stay. It dials nothing.
//
// Servers that stay keep their connections, health and counters. A server that leaves
// loses its idle connections at once, and those in use when their calls end. No call
// fails by the change: one that has picked its server ends there. The calls after it,
// those of Client and of a Do that is under way too, go to the new servers. Keys that
// move, as [WithDistribution] has it, are misses there; a server that comes back
// may still have old values of them, and is taken to be well. A
// [MemcachedDB.CompareAndSwap] whose key has moved since it was read is a
// [kv.ErrConflict].
//
// It returns [ErrInvalidDSN], [ErrNotOpen], or [ErrInvalidOption] where credentials would
// go to another machine without TLS, and [kv.ErrNotSupported] with [WithDiscovery];
// nothing has changed then.
func (db *MemcachedDB) SetServers(servers string) error {
	s := db.session.Load()
	err := ErrNotOpen
	if s != nil {
		err = s.setServers(servers)
	}
	if err != nil {
		return &OpError{Op: "setservers", Err: err}
	}
	return nil
}

func (s *session) setServers(servers string) error {
	if s.watcher != nil {
		return fmt.Errorf("%w: the servers are those that WithDiscovery finds", kv.ErrNotSupported)
	}
	if strings.ContainsAny(servers, "?@") || strings.HasPrefix(strings.ToLower(strings.TrimSpace(servers)), "memcached://") {
		return invalidDSN("SetServers takes the servers alone, without memcached://, parameters and credentials; those of Open stay")
	}
	entries, err := parseServers(servers)
	if err == nil {
		err = s.cfg.checkCredentials(entries)
	}
	if err != nil {
		return err
	}
	return s.replaceServers(entries)
}

func (s *session) replaceServers(entries []pool.Entry) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	list := s.pool.SetServers(entries)
	switch list {
	case nil:
		return ErrNotOpen
	case s.nodes.Load().list:
		return nil
	}
	came, left := s.follow(list)
	s.infof("memcacheddriver: %d servers from now on; came: %s; left: %s", len(list.Servers), someOf(came), someOf(left))
	return nil
}

// someOf names the first of servers.
func someOf(names []string) string {
	const shown = 10
	switch {
	case len(names) == 0:
		return "none"
	case len(names) > shown:
		return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
	}
	return strings.Join(names, ", ")
}

// follow makes the nodes those of list, and returns what came and what left. It needs
// changing.
func (s *session) follow(list *pool.List) (came, left []string) {
	old := s.nodes.Load()
	ns := &nodes{list: list}
	for _, server := range list.Servers {
		n := s.known[server]
		if n == nil {
			n = s.newNode(server)
			s.known[server] = n
		}
		ns.all = append(ns.all, n)
	}
	s.nodes.Store(ns)
	for server, n := range s.known {
		if !s.pool.Knows(server) {
			n.remover.Stop() // it has nothing left to remove
			delete(s.known, server)
		}
	}
	return notIn(old.all, ns.all), notIn(ns.all, old.all)
}

// notIn returns the addresses of those of nodes that are not in list.
func notIn(list, nodes []*node) (addresses []string) {
	for _, n := range nodes {
		if !slices.Contains(list, n) {
			addresses = append(addresses, n.server.Address)
		}
	}
	return addresses
}
