package pool

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// Servers that left long ago and that nobody uses are forgotten, however many there have
// been; any other comes back as it was.
func TestServersThatLeftAreForgotten(t *testing.T) {
	p := open(t, nil)
	first := p.List().Servers[0]
	require.NoError(t, p.Do(context.Background(), get))
	for i := range 100 {
		p.SetServers(entries(fmt.Sprintf("127.0.0.1:%d", i+1)))
	}
	for i := range 10 { // by a client that picked them before they left
		require.True(t, p.server(fmt.Sprint("host:", i+1)).retired.Load())
	}
	require.Same(t, p.server("host:1"), p.server("host:1"))
	require.Len(t, p.known, 111)
	p.SetServers(entries(first.Address))
	require.Same(t, first, p.List().Servers[0])
	require.False(t, first.retired.Load())

	busy := p.server("host:5")
	busy.replacing = 1
	for _, s := range p.known {
		s.left -= forgetAfter
	}
	p.SetServers(entries("127.0.0.1:7"))
	require.Len(t, p.known, 3)
	require.True(t, p.Knows(busy), "it is in use")
	require.True(t, p.Knows(first), "it has just left")
	require.Equal(t, "127.0.0.1:7", p.List().Servers[0].Address)
	busy.replacing = 0
}

// One that left serves who still asks it, until Close, and keeps nothing.
func TestAServerThatLeftServes(t *testing.T) {
	fake := memcachedtest.StartFake(t, nil)
	p := open(t, func(cfg *Config) { cfg.Servers = entries(fake.Addr(), "127.0.0.1:1") })
	s := p.List().Servers[0]
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
	memcachedtest.Eventually(t, func() bool { return s.Stats().InUse == 0 && fake.Open() == 0 }, "nothing is kept")

	p.SetServers(entries(fake.Addr()))
	require.Same(t, s, p.List().Servers[0])
	require.NoError(t, get())
	require.Equal(t, 2, s.Stats().Idle)
	p.Close()
	require.Nil(t, p.SetServers(entries("127.0.0.1:2")))
	_, err := p.Native().Get("k")
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, p.server("127.0.0.1:9").borrow(context.Background()).err, ErrClosed)
}

// A call may have picked its server, and hold no socket of it, while it leaves.
func TestCloseCutsACallOnAServerThatLeftEarlier(t *testing.T) {
	asked := make(chan struct{}, 1)
	fake := memcachedtest.StartFake(t, memcachedtest.Script{"delete": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
		asked <- struct{}{}
		c.Hang()
	}})
	p := open(t, func(cfg *Config) {
		cfg.Servers = entries(fake.Addr())
		cfg.ReadTimeout = time.Minute
	})
	s := p.List().Servers[0] // the call picks it
	p.SetServers(entries("127.0.0.1:1"))
	p.SetServers(entries("127.0.0.1:2"))
	ended := make(chan error, 1)
	go func() {
		ended <- p.Do(context.Background(), func(l *Lane) error { return l.Client(s).Delete("k") })
	}()
	<-asked
	p.Close()
	select {
	case err := <-ended:
		require.ErrorIs(t, err, ErrClosed)
	case <-time.After(20 * time.Second):
		t.Fatal("Close has not cut the call")
	}
	memcachedtest.Eventually(t, func() bool { return fake.Open() == 0 }, "no socket")
}

func TestNothingIsDialledAfterClose(t *testing.T) {
	fake := memcachedtest.StartFake(t, nil)
	p := open(t, func(cfg *Config) { cfg.Servers = entries(fake.Addr()) })
	s := p.List().Servers[0]
	err := p.Do(context.Background(), func(l *Lane) error {
		p.SetServers(entries("127.0.0.1:1"))
		p.SetServers(entries("127.0.0.1:2"))
		p.Close()
		return l.Conn(s).Begin()
	})
	require.ErrorIs(t, err, ErrClosed)
	require.Zero(t, fake.Accepted())
}

// What is dialled for nobody any more ends, and is no failure.
func TestDialsOfAServerThatLeftEnd(t *testing.T) {
	warned := make(chan string, 10)
	p := open(t, func(cfg *Config) {
		cfg.Servers = entries(memcachedtest.BlackHole(t))
		cfg.FailureLimit = 1
		cfg.Warnf = func(f string, _ ...any) { warned <- f }
	})
	s := p.List().Servers[0]
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, p.Do(ctx, func(l *Lane) error { return l.Conn(s).Begin() }), context.DeadlineExceeded)
	require.Equal(t, 1, s.Stats().Dialing)
	p.SetServers(entries("127.0.0.1:1"))
	memcachedtest.Eventually(t, func() bool { return s.Stats().Dialing == 0 }, "nothing is dialled")
	require.Equal(t, Up, s.Stats().State)
	require.Empty(t, warned)
}

// A server that leaves while it is asked for meta was not asked in vain.
func TestADialThatIsGivenUpTellsNothing(t *testing.T) {
	fake := memcachedtest.StartFake(t, memcachedtest.Script{"mn": memcachedtest.Hang})
	p := open(t, func(cfg *Config) { cfg.Servers = entries(fake.Addr()) })
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- p.Do(ctx, get) }()
	memcachedtest.Eventually(t, func() bool { return fake.Count("mn") == 1 }, "it is asked")
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	s := p.List().Servers[0]
	p.SetServers(entries("127.0.0.1:1"))
	memcachedtest.Eventually(t, func() bool { return s.Stats().Dialing == 0 }, "nothing is dialled")
	fake.SetScript(nil)
	p.SetServers(entries(fake.Addr()))
	require.NoError(t, p.Do(context.Background(), func(l *Lane) error {
		c := l.Conn(s)
		err := c.Begin()
		require.True(t, c.Meta())
		return err
	}))
}

// A client of gomemcache's keeps a connection for longer than a server is known.
func TestAConnectionFollowsItsServer(t *testing.T) {
	fake := memcachedtest.StartFake(t, nil)
	p := open(t, func(cfg *Config) { cfg.Servers = entries(fake.Addr()) })
	c := &Conn{server: p.List().Servers[0], follows: p, eager: true}
	p.SetServers(entries("127.0.0.1:1"))
	c.server.left -= forgetAfter
	p.SetServers(entries("127.0.0.1:2"))
	p.SetServers(entries(fake.Addr()))
	require.NotSame(t, c.server, p.List().Servers[0])
	require.NoError(t, c.Begin())
	require.Same(t, c.server, p.List().Servers[0])
	c.Release()
	require.Equal(t, 1, c.server.Stats().Idle)
}
