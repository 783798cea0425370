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
