package pool_test

import (
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// A memcached that others have filled up: the driver does with what it has.
func TestAFullServer(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t, "-c", "64")
	log := drivertest.NewLog()
	db := drivertest.Open(t, server.Addr(), driver.WithLogger(log), memcacheddriver.WithTTLQuery(),
		memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
	drivertest.Fill(t, db, 2)
	others := fillUp(t, server.Addr())

	var all sync.WaitGroup
	for range 30 {
		all.Go(func() {
			for range 10 {
				assert.NoError(t, batch(t.Context(), db, "k"), "two connections serve all")
			}
		})
	}
	all.Wait()
	s := drivertest.Stat(t, db)
	assert.Equal(t, memcacheddriver.ServerUp, s.State)
	assert.LessOrEqual(t, s.Idle+s.InUse, 2)
	log.Await(t, 1, "warn: ", server.Addr(), "no more connections", "Too many open connections")
	require.Len(t, log.Lines(), 1)

	// One that has none says so, at once.
	late := drivertest.Open(t, server.Addr(), memcacheddriver.WithTTLQuery(), driver.WithDialTimeout(drivertest.Never),
		memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
	for _, call := range append(nativeCalls, drivertest.Calls...) {
		err := call.Run(t.Context(), late, "k")
		assert.ErrorIs(t, err, memcacheddriver.ErrTooManyConns, call.Name)
		assert.ErrorContains(t, err, "Too many open connections", call.Name)
	}
	s = drivertest.Stat(t, late)
	assert.Equal(t, memcacheddriver.ServerUp, s.State)
	assert.Less(t, int(s.Dials), 20, "most are refused without a dial")

	for _, c := range others {
		c.Close()
	}
	memcachedtest.Eventually(t, func() bool { return batch(t.Context(), late, "k") == nil }, "there is room again")
	release := drivertest.Hold(t, db, 4)
	release()
}

// fillUp takes all connections that a server has left.
func fillUp(t *testing.T, addr string) (conns []net.Conn) {
	t.Helper()
	for {
		c, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		_, err = c.Write([]byte("version\r\n"))
		require.NoError(t, err)
		reply := make([]byte, 64)
		n, _ := c.Read(reply)
		if n == 0 || reply[0] != 'V' {
			return conns
		}
		conns = append(conns, c)
	}
}

// Where nothing was asked in the dial, the answer to a request tells it.
func TestAFullServerThatIsNotAsked(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{
		"version": memcachedtest.HangUp,
		"gets":    sayAndHangUp("ERROR Too many open connections\r\n"), // gomemcache's
		"get":     sayAndHangUp("ERROR Too many open connections\r\n"),
	})
	db := drivertest.Open(t, f.Addr(), memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
	_, err := db.Get(t.Context(), "k")
	require.ErrorIs(t, err, memcacheddriver.ErrTooManyConns)
	err = batch(t.Context(), db, "k")
	require.ErrorIs(t, err, memcacheddriver.ErrTooManyConns)
	require.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
}
