package pool

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// pair returns the two ends of a connection.
func pair(t *testing.T, network, addr string) (near, far net.Conn) {
	t.Helper()
	ln, err := net.Listen(network, addr)
	require.NoError(t, err)
	defer ln.Close()
	near, err = net.Dial(network, ln.Addr().String())
	require.NoError(t, err)
	far, err = ln.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// sees waits until the peeker sees want: what the other end did takes a moment.
func sees(t *testing.T, p *peeker, want sight) {
	t.Helper()
	got := p.look()
	for end := time.Now().Add(5 * time.Second); got != want && time.Now().Before(end); got = p.look() {
		time.Sleep(time.Millisecond)
	}
	require.Equal(t, want, got)
}

func TestPeeker(t *testing.T) {
	for network, addr := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "s")} {
		t.Run(network, func(t *testing.T) {
			near, far := pair(t, network, addr)
			p := newPeeker(near)
			require.NotNil(t, p)
			require.Equal(t, quiet, p.look())
			require.Zero(t, testing.AllocsPerRun(100, func() { p.look() }))

			// A deadline that has passed is that of the last call.
			near.SetDeadline(longAgo)
			require.Equal(t, quiet, p.look())

			_, err := far.Write([]byte("x"))
			require.NoError(t, err)
			sees(t, p, readable)
			require.Equal(t, readable, p.look(), "a look takes nothing")
			near.SetDeadline(time.Time{})
			n, err := near.Read(make([]byte, 8))
			require.NoError(t, err)
			require.Equal(t, 1, n)
			require.Equal(t, quiet, p.look())

			far.Close()
			sees(t, p, ended)
		})
		t.Run(network+", closed here", func(t *testing.T) {
			near, _ := pair(t, network, addr)
			p := newPeeker(near)
			near.Close()
			require.Equal(t, ended, p.look())
		})
	}
	t.Run("reset", func(t *testing.T) {
		near, far := pair(t, "tcp", "127.0.0.1:0")
		p := newPeeker(near)
		far.(*net.TCPConn).SetLinger(0)
		far.Close()
		sees(t, p, ended)
	})
	t.Run("what is no socket", func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		require.Nil(t, newPeeker(near))
	})
}
