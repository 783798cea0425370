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
func sees(t *testing.T, p *peeker, want socketState) {
	t.Helper()
	got := p.peek()
	for end := time.Now().Add(5 * time.Second); got != want && time.Now().Before(end); got = p.peek() {
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
			require.Equal(t, quiet, p.peek())
			require.Zero(t, testing.AllocsPerRun(100, func() { p.peek() }))

			// A deadline that has passed is that of the last call.
			near.SetDeadline(longAgo)
			require.Equal(t, quiet, p.peek())

			_, err := far.Write([]byte("x"))
			require.NoError(t, err)
			sees(t, p, readable)
			require.Equal(t, readable, p.peek(), "a peek takes nothing")
			near.SetDeadline(time.Time{})
			n, err := near.Read(make([]byte, 8))
			require.NoError(t, err)
			require.Equal(t, 1, n)
			require.Equal(t, quiet, p.peek())

			far.Close()
			sees(t, p, dead)
		})
		t.Run(network+", closed here", func(t *testing.T) {
			near, _ := pair(t, network, addr)
			p := newPeeker(near)
			near.Close()
			require.Equal(t, dead, p.peek())
		})
	}
	t.Run("reset", func(t *testing.T) {
		near, far := pair(t, "tcp", "127.0.0.1:0")
		p := newPeeker(near)
		far.(*net.TCPConn).SetLinger(0)
		far.Close()
		sees(t, p, dead)
	})
	t.Run("what is no socket", func(t *testing.T) {
		near, far := net.Pipe()
		defer near.Close()
		defer far.Close()
		require.Nil(t, newPeeker(near))
	})
}
