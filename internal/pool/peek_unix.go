//go:build linux || darwin || dragonfly || freebsd || netbsd || openbsd || solaris || illumos

package pool

import "syscall"

// peekFD looks at the next byte without taking it. It does not wait: Go's sockets
// are non-blocking.
var peekFD = func(fd uintptr) socketState {
	var b [1]byte
	for {
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN || err == syscall.EWOULDBLOCK:
			return quiet
		case err != nil || n == 0:
			return dead
		}
		return readable
	}
}
