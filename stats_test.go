package memcacheddriver_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestStats(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, addrs := startServers(t, 2)
	db := openDB(t, strings.Join([]string{addrs[1], addrs[0], addrs[1]}, ","))
	require.Len(t, db.Stats(), 2, "a server that is listed twice is one")
	for i, addr := range []string{addrs[1], addrs[0]} {
		assert.Equal(t, memcacheddriver.ServerStats{Addr: addr, State: memcacheddriver.ServerUp}, db.Stats()[i], "the order of the DSN")
	}
	require.NoError(t, db.Ping(ctx))
	require.NoError(t, db.Ping(ctx))
	for _, st := range db.Stats() {
		assert.Equal(t, memcacheddriver.ServerStats{Addr: st.Addr, State: memcacheddriver.ServerUp, Idle: 1, Dials: 1}, st)
	}
	require.NoError(t, db.Do(ctx, func(c *memcache.Client) error {
		err := c.Ping()
		for _, st := range db.Stats() {
			assert.Equal(t, 1, st.InUse)
			assert.Zero(t, st.Idle)
		}
		return err
	}))
	for _, st := range db.Stats() {
		assert.Zero(t, st.InUse)
		assert.Equal(t, 1, st.Idle)
	}

	require.NoError(t, db.Close())
	assert.Nil(t, db.Stats())
	require.NoError(t, db.Open(ctx, addrs[0]))
	assert.Zero(t, db.Stats()[0].Dials, "the counters begin at Open")
}

func TestStatsOfARestart(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server := memcachedtest.Start(t)
	db := openDB(t, server.Addr(), memcacheddriver.WithServerFailureLimit(2, time.Hour))
	useAtOnce(t, db, 3)
	server.Restart()
	require.NoError(t, db.Ping(ctx))
	st := db.Stats()[0]
	assert.EqualValues(t, 3, st.StaleConns)
	assert.EqualValues(t, 4, st.Dials)
	assert.Zero(t, st.DialErrors)

	server.Kill()
	for range 5 {
		assert.Error(t, db.Ping(ctx))
	}
	st = db.Stats()[0]
	assert.Equal(t, memcacheddriver.ServerDown, st.State)
	// The first of the two failures may be that of a connection used a moment ago.
	assert.Contains(t, []uint64{1, 2}, st.DialErrors)
	assert.Equal(t, 4+st.DialErrors, st.Dials, "a server that is down was dialled")
	assert.Zero(t, st.Idle)
}

func TestStatsOfWaiting(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	addr := startScripted(t, func(c net.Conn) {
		answer(c, func(string) string { cancel(); return "\r" })
	})
	db := openDB(t, addr, memcacheddriver.WithTimeout(time.Second), memcacheddriver.WithServerFailureLimit(0, 0))
	for range 2 {
		_, err := db.Get(ctx, "key")
		assert.ErrorIs(t, err, context.Canceled)
	}
	st := db.Stats()[0]
	assert.EqualValues(t, 1, st.Cancelled, "the second call waited for no server")
	assert.Zero(t, st.Timeouts, "a call that its caller ended is no timeout of the driver's")
	assert.EqualValues(t, 1, st.Dials)

	_, err := db.Get(t.Context(), "key")
	require.Error(t, err)
	assert.NotErrorIs(t, err, context.DeadlineExceeded)
	st = db.Stats()[0]
	assert.EqualValues(t, 1, st.Cancelled)
	assert.EqualValues(t, 1, st.Timeouts)
	assert.Zero(t, st.DialErrors)
	assert.Zero(t, st.InUse)
}
