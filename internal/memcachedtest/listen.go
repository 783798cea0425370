package memcachedtest

import (
	"net"
	"strconv"
	"sync"
	"testing"
)

// Listen accepts connections on a port of 127.0.0.1 until the test ends and runs
// serve for each, for a server that does not even read lines. The connection is
// closed when serve returns, or the test ends. A serve that waits for something
// else than the connection must wait for the end of t.Context() as well.
func Listen(t testing.TB, serve func(net.Conn)) (addr string) {
	t.Helper()
	return listen(t, "", func(_ int, c net.Conn) { serve(c) }).Addr().String()
}

// listener runs serve for each connection, with its number from 1 on.
type listener struct {
	net.Listener
	serve   func(n int, c net.Conn)
	running sync.WaitGroup

	mu       sync.Mutex
	accepted int
	open     map[net.Conn]struct{}
	closed   bool
}

// listen listens on addr, or on a free port of 127.0.0.1 if it is "", until the
// test ends.
func listen(t testing.TB, addr string, serve func(n int, c net.Conn)) *listener {
	t.Helper()
	ln, err := listenOn(addr)
	if err != nil {
		t.Fatalf("memcachedtest: %v", err)
	}
	l := &listener{Listener: ln, serve: serve, open: make(map[net.Conn]struct{})}
	l.running.Go(l.accept)
	t.Cleanup(l.close)
	return l
}

func listenOn(addr string) (ln net.Listener, err error) {
	if addr != "" {
		return net.Listen(network(addr), addr)
	}
	for range 100 {
		// Not port 0: see randomPort.
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(randomPort()))
		if ln, err = net.Listen("tcp", addr); err == nil {
			break
		}
	}
	return ln, err
}

func (l *listener) accept() {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		l.mu.Lock()
		if l.closed {
			l.mu.Unlock()
			c.Close()
			return
		}
		l.accepted++
		n := l.accepted
		l.open[c] = struct{}{}
		l.running.Go(func() {
			defer l.hangUp(c)
			l.serve(n, c)
		})
		l.mu.Unlock()
	}
}

func (l *listener) hangUp(c net.Conn) {
	c.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, c)
}

// close closes the listener and all connections, and waits until nothing runs.
func (l *listener) close() {
	l.Close()
	l.mu.Lock()
	l.closed = true
	for c := range l.open {
		c.Close()
	}
	l.mu.Unlock()
	l.running.Wait()
}
