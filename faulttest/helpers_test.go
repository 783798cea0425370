package faulttest

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/bradfitz/gomemcache/memcache"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// never is a timeout that a test cannot wait for.
const never = time.Minute

// network is a memcached behind a proxy.
type network struct {
	*toxiproxy.Proxy
	server *memcachedtest.Server
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	server := memcachedtest.Start(t)
	proxy := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), t.Name(), "127.0.0.1:0", server.Addr())
	require.NoError(t, proxy.Start())
	t.Cleanup(proxy.Stop)
	return &network{proxy, server}
}

// toxic puts a fault on what the server sends ("downstream") or gets
// ("upstream") and returns how to end it.
func (n *network) toxic(t *testing.T, kind, direction string, attributes map[string]any) (end func()) {
	t.Helper()
	spec, err := json.Marshal(map[string]any{"name": kind + direction, "type": kind, "stream": direction, "attributes": attributes})
	require.NoError(t, err)
	_, err = n.Toxics.AddToxicJson(strings.NewReader(string(spec)))
	require.NoError(t, err)
	return func() { require.NoError(t, n.Toxics.RemoveToxic(context.Background(), kind+direction)) }
}

func open(t *testing.T, addr string, opts ...driver.Option) *memcacheddriver.MemcachedDB {
	t.Helper()
	db := memcacheddriver.New()
	require.NoError(t, db.Open(context.Background(), addr, opts...))
	t.Cleanup(func() { db.Close() })
	return db
}

func poll(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		require.True(t, time.Now().Before(end), "waited in vain: %s", what)
	}
}

// calls are some of each kind.
func calls(db *memcacheddriver.MemcachedDB) map[string]func(ctx context.Context) error {
	return map[string]func(ctx context.Context) error{
		"Get": func(ctx context.Context) error {
			v, err := db.Get(ctx, "k")
			if err == nil && string(v) != "v" {
				err = fmt.Errorf("the value is %q", v)
			}
			return err
		},
		"Set": func(ctx context.Context) error { return db.Set(ctx, "k", []byte("v"), 0) },
		"MGet": func(ctx context.Context) error {
			v, err := db.MGet(ctx, []string{"k", "l"})
			if err == nil && string(v[0]) != "v" {
				err = fmt.Errorf("the values are %q", v)
			}
			return err
		},
		"MSet": func(ctx context.Context) error {
			return db.MSet(ctx, map[string][]byte{"k": []byte("v"), "m": []byte("w")}, 0)
		},
		"Exists": func(ctx context.Context) error { _, err := db.Exists(ctx, "k"); return err },
		"CompareAndSwap": func(ctx context.Context) error {
			return db.CompareAndSwap(ctx, "k", func(b []byte) ([]byte, error) { return b, nil })
		},
		"Do": func(ctx context.Context) error {
			return db.Do(ctx, func(c *memcache.Client) error { _, err := c.GetMulti([]string{"k", "l"}); return err })
		},
		"Ping": db.Ping,
	}
}

func requireIdle(t *testing.T, db *memcacheddriver.MemcachedDB) {
	t.Helper()
	for _, s := range db.Stats() {
		require.Zero(t, s.InUse, "%+v", s)
	}
}
