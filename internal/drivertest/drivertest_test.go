package drivertest_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestFillLeavesIdleConnections(t *testing.T) {
	t.Parallel()
	db := drivertest.Open(t, memcachedtest.StartFake(t, nil).Addr())
	drivertest.Fill(t, db, 5)
	drivertest.RequireIdle(t, db)
	assert.Equal(t, 5, drivertest.Stat(t, db).Idle)
	assert.EqualValues(t, 5, drivertest.Dials(db))
}

func TestOpenAskedLeavesAConnectionToEachServer(t *testing.T) {
	t.Parallel()
	a, b := memcachedtest.StartFake(t, nil), memcachedtest.StartFake(t, nil)
	db := drivertest.OpenAsked(t, a.Addr()+","+b.Addr())
	for _, s := range db.Stats() {
		assert.Equal(t, 1, s.Idle)
		assert.EqualValues(t, 1, s.Dials)
	}
}

func TestKeysOfGoWhereTheDriverSendsThem(t *testing.T) {
	t.Parallel()
	a, b := memcachedtest.StartFake(t, nil), memcachedtest.StartFake(t, nil)
	db := drivertest.Open(t, a.Addr()+","+b.Addr())
	keys := drivertest.KeysOf(t, []string{a.Addr(), b.Addr()}, 3)
	for i, f := range []*memcachedtest.Fake{a, b} {
		require.Len(t, keys[i], 3)
		for _, key := range keys[i] {
			_, _ = db.Get(t.Context(), key)
			assert.Contains(t, f.Received(), key)
		}
	}
}

func TestMetaAndClassicDifferInTheProtocol(t *testing.T) {
	t.Parallel()
	said := map[string]bool{}
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		db, key := drivertest.Open(t, addr), drivertest.Key()
		require.NoError(t, db.Set(t.Context(), key, drivertest.Value(key), 0))
		values, err := db.MGet(t.Context(), []string{key, drivertest.Key()})
		require.NoError(t, err)
		assert.Equal(t, 1, drivertest.AssertValues(t, []string{key, "absent"}, values))
		left, ok := drivertest.ServerTTL(t, memcachedtest.Addr(t), key)
		assert.True(t, ok)
		assert.EqualValues(t, -1, left)
		said[drivertest.AskServer(t, addr, "mn")] = true
	})
	assert.Equal(t, map[string]bool{"MN": true, "ERROR": true}, said)
}

func TestOpErrorsOfABatch(t *testing.T) {
	t.Parallel()
	db := drivertest.Open(t, memcachedtest.StartFake(t, nil).Addr())
	_, err := db.Get(t.Context(), "")
	one := drivertest.RequireOpError(t, err)
	assert.Equal(t, "get", one.Op)
	assert.Equal(t, []*memcacheddriver.OpError{one, one}, drivertest.OpErrors(errors.Join(err, errors.New("other"), err)))
	assert.Empty(t, drivertest.OpErrors(nil))
}

func TestLogFindsLines(t *testing.T) {
	t.Parallel()
	l := drivertest.NewLog()
	f := memcachedtest.StartFake(t, nil)
	db := drivertest.Open(t, f.Addr(), driver.WithLogger(l), memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
	f.Close()
	assert.Error(t, db.Ping(t.Context()))
	l.Await(t, 1, "warn: ", f.Addr(), "is down")
	assert.Len(t, l.Lines("warn: ", f.Addr(), "is down"), 1)
	assert.Empty(t, l.Lines(f.Addr(), "is up"))
	assert.Len(t, l.Lines(), 1)
}
