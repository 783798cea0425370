package pool_test

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// nameServer knows every name, at the address that a test says.
type nameServer struct {
	mu      sync.Mutex
	addr    netip.Addr // IPv4; the zero Addr: no such name
	queries int
}

func (n *nameServer) is(addr string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addr = netip.Addr{}
	if addr != "" {
		n.addr = netip.MustParseAddr(addr)
	}
}

func (n *nameServer) asked() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.queries
}

// startNameServer makes Go's resolver ask a server of the test's own. Tests that use
// it cannot be parallel to any other.
func startNameServer(t *testing.T) *nameServer {
	t.Helper()
	n := &nameServer{}
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
func (n *nameServer) answer(query []byte) []byte {
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

func TestNamesAreNotLookedUpByOpen(t *testing.T) {
	names := startNameServer(t)
	names.is("")
	db := drivertest.Open(t, "no-such-host.example")
	require.Zero(t, names.asked())
	_, err := db.Get(t.Context(), "k")
	var dns *net.DNSError
	require.ErrorAs(t, err, &dns)
	require.True(t, dns.IsNotFound)
	require.ErrorContains(t, err, "no-such-host.example:11211")
	require.NotZero(t, names.asked())
	require.EqualValues(t, 1, drivertest.Stat(t, db).DialErrors)
}

func TestNamesThatMoveAreFollowed(t *testing.T) {
	names := startNameServer(t)
	for name, stop := range map[string]func(*memcachedtest.Server){
		"the old address refuses":   (*memcachedtest.Server).Kill,
		"the old address is silent": (*memcachedtest.Server).Stop,
	} {
		t.Run(name, func(t *testing.T) {
			names.is("127.0.0.2")
			old := memcachedtest.Start(t, "-l", "127.0.0.2") // besides 127.0.0.1
			_, port, err := net.SplitHostPort(old.Addr())
			require.NoError(t, err)
			memcachedtest.StartFakeOn(t, "127.0.0.3:"+port, nil) // where there is no key
			const retry = 20 * time.Millisecond
			db := drivertest.Open(t, "cache.example:"+port, memcacheddriver.WithTimeout(500*time.Millisecond),
				memcacheddriver.WithServerFailureLimit(3, retry))
			require.NoError(t, db.Set(t.Context(), "k", []byte("old"), 0))
			drivertest.Fill(t, db, 10)
			asked := names.asked()

			// As long as the old address answers, nobody looks.
			names.is("127.0.0.3")
			for range 20 {
				value, err := db.Get(t.Context(), "k")
				require.NoError(t, err)
				require.Equal(t, "old", string(value))
			}
			require.Equal(t, asked, names.asked())

			stop(old)
			failed := 0
			for err = nil; err != kv.ErrNotFound; failed++ {
				_, err = db.Get(t.Context(), "k")
				time.Sleep(2 * retry)
				require.LessOrEqual(t, failed, 4, "calls that failed before the new address was asked: %v", err)
			}
			require.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
			drivertest.RequireIdle(t, db)
		})
	}
}

// Both families of a name are tried: localhost often has both, while the server
// listens on one.
func TestNamesHaveTwoFamilies(t *testing.T) {
	t.Parallel()
	addr := onLocalhost(t, memcachedtest.Start(t))
	db := drivertest.Open(t, addr)
	require.NoError(t, db.Ping(t.Context()))
	assert.Equal(t, addr, drivertest.Stat(t, db).Addr)

	v6 := memcachedtest.StartFakeOn(t, "[::1]:0", nil)
	require.NoError(t, drivertest.Open(t, v6.Addr()).Ping(t.Context()))
}

func TestUnixSocketWorks(t *testing.T) {
	t.Parallel()
	server := memcachedtest.StartUnix(t)
	for _, dsn := range []string{server.Addr(), "unix://" + server.Addr(), "memcached://" + server.Addr() + "?timeout=5s"} {
		db := drivertest.Open(t, dsn)
		key := drivertest.Key()
		require.NoError(t, db.Set(t.Context(), key, drivertest.Value(key), 0), dsn)
		got, err := db.MGet(t.Context(), []string{key, key})
		require.NoError(t, err, dsn)
		assert.Equal(t, 2, drivertest.AssertValues(t, []string{key, key}, got), dsn)
		assert.Equal(t, server.Addr(), drivertest.Stat(t, db).Addr)
	}
}
