package pool_test

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// It refuses connections with an error line, which is no answer to the question.
func TestAFullServerSpeaksMetaWhenThereIsRoomAgain(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t, "-c", "100")
	db := drivertest.Open(t, server.Addr(), memcacheddriver.WithTTLQuery(), memcacheddriver.WithServerFailureLimit(0, 0))
	ctx := t.Context()
	var others []net.Conn
	for range 200 {
		c, err := net.Dial("tcp", server.Addr())
		require.NoError(t, err)
		others = append(others, c)
	}
	memcachedtest.Eventually(t, func() bool {
		_, err := db.Exists(ctx, "k")
		return err != nil
	}, "the server refuses connections")
	for _, c := range others {
		c.Close()
	}
	memcachedtest.Eventually(t, func() bool { return db.Set(ctx, "k", []byte("v"), time.Minute) == nil }, "there is room")
	require.NoError(t, db.CompareAndSwap(ctx, "k", func([]byte) ([]byte, error) { return []byte("w"), nil }))
	ttl, err := db.TTL(ctx, "k")
	require.NoError(t, err)
	assert.Greater(t, ttl, 30*time.Second)
}
