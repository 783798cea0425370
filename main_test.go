package memcacheddriver_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// TestMain fails the run where a goroutine or a connection outlives the tests.
func TestMain(m *testing.M) {
	before := openSockets()
	code := memcachedtest.Run(m)
	if err := goleak.Find(); err != nil {
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
