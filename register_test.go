package memcacheddriver_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestRegistryOpensTheDriver(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	assert.Contains(t, kv.Drivers(), "memcached")
	drv, err := kv.OpenDriver(ctx, "memcached", memcachedtest.Addr(t)+"?ttl_query=true&max_idle_conns=3")
	require.NoError(t, err)
	require.IsType(t, &memcacheddriver.MemcachedDB{}, drv)
	store, err := kv.Open(drv)
	require.NoError(t, err)
	key := drivertest.Key()
	require.NoError(t, store.Set(ctx, key, "value"))
	ttl, err := store.TTL(ctx, key)
	require.NoError(t, err, "a parameter of the DSN was lost")
	assert.Equal(t, memcacheddriver.NoExpiry, ttl)
	require.NoError(t, store.Close())

	_, err = kv.OpenDriver(ctx, "memcached", "mc1?timout=2s")
	assert.ErrorIs(t, err, memcacheddriver.ErrInvalidDSN)
}

func TestRegistryOpensADriverOfItsOwnEachTime(t *testing.T) {
	t.Parallel()
	a, err := kv.OpenDriver(t.Context(), "memcached", memcachedtest.Addr(t))
	require.NoError(t, err)
	b, err := kv.OpenDriver(t.Context(), "memcached", memcachedtest.Addr(t))
	require.NoError(t, err)
	require.NoError(t, a.Close())
	require.NoError(t, b.Ping(t.Context()))
	require.NoError(t, b.Close())
}

// One that does nothing but require this module.
func TestAFreshModuleFindsTheDriverRegistered(t *testing.T) {
	t.Parallel()
	here, err := os.Getwd()
	require.NoError(t, err)
	sum, err := os.ReadFile("go.sum")
	require.NoError(t, err)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": fmt.Sprintf(`module example.com/fresh

go 1.25.7

require github.com/xraph/grove/kv/drivers/memcacheddriver v0.0.0

replace github.com/xraph/grove/kv/drivers/memcacheddriver => %q
`, here),
		"go.sum": string(sum), // what go get would write, without asking the network
		"main.go": `package main

import (
	"context"
	"fmt"
	"os"

	"github.com/xraph/grove/kv"
	_ "github.com/xraph/grove/kv/drivers/memcacheddriver"
)

func main() {
	drv, err := kv.OpenDriver(context.Background(), "memcached", "mc1,mc2")
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(drv.Name())
}
`,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	// -mod=mod is what go get does: it fills in the indirect requirements.
	cmd := exec.CommandContext(t.Context(), "go", "run", "-mod=mod", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off", "GOPROXY=off")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Equal(t, "memcached\n", string(out))
}
