package drivertest

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

// OpErrors returns all OpErrors of an error, those of a batch too.
func OpErrors(err error) (all []*memcacheddriver.OpError) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			all = append(all, OpErrors(e)...)
		}
		return all
	}
	var op *memcacheddriver.OpError
	if errors.As(err, &op) {
		all = append(all, op)
	}
	return all
}

// RequireOpError returns err's only OpError.
func RequireOpError(t testing.TB, err error) *memcacheddriver.OpError {
	t.Helper()
	all := OpErrors(err)
	require.Len(t, all, 1, "%v", err)
	return all[0]
}
