package discovery_test

import (
	"testing"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestMain(m *testing.M) { memcachedtest.Main(m) }
