package discovery_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/discovery"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

const service = "_memcached._tcp.cache.test."

func lookUp(t *testing.T, s *memcachedtest.NameServer) (discovery.Answer, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return discovery.SRV(ctx, s.Resolver(), service)
}

func TestSRV(t *testing.T) {
	t.Parallel()
	s := memcachedtest.StartNameServer(t)
	s.SetSRV(service,
		net.SRV{Target: "b.test.", Port: 11212, Priority: 1, Weight: 9},
		net.SRV{Target: "c.test.", Port: 1, Priority: 0},
		net.SRV{Target: "b.test.", Port: 9999, Priority: 7},
		net.SRV{Target: "b-1.test.", Port: 1},
		net.SRV{Target: "a.test.", Port: 65535, Priority: 65535, Weight: 65535},
		net.SRV{Target: "c.test.", Port: 1, Priority: 3}, // again
	)
	got, err := lookUp(t, s)
	require.NoError(t, err)
	assert.Equal(t, discovery.Answer{
		Servers: []string{"a.test:65535", "b-1.test:1", "b.test:9999", "b.test:11212", "c.test:1"},
		Version: discovery.NoVersion,
	}, got)

	many, want := make([]net.SRV, 300), make([]string, 300)
	for i := range many {
		many[len(many)-1-i] = net.SRV{Target: fmt.Sprintf("node%03d.test.", i), Port: 11211}
		want[i] = fmt.Sprintf("node%03d.test:11211", i)
	}
	s.SetSRV(service, many...)
	got, err = lookUp(t, s)
	require.NoError(t, err)
	assert.Equal(t, want, got.Servers, "by TCP")
}

func TestSRVRefuses(t *testing.T) {
	t.Parallel()
	s := memcachedtest.StartNameServer(t)
	requireNothing := func(want string) {
		t.Helper()
		got, err := lookUp(t, s)
		require.ErrorContains(t, err, want)
		assert.Empty(t, got)
	}
	requireNothing("check the name, and that it has SRV records")
	s.SetSRV(service)
	requireNothing("check the name, and that it has SRV records")
	good := net.SRV{Target: "a.test.", Port: 11211}
	s.SetSRV(service, net.SRV{Target: ".", Port: 11211})
	requireNothing(`the target "."`)
	s.SetSRV(service, good, net.SRV{Target: ".", Port: 11211})
	requireNothing(`the target "."`)
	s.SetSRV(service, good, net.SRV{Target: "b.test."})
	requireNothing("the SRV record of b.test has the port 0")
	s.SetSRV(service, good, net.SRV{Target: "not a host.test.", Port: 11211})
	requireNothing("lookup " + service) // though net returns the good ones
	s.SetSRV(service, good)
	s.SetFailing(true)
	requireNothing("server misbehaving")
	s.SetFailing(false)
	_, err := lookUp(t, s)
	require.NoError(t, err)

	s.SetSilent(true)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = discovery.SRV(ctx, s.Resolver(), service)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}
