package memcachedtest

import (
	"fmt"
	"os"
	"sync"
	"testing"
)

// shared is the server of [Addr].
var shared struct {
	sync.Mutex
	addr   string  // "" until the first call
	server *Server // nil if MEMCACHED_ADDR named one
}

// Addr returns the address of a memcached that all tests of the binary share:
// the one that MEMCACHED_ADDR names, else one that the first call starts.
// Tests that share it must not flush it nor assume that it is empty. End it
// with [Main] or [Shutdown].
func Addr(t testing.TB) string {
	t.Helper()
	addr, err := Shared()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// Shared is [Addr] for a TestMain.
func Shared() (addr string, err error) {
	shared.Lock()
	defer shared.Unlock()
	if shared.addr == "" {
		err = startShared()
	}
	return shared.addr, err
}

func startShared() error {
	if addr := os.Getenv("MEMCACHED_ADDR"); addr != "" {
		if err := answers(addr); err != nil {
			return fmt.Errorf("memcachedtest: no memcached answers at MEMCACHED_ADDR=%s: %w", addr, err)
		}
		shared.addr = addr
		return nil
	}
	bin, err := binary()
	if err != nil {
		return err
	}
	dir, err := scratchDir()
	if err != nil {
		return err
	}
	s := &Server{bin: bin, dir: dir}
	if err := s.start(); err != nil {
		s.close()
		return fmt.Errorf("memcachedtest: %w", err)
	}
	shared.addr, shared.server = s.addr, s
	return nil
}

// Shutdown ends the server that [Addr] started, if it did.
func Shutdown() {
	shared.Lock()
	defer shared.Unlock()
	if shared.server != nil {
		shared.server.close()
	}
	shared.addr, shared.server = "", nil
}
