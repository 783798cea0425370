package pool

import (
	"hash/crc32"
	"net"
)

// Addr is a server's address as written, a host name still a name: it is looked
// up at each dial. It is a net.Addr.
type Addr struct {
	Net     string // "tcp" or "unix"
	Address string // host:port or a path
}

func (a Addr) Network() string { return a.Net }
func (a Addr) String() string  { return a.Address }

// Pick returns the server that holds key: gomemcache's own mapping (CRC-32
// modulo the list as written), so that both read each other's data.
func (p *Pool) Pick(key string) *Server {
	if len(p.ring) == 1 {
		return p.ring[0]
	}
	return p.ring[checksum(key)%uint32(len(p.ring))]
}

// checksum is crc32.ChecksumIEEE for a string, without a copy on the heap.
func checksum(key string) uint32 {
	crc := ^uint32(0)
	for i := range len(key) {
		crc = crc32.IEEETable[byte(crc)^key[i]] ^ (crc >> 8)
	}
	return ^crc
}

// server returns the server with that address, which gomemcache has from the
// selector.
func (p *Pool) server(address string) *Server {
	for _, s := range p.Servers {
		if s.Addr.Address == address {
			return s
		}
	}
	panic("pool: dial to " + address + ", which no selector returned")
}

// selector is the Pool as gomemcache sees it.
type selector Pool

func (ss *selector) PickServer(key string) (net.Addr, error) {
	return (*Pool)(ss).Pick(key), nil
}

// Each calls f for every server once.
func (ss *selector) Each(f func(net.Addr) error) error {
	for _, s := range ss.Servers {
		if err := f(s); err != nil {
			return err
		}
	}
	return nil
}
