package memcachedtest

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

// Main runs a package's tests, ends their shared server, and exits. It fails the
// run where a goroutine or a socket outlives the tests, but for the goroutines
// that options ignore. It is for TestMain:
//
//	func TestMain(m *testing.M) { memcachedtest.Main(m) }
func Main(m *testing.M, options ...goleak.Option) {
	before := openSockets()
	code := m.Run()
	Shutdown()
	if err := goleak.Find(options...); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if after := openSockets(); after > before {
		fmt.Fprintf(os.Stderr, "%d sockets are open that were not before the tests\n", after-before)
		code = 1
	}
	os.Exit(code)
}

// openSockets counts the sockets of this process; 0 where the system does not
// list them.
func openSockets() int {
	const dir = "/proc/self/fd"
	entries, _ := os.ReadDir(dir)
	n := 0
	for _, e := range entries {
		if to, err := os.Readlink(dir + "/" + e.Name()); err == nil && strings.HasPrefix(to, "socket:") {
			n++
		}
	}
	return n
}
