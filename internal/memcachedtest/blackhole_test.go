//go:build unix

package memcachedtest_test

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestBlackHoleNeitherAcceptsNorRefuses(t *testing.T) {
	t.Parallel()
	_, err := net.DialTimeout("tcp", memcachedtest.BlackHole(t), 100*time.Millisecond)
	var timeout net.Error
	require.ErrorAs(t, err, &timeout)
	assert.True(t, timeout.Timeout(), "%v", err)
}
