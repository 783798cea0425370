package memcacheddriver_test

import (
	"context"
	"strings"
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

func TestPingNamesTheServersThatDoNotAnswer(t *testing.T) {
	t.Parallel()
	servers, addrs := drivertest.StartServers(t, 3)
	db := drivertest.Open(t, strings.Join(addrs, ","))
	require.NoError(t, db.Ping(t.Context()))
	servers[0].Kill()
	servers[2].Kill()
	err := db.Ping(t.Context())
	require.Error(t, err)
	var down []string
	for _, e := range drivertest.OpErrors(err) {
		assert.Equal(t, "ping", e.Op)
		down = append(down, e.Server)
	}
	assert.ElementsMatch(t, []string{addrs[0], addrs[2]}, down)
	assert.Contains(t, err.Error(), addrs[0])
	assert.Contains(t, err.Error(), addrs[2])
	assert.NotContains(t, err.Error(), addrs[1])
}

// Each server answers only when all have been asked.
func TestPingAsksAllServersAtOnce(t *testing.T) {
	t.Parallel()
	var fakes []*memcachedtest.Fake
	var addrs []string
	for range 3 {
		fakes = append(fakes, memcachedtest.StartFake(t, nil))
		addrs = append(addrs, fakes[len(fakes)-1].Addr())
	}
	db := drivertest.Open(t, strings.Join(addrs, ","), memcacheddriver.WithTimeout(20*time.Second))
	require.NoError(t, db.Ping(t.Context()), "which dials")

	var asked atomic.Int32
	all := make(chan struct{})
	for _, f := range fakes {
		f.SetScript(memcachedtest.Script{"version": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			if asked.Add(1) == 3 {
				close(all)
			}
			if c.Wait(all) {
				c.Default(cmd)
			}
		}})
	}
	require.NoError(t, db.Ping(t.Context()))
}

func TestPingOfWhatIsNoMemcachedFails(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"*": memcachedtest.Say("HTTP/1.1 400 Bad Request\r\n")})
	require.ErrorIs(t, drivertest.Open(t, f.Addr()).Ping(t.Context()), memcacheddriver.ErrProtocol)
}

func TestPingOfAnyServer(t *testing.T) {
	t.Parallel()
	alive := memcachedtest.Addr(t)
	dead := memcachedtest.StartFake(t, nil)
	dead.Close()
	frozen := memcachedtest.StartFake(t, memcachedtest.Script{"*": memcachedtest.Hang})
	for _, servers := range []string{alive, alive + "," + dead.Addr(), frozen.Addr() + "," + alive + "," + dead.Addr()} {
		db := drivertest.Open(t, servers, memcacheddriver.WithPingPolicy(memcacheddriver.PingAny), memcacheddriver.WithTimeout(drivertest.Never), driver.WithDialTimeout(drivertest.Never))
		for range 5 { // until the dead one is known to be
			assert.NoError(t, db.Ping(t.Context()), servers)
		}
	}
	db := drivertest.Open(t, alive+","+dead.Addr()+"?ping=all")
	assert.ErrorContains(t, db.Ping(t.Context()), dead.Addr())

	db = drivertest.Open(t, dead.Addr()+","+frozen.Addr()+"?ping=any&timeout=200ms&dial_timeout=300ms")
	err := db.Ping(t.Context())
	assert.ErrorContains(t, err, dead.Addr())
	assert.ErrorContains(t, err, frozen.Addr())

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	db = drivertest.Open(t, alive+","+dead.Addr()+"?ping=any")
	assert.ErrorIs(t, db.Ping(ctx), context.Canceled)

	// One has failed by then, and the other says nothing.
	db = drivertest.Open(t, dead.Addr()+","+frozen.Addr()+"?ping=any", memcacheddriver.WithTimeout(drivertest.Never), driver.WithDialTimeout(drivertest.Never))
	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err = db.Ping(ctx)
	assert.ErrorIs(t, err, context.DeadlineExceeded)
	assert.NotContains(t, err.Error(), "\n", "an error is one line")

	err = memcacheddriver.New().Open(t.Context(), "mc1", memcacheddriver.WithPingPolicy("most"))
	assert.ErrorIs(t, err, memcacheddriver.ErrInvalidOption)
}

// One that is merely slow keeps its connection.
func TestPingOfAnyServerCutsNoOther(t *testing.T) {
	t.Parallel()
	slow := memcachedtest.StartFake(t, nil)
	db, r := openTraced(t, slow.Addr()+","+memcachedtest.Addr(t)+"?ping=any")
	require.NoError(t, db.Ping(t.Context()))
	memcachedtest.Eventually(t, func() bool { return db.Stats()[0].Idle == 1 && db.Stats()[1].Idle == 1 }, "both have been asked")
	slow.SetScript(memcachedtest.Script{"version": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		time.Sleep(150 * time.Millisecond)
		c.Default(cmd)
	}})
	r.take()
	before := drivertest.Dials(db)
	asked := slow.Count("version")
	for n := range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		require.NoError(t, db.Ping(ctx))
		cancel()
		memcachedtest.Eventually(t, func() bool { return slow.Count("version") == asked+n+1 && db.Stats()[0].Idle == 1 }, "the other ping has ended")
	}
	assert.Equal(t, before, drivertest.Dials(db))
	for _, o := range r.take() {
		assert.NoError(t, o.result.Err)
	}
}

// By pings alone a server that freezes goes down, and comes back.
func TestPingOfAnyServerProbes(t *testing.T) {
	t.Parallel()
	s := memcachedtest.Start(t)
	db := drivertest.Open(t, memcachedtest.Addr(t)+","+s.Addr()+"?ping=any&timeout=400ms&dial_timeout=400ms&server_retry_timeout=100ms")
	require.NoError(t, db.Ping(t.Context()))
	s.Stop()
	state := func() memcacheddriver.ServerState {
		require.NoError(t, db.Ping(t.Context()))
		return db.Stats()[1].State
	}
	memcachedtest.Eventually(t, func() bool { return state() != memcacheddriver.ServerUp }, "it is down")
	s.Cont()
	memcachedtest.Eventually(t, func() bool { return state() == memcacheddriver.ServerUp }, "it is up")
}
