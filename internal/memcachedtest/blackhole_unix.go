//go:build unix

package memcachedtest

import (
	"net"
	"syscall"
	"testing"
	"time"
)

// BlackHole returns an address on which connecting neither succeeds nor fails
// until the test ends: a listener's whose queue is full. On Windows it fails the
// test.
func BlackHole(t testing.TB) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	raw, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// Listening again makes the queue as short as it can be.
	var refused error
	if err := raw.Control(func(fd uintptr) { refused = syscall.Listen(int(fd), 0) }); err != nil || refused != nil {
		t.Fatal(err, refused)
	}
	for range 100 {
		c, err := net.DialTimeout("tcp", ln.Addr().String(), 200*time.Millisecond)
		if err != nil {
			return ln.Addr().String()
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("memcachedtest: the queue of a listener does not fill up")
	return ""
}
