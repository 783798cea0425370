// Package faulttest tests the driver over a network with faults, which
// toxiproxy makes. It is a module of its own to keep toxiproxy out of the
// driver's go.mod.
package faulttest

import (
	"testing"

	"go.uber.org/goleak"
)

// toxiproxy leaves goroutines of its own behind where a connection ends while a
// fault holds bytes of it.
func TestMain(m *testing.M) {
	const toxiproxy = "github.com/Shopify/toxiproxy/v2"
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction(toxiproxy+"/toxics.(*ToxicStub).Run"),
		goleak.IgnoreAnyFunction(toxiproxy+".(*ToxicLink).read"),
		goleak.IgnoreAnyFunction(toxiproxy+".(*ToxicLink).write"))
}
