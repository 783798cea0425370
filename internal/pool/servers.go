package pool

import (
	"net"
	"slices"
	"time"
)

// forgetAfter is for how long a server is known that has left: far longer than any call
// takes from picking its server to the end, so that Close finds all that are in use, and
// one that comes back is the same, with the same limit for its sockets.
const forgetAfter = 10 * time.Minute

// SetServers replaces the servers. Those that stay are the same ones, with their
// sockets, health and counters; those that leave still serve the calls that have picked
// them, and keep no socket after that. It returns nil after Close.
func (p *Pool) SetServers(entries []Entry) *List {
	p.changing.Lock()
	defer p.changing.Unlock()
	if p.closing.Err() != nil {
		return nil
	}
	old := p.list.Load()
	if slices.Equal(old.entries, entries) {
		return old
	}
	list := newList(entries, p.cfg.Ketama, p.meet)
	for _, s := range list.Servers {
		s.enlist()
	}
	p.list.Store(list)
	for _, s := range old.Servers {
		if list.find(s.Address) == nil {
			s.retire()
		}
	}
	p.known = slices.DeleteFunc(p.known, (*Server).forgettable)
	p.native.Close() // its connections to who has left; it makes new ones
	return list
}

// meet returns the server with that address, which is a new one where it is not known. It
// needs changing.
func (p *Pool) meet(a Addr) *Server {
	for _, s := range p.known {
		if s.Addr == a {
			return s
		}
	}
	s := newServer(a, &p.cfg, p.closing)
	p.known = append(p.known, s)
	return s
}

// Knows reports whether s is in the list, or left it not long ago.
func (p *Pool) Knows(s *Server) bool {
	p.changing.Lock()
	defer p.changing.Unlock()
	return slices.Contains(p.known, s)
}

// List returns the list that is valid now.
func (p *Pool) List() *List { return p.list.Load() }

// server returns the server with that address. One that is not in the list any more has
// left since a client of gomemcache's picked it.
func (p *Pool) server(address string) *Server {
	if s := p.list.Load().find(address); s != nil {
		return s
	}
	p.changing.Lock()
	defer p.changing.Unlock()
	s := p.meet(addr(address))
	switch {
	case p.closing.Err() != nil:
		s.closeAll()
	case p.list.Load().find(address) == nil:
		s.retire()
	}
	return s
}

// selector is the Pool as gomemcache sees it.
type selector Pool

func (ss *selector) PickServer(key string) (net.Addr, error) {
	l, err := (*Pool)(ss).await()
	if err != nil {
		return nil, err
	}
	return l.Servers[l.Pick(key)], nil
}

// Each calls f for every server once.
func (ss *selector) Each(f func(net.Addr) error) error {
	l, err := (*Pool)(ss).await()
	if err != nil {
		return err
	}
	for _, s := range l.Servers {
		if err := f(s); err != nil {
			return err
		}
	}
	return nil
}

// await returns the list, as soon as there are servers in it.
func (p *Pool) await() (*List, error) {
	if l := p.list.Load(); len(l.Servers) > 0 {
		return l, nil
	}
	if err := p.cfg.Await(p.closing); err != nil {
		return nil, err
	}
	return p.list.Load(), nil
}
