package drivertest_test

import (
	"context"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestMain(m *testing.M) { memcachedtest.Main(m) }

func TestCallsCoverEveryMethodWithAContext(t *testing.T) {
	t.Parallel()
	covered := make(map[string]bool)
	names := make(map[string]bool)
	for _, call := range drivertest.Calls {
		method, _, _ := strings.Cut(call.Name, " ")
		covered[method] = true
		assert.False(t, names[call.Name], "%s is there twice", call.Name)
		names[call.Name] = true
	}
	ctx := reflect.TypeFor[context.Context]()
	db := reflect.TypeFor[*memcacheddriver.MemcachedDB]()
	found := 0
	for i := range db.NumMethod() {
		method := db.Method(i)
		// Open talks to no server, whatever its context.
		if method.Type.NumIn() > 1 && method.Type.In(1) == ctx && method.Name != "Open" {
			found++
			assert.True(t, covered[method.Name], "no call of %s", method.Name)
		}
	}
	assert.Equal(t, len(covered), found, "a call of no such method")
}

func TestCallsSucceedOnAMissAndOnAHit(t *testing.T) {
	t.Parallel()
	db := drivertest.OpenShared(t, memcacheddriver.WithTTLQuery())
	for _, call := range drivertest.Calls {
		key := drivertest.Key()
		assert.NoError(t, call.Run(t.Context(), db, key), "%s, a miss", call.Name)
		require.NoError(t, db.Set(t.Context(), key, []byte("1"), 0))
		assert.NoError(t, call.Run(t.Context(), db, key), "%s, a hit", call.Name)
	}
}

func TestCallsTalkToAServer(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"*": memcachedtest.HangUp})
	db := drivertest.Open(t, f.Addr(), memcacheddriver.WithTTLQuery(), memcacheddriver.WithServerFailureLimit(0, 0))
	for _, call := range drivertest.Calls {
		before := f.Count("*")
		assert.Error(t, call.Run(t.Context(), db, "k"), call.Name)
		assert.Greater(t, f.Count("*"), before, call.Name)
	}
}

// By what the driver itself refuses, before anything is sent.
func TestCallsNameTheirKeys(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"delete": memcachedtest.Say("DELETED\r\n")})
	db := drivertest.Open(t, f.Addr(), memcacheddriver.WithTTLQuery())
	for _, call := range drivertest.Calls {
		received := len(f.Received())
		if call.Keys > 0 {
			assert.ErrorIs(t, call.Run(t.Context(), db, ""), kv.ErrKeyEmpty, call.Name)
		}
		require.NoError(t, call.Run(t.Context(), db, "the-key"), call.Name)
		sent := f.Received()[received:]
		assert.Equal(t, call.Keys > 0 || call.Name == "Do", strings.Contains(sent, "the-key"), call.Name)
		assert.Equal(t, call.Keys == 2, strings.Contains(sent, drivertest.Other), call.Name)
	}
}
