package pool

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// Servers that nobody uses any more are forgotten, however many there have been.
func TestServersThatLeftAreForgotten(t *testing.T) {
	p := open(t, nil)
	for i := range 100 {
		p.SetServers(entries(fmt.Sprintf("127.0.0.1:%d", i+1)))
		require.LessOrEqual(t, len(p.left), 2)
	}
	for i := range 10 { // by a client that picked them before they left
		require.True(t, p.server(fmt.Sprint("host:", i+1)).retired.Load())
	}
	require.Same(t, p.server("host:1"), p.server("host:1"))
	require.Len(t, p.left, 11)
	p.SetServers(entries("127.0.0.1:1"))
	require.Len(t, p.left, 1)
}

// One that left serves who still asks it, until Close, and keeps nothing.
func TestAServerThatLeftServes(t *testing.T) {
	fake := memcachedtest.StartFake(t, nil)
	p := open(t, func(cfg *Config) { cfg.Servers = entries(fake.Addr(), "127.0.0.1:1") })
	s := p.Servers()[0]
	get := func() error {
		return p.Do(context.Background(), func(l *Lane) error {
			if err := l.Client(s).Delete("k"); err != nil {
				return err
			}
			c := l.Conn(s)
			defer c.Release()
			return c.Begin()
		})
	}
	fake.SetScript(memcachedtest.Script{"delete": memcachedtest.Say("DELETED\r\n")})
	require.NoError(t, get())
	require.Equal(t, 2, s.Stats().Idle)
	p.SetServers(entries("127.0.0.1:1"))
	require.Zero(t, s.Stats().Idle)
	require.NoError(t, get())
	memcachedtest.Eventually(t, func() bool { return s.Unused() && fake.Open() == 0 }, "nothing is kept")

	p.SetServers(entries(fake.Addr()))
	require.NotSame(t, s, p.Servers()[0])
	p.Close()
	require.Nil(t, p.SetServers(entries("127.0.0.1:2")))
	_, err := p.Native().Get("k")
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, p.server("127.0.0.1:9").borrow(context.Background()).err, ErrClosed)
}
