//go:build !(linux || darwin || dragonfly || freebsd || netbsd || openbsd || solaris || illumos)

package pool

// peekFD is nil where a socket cannot be looked at without waiting: there a
// restarted server costs each of its idle connections one call that writes.
var peekFD func(fd uintptr) socketState
