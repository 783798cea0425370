//go:build !windows

package pool

import (
	"errors"
	"syscall"
)

const errRefused = syscall.ECONNREFUSED

// isReset reports whether the other side reset the connection.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// isShortage reports whether this machine has run out of what a connection needs.
func isShortage(err error) bool {
	for _, errno := range []syscall.Errno{
		syscall.EMFILE, syscall.ENFILE, syscall.EADDRNOTAVAIL, syscall.ENOBUFS, syscall.ENOMEM,
	} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// isNoAddress reports whether there is no local address with a port to connect from.
func isNoAddress(err error) bool { return errors.Is(err, syscall.EADDRNOTAVAIL) }
