package pool

import (
	"hash/crc32"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/ketama"
)

// Addr is a server's address as written, a host name still a name: it is looked
// up at each dial. It is a net.Addr.
type Addr struct {
	Net     string // "tcp" or "unix"
	Address string // host:port or a path
}

func (a Addr) Network() string { return a.Net }
func (a Addr) String() string  { return a.Address }

// addr returns the Addr of what Address is of one.
func addr(address string) Addr {
	if strings.HasPrefix(address, "/") {
		return Addr{"unix", address}
	}
	return Addr{"tcp", address}
}

// Entry is a server of a list as it is written.
type Entry struct {
	Addr
	Weight uint32 // 1 or more; all of a list together fit into an uint32
}

// List is the servers that keys are spread over. It does not change.
type List struct {
	Servers []*Server // each once, in the order of first mention

	entries []Entry
	at      []int        // by entry: its server's index
	ends    []uint32     // by entry: the weights up to it, it included
	ring    *ketama.Ring // nil means modulo

	lanes sync.Pool // of *Lane, idle: they hold no sockets, but know their servers
}

func newList(entries []Entry, byKetama bool, server func(Addr) *Server) *List {
	l := &List{entries: slices.Clone(entries)}
	index := make(map[Addr]int, len(entries))
	var ring []ketama.Server
	total := uint32(0)
	for _, e := range entries {
		i, known := index[e.Addr]
		if !known {
			i = len(l.Servers)
			index[e.Addr] = i
			l.Servers = append(l.Servers, server(e.Addr))
			ring = append(ring, ketamaServer(e.Addr))
		}
		ring[i].Weight += e.Weight
		total += e.Weight
		l.at = append(l.at, i)
		l.ends = append(l.ends, total)
	}
	if byKetama {
		l.ring = ketama.New(ring)
	}
	return l
}

func ketamaServer(a Addr) ketama.Server {
	if a.Net == "unix" {
		return ketama.Server{Host: a.Address}
	}
	host, port, _ := net.SplitHostPort(a.Address)
	n, _ := strconv.ParseUint(port, 10, 16)
	return ketama.Server{Host: host, Port: uint16(n)}
}

// Pick returns the index in Servers of the one that holds key.
func (l *List) Pick(key string) int {
	switch {
	case len(l.Servers) == 1:
		return 0
	case l.ring != nil:
		return l.ring.Pick(key)
	}
	// gomemcache's own mapping (CRC-32 modulo the list as written), so that both read
	// each other's data.
	slot := checksum(key) % l.ends[len(l.ends)-1]
	entry, _ := slices.BinarySearch(l.ends, slot+1)
	return l.at[entry]
}

// checksum is crc32.ChecksumIEEE for a string, without a copy on the heap.
func checksum(key string) uint32 {
	crc := ^uint32(0)
	for i := range len(key) {
		crc = crc32.IEEETable[byte(crc)^key[i]] ^ (crc >> 8)
	}
	return ^crc
}

// find returns the server with that address, nil where there is none.
func (l *List) find(address string) *Server {
	for _, s := range l.Servers {
		if s.Address == address {
			return s
		}
	}
	return nil
}
