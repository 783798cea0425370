//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd || solaris || illumos

package pool

import "syscall"

// peek looks at the next byte without taking it. It does not wait: Go's sockets
// are non-blocking.
var peek = func(fd uintptr) sight {
	var b [1]byte
	for {
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN || err == syscall.EWOULDBLOCK:
			return quiet
		case err != nil || n == 0:
			return ended
		}
		return readable
	}
}
