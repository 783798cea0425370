package cart

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// Where this repository is tested without Docker, the memcached is a process.
func TestMain(m *testing.M) {
	if os.Getenv("MEMCACHED_IMAGE") == "" && exec.Command("docker", "info").Run() != nil {
		addr, err := memcachedtest.Shared()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Setenv("MEMCACHED_ADDR", addr)
	}
	code := m.Run()
	memcachedtest.Shutdown()
	os.Exit(code)
}
