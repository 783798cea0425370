package pool

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// openRefusing returns a pool for a server that refuses every delete.
func openRefusing(t *testing.T) *Pool {
	t.Helper()
	server := memcachedtest.StartFake(t, memcachedtest.Script{"delete": memcachedtest.Say("SERVER_ERROR x\r\n")})
	return open(t, func(cfg *Config) { cfg.Servers = entries(server.Addr()) })
}

// An abort may have reached the socket of a connection that gomemcache closes.
func TestCloseOfAnAbortedLaneKeepsNoSocket(t *testing.T) {
	for aborted, idle := range map[bool]int{false: 1, true: 0} {
		p := openRefusing(t)
		ctx, cancel := context.WithCancel(context.Background())
		_ = p.Do(ctx, func(l *Lane) error {
			c := l.newConn(p.List().Servers[0])
			_, err := io.WriteString(c, "delete k\r\n")
			require.NoError(t, err)
			_, err = c.Read(make([]byte, 64))
			require.NoError(t, err)
			if aborted {
				cancel()
				memcachedtest.Eventually(t, l.aborted.Load, "the lane is aborted")
			}
			require.NoError(t, c.Close())
			require.Empty(t, l.conns)
			require.Equal(t, idle, p.List().Servers[0].Stats().Idle, "aborted: %v", aborted)
			return nil
		})
		cancel()
	}
}

// However soon after it: the server may have closed.
func TestARefusedSocketIsLookedAt(t *testing.T) {
	p := openRefusing(t)
	_ = p.Do(context.Background(), func(l *Lane) error {
		return l.Client(p.List().Servers[0]).Delete("k")
	})
	sock := p.List().Servers[0].idle[0]
	looked := false
	look := sock.peeker.fn
	sock.peeker.fn = func(fd uintptr) { looked = true; look(fd) }
	used := sock.used
	require.True(t, sock.good(sinceStart()))
	require.True(t, looked)

	// By the pipeline too.
	c := &Conn{server: p.List().Servers[0]}
	c.sock.Store(sock)
	c.Refused()
	require.Equal(t, used-checkAfter, sock.used)
}

func TestSpoilClosesTheSocketOfACompleteReply(t *testing.T) {
	p := openRefusing(t)
	_ = p.Do(context.Background(), func(l *Lane) error {
		require.NoError(t, get(l))
		l.Spoil()
		return errors.New("mine")
	})
	require.Zero(t, p.List().Servers[0].Stats().Idle)
}

// broken is a connection whose other end is known to be gone when it is written to.
type broken struct{ net.Conn }

func (broken) Write([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestAReadThatCannotBeWrittenIsSentAgain(t *testing.T) {
	p := open(t, nil)
	require.NoError(t, p.Do(context.Background(), get))
	sock := p.List().Servers[0].idle[0]
	sock.Conn = broken{sock.Conn}
	require.NoError(t, p.Do(context.Background(), get))
	require.EqualValues(t, 2, p.List().Servers[0].Stats().Dials)
}

// A read that sent nothing, as without the meta protocol, is over.
func TestAWriteAfterAReadIsNotSentAgain(t *testing.T) {
	p := open(t, nil)
	require.NoError(t, p.Do(context.Background(), get))
	_ = p.Do(context.Background(), func(l *Lane) error {
		c := l.Conn(p.List().Servers[0])
		require.NoError(t, c.BeginRead())
		require.NoError(t, c.Begin())
		sock := c.sock.Load()
		sock.Conn = broken{sock.Conn}
		_, err := c.Send([]byte("delete k\r\n"))
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		return err
	})
}
