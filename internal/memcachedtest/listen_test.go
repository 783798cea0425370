package memcachedtest_test

import (
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestListenEndsWithItsTest(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	t.Run("running", func(t *testing.T) {
		addr := memcachedtest.Listen(t, func(c net.Conn) {
			defer close(done)
			<-t.Context().Done()
		})
		dial(t, addr)
		c := dial(t, memcachedtest.Listen(t, func(c net.Conn) { _, _ = io.WriteString(c, "hello") }))
		said, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Equal(t, "hello", string(said))
	})
	select {
	case <-done:
	default:
		t.Error("a serve outlived the test")
	}
}
