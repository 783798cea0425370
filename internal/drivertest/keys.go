package drivertest

import (
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	runID   = strconv.FormatInt(time.Now().UnixNano(), 36)
	lastKey atomic.Int64
)

// Key returns a key that no other test uses, in no other run either.
func Key() string {
	return "test-" + runID + "-" + strconv.FormatInt(lastKey.Add(1), 10)
}

// Keys returns n of them.
func Keys(n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = Key()
	}
	return keys
}

// KeysOf returns, for each place in addrs, n new keys that plain gomemcache
// sends there.
func KeysOf(t testing.TB, addrs []string, n int) [][]string {
	t.Helper()
	var list memcache.ServerList
	require.NoError(t, list.SetServers(addrs...))
	keys := make([][]string, len(addrs))
	for missing := len(addrs); missing > 0; {
		key := Key()
		addr, err := list.PickServer(key)
		require.NoError(t, err)
		for i := range addrs {
			if addrs[i] == addr.String() && len(keys[i]) < n {
				if keys[i] = append(keys[i], key); len(keys[i]) == n {
					missing--
				}
				break
			}
		}
	}
	return keys
}

// Value returns a value that names its key.
func Value(key string) []byte { return []byte("value of " + key) }

// Pairs returns keys with their [Value]s.
func Pairs(keys []string) map[string][]byte {
	pairs := make(map[string][]byte, len(keys))
	for _, key := range keys {
		pairs[key] = Value(key)
	}
	return pairs
}

// AssertValues checks that values, as of an MGet of keys, are the keys' [Value]s
// or nil, and returns how many are not nil.
func AssertValues(t testing.TB, keys []string, values [][]byte) (found int) {
	t.Helper()
	if !assert.Len(t, values, len(keys)) {
		return 0
	}
	for i, v := range values {
		if v != nil {
			found++
			assert.Equal(t, string(Value(keys[i])), string(v))
		}
	}
	return found
}
