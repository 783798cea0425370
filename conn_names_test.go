package memcacheddriver_test

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// connNames is a name server that knows every name, at the address that a test
// says.
type connNames struct {
	mu      sync.Mutex
	addr    netip.Addr // IPv4; the zero Addr: no such name
	queries int
}

func (n *connNames) is(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addr = netip.Addr{}
	if addr != "" {
		n.addr = netip.MustParseAddr(addr)
	}
}

func (n *connNames) asked() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.queries
}

// connResolve makes Go's resolver ask a server of the test's own. Tests that use
// it cannot be parallel to any other.
func connResolve(t *testing.T) *connNames {
	t.Helper()
	n := &connNames{}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	var running sync.WaitGroup
	running.Go(func() {
		buf := make([]byte, 1024)
		for {
			size, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(n.answer(buf[:size]), from)
		}
	})
	usual := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", pc.LocalAddr().String())
	}}
	t.Cleanup(func() {
		net.DefaultResolver = usual
		pc.Close()
		running.Wait()
	})
	return n
}

// answer answers a DNS query (RFC 1035, 4.1) with its question and, if that is
// for an IPv4 address, one.
func (n *connNames) answer(query []byte) []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.queries++
	end := 12
	for query[end] != 0 { // the labels of the name
		end += 1 + int(query[end])
	}
	kind := binary.BigEndian.Uint16(query[end+1:])
	end += 5
	reply := append([]byte{}, query[:end]...)
	binary.BigEndian.PutUint16(reply[2:], 0x8180) // an answer, no error
	copy(reply[4:], []byte{0, 1, 0, 0, 0, 0, 0, 0})
	switch {
	case !n.addr.IsValid():
		binary.BigEndian.PutUint16(reply[2:], 0x8183) // no such name
	case kind == 1: // A
		reply[7] = 1
		// The name by a pointer, A, IN, TTL 0, 4 bytes.
		reply = append(reply, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
		ip := n.addr.As4()
		reply = append(reply, ip[:]...)
	}
	return reply
}

// connMove starts a memcached on 127.0.0.2 that holds k, and an empty server on
// the same port of 127.0.0.3. dsn names the port on a host that is the first.
func connMove(t *testing.T, names *connNames) (old *memcachedtest.Server, moved *connServer, dsn string) {
	t.Helper()
	old = memcachedtest.Start(t, "-l", "127.0.0.2") // besides 127.0.0.1
	_, port, err := net.SplitHostPort(old.Addr())
	require.NoError(t, err)
	direct := connOpen(t, "127.0.0.2:"+port)
	require.NoError(t, direct.Set(context.Background(), "k", []byte("old"), 0))
	names.is("127.0.0.2")
	return old, connServeOn(t, "127.0.0.3:"+port, connMiss), "cache.example:" + port
}

func TestNamesAreNotLookedUpByOpen(t *testing.T) {
	names := connResolve(t)
	names.is("")
	db := connOpen(t, "no-such-host.example")
	require.Zero(t, names.asked())
	_, err := db.Get(context.Background(), "k")
	var dns *net.DNSError
	require.ErrorAs(t, err, &dns)
	require.True(t, dns.IsNotFound)
	require.ErrorContains(t, err, "no-such-host.example:11211")
	require.NotZero(t, names.asked())
	require.Equal(t, uint64(1), connStats(t, db).DialErrors)
}

func TestNamesThatMoveAreFollowed(t *testing.T) {
	names := connResolve(t)
	for name, stop := range map[string]func(*memcachedtest.Server){
		"the old address refuses":   (*memcachedtest.Server).Kill,
		"the old address is silent": (*memcachedtest.Server).Stop,
	} {
		t.Run(name, func(t *testing.T) {
			old, _, dsn := connMove(t, names)
			const retry = 20 * time.Millisecond
			db := connOpen(t, dsn, memcacheddriver.WithTimeout(100*time.Millisecond), memcacheddriver.WithServerFailureLimit(3, retry))
			value, err := db.Get(context.Background(), "k")
			require.NoError(t, err)
			require.Equal(t, "old", string(value))
			connFill(t, db, 10)
			asked := names.asked()

			// As long as the old address answers, nobody looks.
			names.is("127.0.0.3")
			for range 20 {
				_, err := db.Get(context.Background(), "k")
				require.NoError(t, err)
			}
			require.Equal(t, asked, names.asked())

			stop(old)
			failed := 0
			for err = nil; err != kv.ErrNotFound; failed++ {
				_, err = db.Get(context.Background(), "k")
				time.Sleep(2 * retry)
				require.LessOrEqual(t, failed, 4, "calls that failed before the new address was asked: %v", err)
			}
			require.Equal(t, memcacheddriver.ServerUp, connStats(t, db).State)
			connRequireIdle(t, db)
		})
	}
}

// Both families of a name are tried: localhost has often both, while the server
// listens on one.
func TestNamesDualStack(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	_, port, err := net.SplitHostPort(server.Addr())
	require.NoError(t, err)
	db := connOpen(t, "localhost:"+port)
	require.NoError(t, db.Ping(context.Background()))

	v6 := connServeOn(t, "[::1]:0", connMiss)
	db = connOpen(t, v6.addr())
	require.NoError(t, db.Ping(context.Background()))
}
