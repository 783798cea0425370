package pool

import (
	"errors"
	"syscall"
)

const errRefused = syscall.Errno(10061) // WSAECONNREFUSED

// isReset reports whether the other side reset the connection.
func isReset(err error) bool {
	return errors.Is(err, syscall.WSAECONNRESET) || errors.Is(err, syscall.WSAECONNABORTED)
}

// isShortage reports whether this machine has run out of what a connection needs:
// WSAEMFILE, WSAEADDRNOTAVAIL, WSAENOBUFS.
func isShortage(err error) bool {
	for _, errno := range []syscall.Errno{10024, 10049, 10055} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// isNoAddress reports whether there is no local address with a port to connect from.
func isNoAddress(err error) bool { return errors.Is(err, syscall.Errno(10049)) }
