//go:build !unix

package memcachedtest

import "testing"

// BlackHole fails the test: the queue of a listener cannot be made short here.
func BlackHole(t testing.TB) (addr string) {
	t.Helper()
	t.Fatal("memcachedtest: there is no BlackHole on this system")
	return ""
}
