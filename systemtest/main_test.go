// Package systemtest tests the whole driver: beside models of what it stores, on
// a network with faults, and by the hands of a newcomer. It is a module of its
// own to keep what that needs out of the driver's go.mod.
package systemtest

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// toxiproxy leaves goroutines of its own where a connection ends while a fault
// holds bytes of it.
func TestMain(m *testing.M) {
	const toxiproxy = "github.com/Shopify/toxiproxy/v2"
	memcachedtest.Main(m,
		goleak.IgnoreAnyFunction(toxiproxy+"/toxics.(*ToxicStub).Run"),
		goleak.IgnoreAnyFunction(toxiproxy+".(*ToxicLink).read"),
		goleak.IgnoreAnyFunction(toxiproxy+".(*ToxicLink).write"))
}
