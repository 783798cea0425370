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
