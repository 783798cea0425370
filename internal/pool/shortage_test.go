package pool_test

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
	others := fillUp(t, server.Addr(), nil)

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

// fillUp takes all connections that a server has left, over TLS if config is not nil.
func fillUp(t *testing.T, addr string, config *tls.Config) (conns []net.Conn) {
	t.Helper()
	for {
		c, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		if config != nil {
			config = config.Clone()
			config.ServerName = "localhost"
			c = tls.Client(c, config)
		}
		t.Cleanup(func() { c.Close() })
		_, _ = c.Write([]byte("version\r\n"))
		reply := make([]byte, 64)
		n, _ := c.Read(reply)
		if n == 0 || reply[0] != 'V' {
			return conns
		}
		conns = append(conns, c)
	}
}

// It says so in the clear.
func TestAFullServerBehindTLS(t *testing.T) {
	t.Parallel()
	server, config := memcachedtest.StartTLS(t, "-c", "64")
	fillUp(t, server.Addr(), config)
	db := drivertest.Open(t, server.Addr(), driver.WithTLSConfig(config), memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
	for range 2 {
		err := batch(t.Context(), db, "k")
		assert.ErrorIs(t, err, memcacheddriver.ErrTooManyConns)
		assert.ErrorContains(t, err, "Too many open connections")
	}
	assert.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
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

// fillable answers as usual until full is set, and then takes no more connections.
func fillable(full *atomic.Bool, script memcachedtest.Script) memcachedtest.Script {
	script["version"] = func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		if full.Load() {
			sayAndHangUp("ERROR Too many open connections\r\n")(c, cmd)
			return
		}
		c.Default(cmd)
	}
	return script
}

// The shortage ends by a dial that began before it, and who waits is not forgotten.
func TestADialThatOutlivesAShortage(t *testing.T) {
	t.Parallel()
	goOn := make(chan struct{})
	f := memcachedtest.StartFake(t, memcachedtest.Script{
		"version": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			switch c.N {
			case 1:
				c.Wait(goOn)
			case 2:
				sayAndHangUp("ERROR Too many open connections\r\n")(c, cmd)
				return
			}
			c.Default(cmd)
		},
		"get": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			if cmd.Args[0] == "holds" {
				c.Hang()
				return
			}
			c.Default(cmd)
		},
	})
	log := drivertest.NewLog()
	db := drivertest.Open(t, f.Addr(), driver.WithLogger(log), driver.WithDialTimeout(2*time.Second), memcacheddriver.WithTimeout(drivertest.Never))
	ctx, cancel := context.WithCancel(t.Context())
	var calls sync.WaitGroup
	calls.Go(func() { assert.ErrorIs(t, batch(ctx, db, "holds"), context.Canceled) })
	memcachedtest.Eventually(t, func() bool { return f.Count("version") == 1 }, "the first one dials")
	calls.Go(func() { assert.NoError(t, batch(t.Context(), db, "k")); cancel() })
	log.Await(t, 1, "no more connections")
	close(goOn)
	calls.Wait()
}

// A read that is sent again does with the connections that there are.
func TestAReadIsSentAgainInAShortage(t *testing.T) {
	t.Parallel()
	var full atomic.Bool
	var once sync.Once
	f := memcachedtest.StartFake(t, fillable(&full, memcachedtest.Script{"get": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		if cmd.Args[0] == "again" {
			once.Do(func() { c.Close() })
		}
		c.Default(cmd)
	}}))
	db := drivertest.Open(t, f.Addr())
	drivertest.Fill(t, db, 5)
	full.Store(true)
	assert.NoError(t, batch(t.Context(), db, "again"))
	assert.Equal(t, 4, drivertest.Stat(t, db).Idle)
}

// Many wait, and one at a time asks, ever more rarely.
func TestAFullServerIsAskedRarely(t *testing.T) {
	t.Parallel()
	const waiting = 62
	var full atomic.Bool
	f := memcachedtest.StartFake(t, fillable(&full, memcachedtest.Script{}))
	db := drivertest.Open(t, f.Addr(), driver.WithDialTimeout(drivertest.Never))
	release := drivertest.Hold(t, db, 2)
	full.Store(true)
	before := drivertest.Dials(db)
	var calls sync.WaitGroup
	for range waiting {
		calls.Go(func() { assert.NoError(t, batch(t.Context(), db, "k")) })
	}
	time.Sleep(500 * time.Millisecond) // 50, 100 and 200 ms
	asked := drivertest.Dials(db) - before
	release()
	calls.Wait()
	assert.Greater(t, int(asked), 1)
	assert.LessOrEqual(t, int(asked), waiting+4)
}
