package memcacheddriver_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestCredentialsInTheClearAreWarnedOf(t *testing.T) {
	t.Parallel()
	const password = "s3cret"
	for _, c := range []struct {
		dsn  string
		warn []string // servers
	}{
		{"cache.example", []string{"cache.example:11211"}},
		{"localhost,a.example,127.0.0.1,b.example:1", []string{"a.example:11211", "b.example:1"}},
		{"10.1.2.3", []string{"10.1.2.3:11211"}},
		{"localhost,127.0.0.7,[::1],/run/memcached.sock", nil},
		{"cache.example?tls=true", nil},
	} {
		l := drivertest.NewLog()
		drivertest.Open(t, c.dsn, memcacheddriver.WithCredentials("ann", password), driver.WithLogger(l))
		l.Await(t, len(c.warn))
		for _, server := range c.warn {
			require.Len(t, l.Lines("warn", "clear", server), 1, c.dsn)
		}
		require.Empty(t, l.Lines(password))

		l = drivertest.NewLog()
		drivertest.Open(t, c.dsn, driver.WithLogger(l))
		require.Empty(t, l.Lines(), "no credentials, no warning")
	}
}

// Plain gomemcache clients with the same list find each other's data, also with
// a server listed twice.
func TestKeysMapAsInGomemcache(t *testing.T) {
	t.Parallel()
	_, addrs := drivertest.StartServers(t, 3)
	for name, list := range map[string][]string{
		"three servers": addrs,
		"one twice":     {addrs[0], addrs[1], addrs[0], addrs[2]},
		"another order": {addrs[2], addrs[0], addrs[1]},
	} {
		plain := memcache.New(list...)
		plain.Timeout = 10 * time.Second
		db := drivertest.Open(t, strings.Join(list, ", "))

		keys := drivertest.Keys(100)
		var batch []string
		for i, key := range keys {
			switch i % 3 {
			case 0:
				require.NoError(t, db.Set(t.Context(), key, drivertest.Value(key), 0))
			case 1:
				require.NoError(t, plain.Set(&memcache.Item{Key: key, Value: drivertest.Value(key)}))
			case 2:
				batch = append(batch, key)
			}
		}
		require.NoError(t, db.MSet(t.Context(), drivertest.Pairs(batch), 0))

		values, err := db.MGet(t.Context(), keys)
		require.NoError(t, err)
		assert.Equal(t, 100, drivertest.AssertValues(t, keys, values), "%s: MGet", name)
		for _, key := range keys {
			want := drivertest.Value(key)
			got, err := db.Get(t.Context(), key)
			require.NoError(t, err, "%s: %s is not where gomemcache puts it", name, key)
			assert.Equal(t, want, got)
			item, err := plain.Get(key)
			require.NoError(t, err, "%s: gomemcache does not find %s", name, key)
			assert.Equal(t, want, item.Value)
			item, err = db.Client().Get(key)
			require.NoError(t, err, "%s: the driver's client does not find %s", name, key)
			assert.Equal(t, want, item.Value)
		}
		n, err := db.Exists(t.Context(), keys...)
		require.NoError(t, err)
		assert.EqualValues(t, 100, n)

		// What one deletes is gone for the other.
		n, err = db.Delete(t.Context(), keys...)
		require.NoError(t, err)
		assert.EqualValues(t, 100, n)
		items, err := plain.GetMulti(keys)
		require.NoError(t, err)
		assert.Empty(t, items)
		require.NoError(t, plain.Close())
	}
}

// One dead server of three fails its own keys alone, and by name.
func TestAServerThatIsDownFailsItsOwnKeysAlone(t *testing.T) {
	t.Parallel()
	servers, addrs := drivertest.StartServers(t, 3)
	db := drivertest.Open(t, strings.Join(addrs, ","), memcacheddriver.WithTTLQuery())
	keys := drivertest.KeysOf(t, addrs, 1)
	servers[1].Kill()
	for _, call := range drivertest.Calls {
		if call.Keys != 1 {
			continue
		}
		for _, i := range []int{0, 2} {
			require.NoError(t, db.Set(t.Context(), keys[i][0], []byte("1"), 0))
			assert.NoError(t, call.Run(t.Context(), db, keys[i][0]), call.Name)
		}
		err := call.Run(t.Context(), db, keys[1][0])
		require.Error(t, err, call.Name)
		op := drivertest.RequireOpError(t, err)
		assert.Equal(t, addrs[1], op.Server, call.Name)
		assert.Equal(t, keys[1], op.Keys, call.Name)
		assert.NotErrorIs(t, err, kv.ErrNotFound, "%s: a server that is down is no miss", call.Name)
		assert.NotErrorIs(t, err, context.DeadlineExceeded, call.Name)
	}
	require.Equal(t, memcacheddriver.ServerDown, db.Stats()[1].State)

	servers[1].Restart()
	memcachedtest.Eventually(t, func() bool { return db.Set(t.Context(), keys[1][0], nil, 0) == nil }, "the driver notices that it is back")
}
