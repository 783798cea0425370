package pool

import (
	"net"
	"slices"
)

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
	list := newList(entries, p.cfg.Ketama, func(a Addr) *Server {
		if s := old.find(a.Address); s != nil {
			return s
		}
		return p.newServer(a)
	})
	p.list.Store(list)
	p.left = slices.DeleteFunc(p.left, (*Server).Unused)
	for _, s := range old.Servers {
		if list.find(s.Address) == nil {
			s.retire()
			p.left = append(p.left, s)
		}
	}
	p.native.Close() // its connections to who has left; it makes new ones
	return list
}

// List returns the list that is valid now.
func (p *Pool) List() *List { return p.list.Load() }

// Servers returns those of that list.
func (p *Pool) Servers() []*Server { return p.list.Load().Servers }

// server returns the server with that address. One that is not in the list any more has
// left since a client of gomemcache's picked it.
func (p *Pool) server(address string) *Server {
	if s := p.list.Load().find(address); s != nil {
		return s
	}
	p.changing.Lock()
	defer p.changing.Unlock()
	for _, s := range slices.Concat(p.list.Load().Servers, p.left) {
		if s.Address == address {
			return s
		}
	}
	s := p.newServer(addr(address))
	s.retire()
	if p.closing.Err() != nil {
		s.closeAll()
	}
	p.left = append(p.left, s)
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
