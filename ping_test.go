package memcacheddriver_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

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
