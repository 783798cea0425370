package memcacheddriver_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// Plain gomemcache with the same servers finds the keys where the driver puts them, with
// their prefix and nothing without it.
func TestKeyPrefixIsOnTheServersAlone(t *testing.T) {
	t.Parallel()
	_, addrs := drivertest.StartServers(t, 3)
	plain := memcache.New(addrs...)
	defer plain.Close()
	for _, distribution := range []string{"modulo", "ketama"} {
		for _, shared := range []bool{false, true} {
			const prefix = "app:"
			db := drivertest.Open(t, strings.Join(addrs, ",")+"?ttl_query=true&key_prefix="+prefix+"&distribution="+distribution)
			whole := drivertest.Open(t, strings.Join(addrs, ",")+"?distribution="+distribution)
			memcacheddriver.ShareAll(db, shared)
			ctx := t.Context()
			keys := drivertest.Keys(30)

			require.NoError(t, db.MSet(ctx, drivertest.Pairs(keys[:20]), 0))
			for _, key := range keys[20:] {
				stored, err := db.SetNX(ctx, key, drivertest.Value(key), 0)
				require.NoError(t, err)
				require.True(t, stored)
			}
			for _, key := range keys {
				value, err := whole.Get(ctx, prefix+key)
				require.NoError(t, err)
				assert.Equal(t, string(drivertest.Value(key)), string(value))
				_, err = whole.Get(ctx, key)
				assert.Equal(t, kv.ErrNotFound, err)
				if distribution == "modulo" {
					_, err = plain.Get(prefix + key)
					assert.NoError(t, err)
				}
				value, err = db.Get(ctx, key)
				require.NoError(t, err)
				assert.Equal(t, string(drivertest.Value(key)), string(value))
				require.NoError(t, db.Expire(ctx, key, time.Hour))
				left, err := db.TTL(ctx, key)
				require.NoError(t, err)
				assert.InDelta(t, time.Hour, left, float64(10*time.Second))
			}
			values, err := db.MGet(ctx, append(keys, keys[0]))
			require.NoError(t, err)
			assert.Equal(t, 31, drivertest.AssertValues(t, append(keys, keys[0]), values))
			found, err := db.Exists(ctx, append(keys, "gone")...)
			require.NoError(t, err)
			assert.EqualValues(t, 30, found)

			require.NoError(t, db.CompareAndSwap(ctx, keys[0], appending("!")))
			requireValue(t, whole, prefix+keys[0], string(drivertest.Value(keys[0]))+"!")
			native := db.Client()
			require.NoError(t, native.Set(&memcache.Item{Key: prefix + "n", Value: []byte("1")}))
			requireValue(t, db, "n", "1")

			require.NoError(t, db.Set(ctx, keys[1], []byte("short"), 300*time.Millisecond))
			require.NoError(t, db.MSet(ctx, map[string][]byte{keys[2]: []byte("short"), keys[3]: []byte("short")}, 300*time.Millisecond))
			memcachedtest.Eventually(t, func() bool {
				n, err := whole.Exists(ctx, prefix+keys[1], prefix+keys[2], prefix+keys[3])
				return err == nil && n == 0
			}, "a TTL under a second ends")

			deleted, err := db.Delete(ctx, keys...)
			require.NoError(t, err)
			assert.EqualValues(t, 27, deleted)
			deleted, err = whole.Delete(ctx, prefix+"n")
			require.NoError(t, err)
			assert.EqualValues(t, 1, deleted)
		}
	}
}

func TestKeyPrefixIsNotInErrors(t *testing.T) {
	t.Parallel()
	const prefix = "pre-fix:"
	refusing := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.Say("SERVER_ERROR no\r\n")))
	dead := memcachedtest.StartFake(t, nil)
	dead.Close()
	closed := drivertest.OpenShared(t, memcacheddriver.WithKeyPrefix(prefix))
	require.NoError(t, closed.Close())
	for what, db := range map[string]*memcacheddriver.MemcachedDB{
		"refuses": drivertest.Open(t, refusing.Addr(), memcacheddriver.WithKeyPrefix(prefix), memcacheddriver.WithTTLQuery()),
		"is dead": drivertest.Open(t, dead.Addr(), memcacheddriver.WithKeyPrefix(prefix), memcacheddriver.WithTTLQuery()),
		"closed":  closed,
	} {
		for _, call := range keyCalls() {
			err := call.Run(t.Context(), db, "key")
			if !assert.Error(t, err, "%s, the server %s", call.Name, what) {
				continue
			}
			assert.NotContains(t, err.Error(), prefix, "%s, the server %s", call.Name, what)
			for _, key := range drivertest.RequireOpError(t, err).Keys {
				assert.Contains(t, []string{"key", drivertest.Other}, key, "%s, the server %s", call.Name, what)
			}
		}
	}
}

func TestKeyPrefixCountsForTheLengthOfAKey(t *testing.T) {
	t.Parallel()
	const prefix = "1234567890"
	db := drivertest.OpenShared(t, memcacheddriver.WithKeyPrefix(prefix), memcacheddriver.WithTTLQuery())
	longest := strings.Repeat("k", 240)
	for _, call := range keyCalls() {
		require.NoError(t, call.Run(t.Context(), db, longest), call.Name)
		err := call.Run(t.Context(), db, longest+"k")
		require.ErrorIs(t, err, memcacheddriver.ErrInvalidKey, call.Name)
		assert.ErrorContains(t, err, "10 bytes of the key prefix", call.Name)
		assert.ErrorIs(t, call.Run(t.Context(), db, ""), kv.ErrKeyEmpty, call.Name)
		assert.ErrorIs(t, call.Run(t.Context(), db, "a b"), memcacheddriver.ErrInvalidKey, call.Name)
	}
}

func TestKeyPrefixThatCannotBe(t *testing.T) {
	t.Parallel()
	for prefix, says := range map[string]string{
		"a b":                    "space",
		"a\n":                    "space",
		strings.Repeat("p", 250): "no room",
	} {
		err := memcacheddriver.New().Open(t.Context(), "mc1", memcacheddriver.WithKeyPrefix(prefix))
		require.ErrorIs(t, err, memcacheddriver.ErrInvalidOption)
		assert.ErrorContains(t, err, says)
		assert.ErrorContains(t, err, "WithKeyPrefix")
		escaped := strings.NewReplacer(" ", "%20", "\n", "%0A").Replace(prefix)
		err = memcacheddriver.New().Open(t.Context(), "mc1?key_prefix="+escaped)
		require.ErrorIs(t, err, memcacheddriver.ErrInvalidDSN)
		assert.ErrorContains(t, err, says)
		assert.NotContains(t, err.Error(), fmt.Sprintf("%.20s", prefix), "it may be part of a password")
	}
	require.NoError(t, drivertest.OpenShared(t, memcacheddriver.WithKeyPrefix(strings.Repeat("p", 249))).Set(t.Context(), "k", nil, 0))
}
