package memcacheddriver_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

func TestInfoClaimsWhatTheDriverImplements(t *testing.T) {
	t.Parallel()
	var db driver.Driver = memcacheddriver.New()
	assert.Equal(t, "memcached", db.Name())
	info := db.Info()
	assert.Equal(t, "memcached", info.Name)
	assert.NotEmpty(t, info.Version)
	for capability, has := range map[driver.Capability]bool{
		driver.CapTTL: true, driver.CapCAS: true, driver.CapBatch: true,
		driver.CapScan: false, driver.CapPubSub: false, driver.CapTransaction: false,
		driver.CapStreams: false, driver.CapSortedSet: false, driver.CapCRDT: false,
	} {
		assert.Equal(t, has, info.Has(capability), "capability %d", capability)
	}
	_, scan := db.(driver.ScanDriver)
	_, pubsub := db.(driver.PubSubDriver)
	_, transactions := db.(driver.TransactionDriver)
	assert.False(t, scan || pubsub || transactions, "an interface is implemented with nothing to it")
}
