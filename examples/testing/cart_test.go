package cart

import (
	"cmp"
	"context"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

// startMemcached returns the address of a memcached in a container of the test's own, or
// of the one at MEMCACHED_ADDR where there is no Docker.
func startMemcached(t *testing.T) string {
	t.Helper()
	if addr := os.Getenv("MEMCACHED_ADDR"); addr != "" {
		return addr
	}
	c, err := testcontainers.Run(t.Context(), cmp.Or(os.Getenv("MEMCACHED_IMAGE"), "memcached:1.6-alpine"),
		testcontainers.WithExposedPorts("11211/tcp"),
		// The internal check needs a shell in the image.
		testcontainers.WithWaitStrategy(wait.ForListeningPort("11211/tcp").SkipInternalCheck()),
	)
	testcontainers.CleanupContainer(t, c)
	if err != nil {
		t.Fatal(err)
	}
	addr, err := c.PortEndpoint(t.Context(), "11211/tcp", "")
	if err != nil {
		t.Fatal(err)
	}
	// Docker accepts connections before the memcached does.
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for store := openStore(t, addr); ; time.Sleep(10 * time.Millisecond) {
		switch err := store.Ping(ctx); {
		case err == nil:
			return addr
		case ctx.Err() != nil:
			t.Fatal(err)
		}
	}
}

// openStore opens a store with keys that no other test has, so that tests can share a
// server.
func openStore(t *testing.T, addr string) *kv.Store {
	t.Helper()
	store, err := memcacheddriver.OpenStore(t.Context(), addr, memcacheddriver.WithKeyPrefix(t.Name()+":"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store
}

func TestCarts(t *testing.T) {
	carts := &Carts{Store: openStore(t, startMemcached(t))}
	if items, err := carts.Items(t.Context(), "ada"); err != nil || len(items) != 0 {
		t.Errorf("a cart that nobody has filled: %q, %v", items, err)
	}
	if err := carts.Put(t.Context(), "ada", "tea", "milk"); err != nil {
		t.Fatal(err)
	}
	items, err := carts.Items(t.Context(), "ada")
	if want := []string{"tea", "milk"}; err != nil || !slices.Equal(items, want) {
		t.Errorf("%q, %v; want %q", items, err, want)
	}
}

// What the code does while the cache is down is worth a test, too: nothing listens here.
func TestCartsWithoutACache(t *testing.T) {
	carts := &Carts{Store: openStore(t, "127.0.0.1:1")}
	if _, err := carts.Items(t.Context(), "ada"); err == nil {
		t.Error("a cache that is down is taken for an empty cart")
	}
}
