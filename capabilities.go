package memcacheddriver

import "github.com/xraph/grove/kv/driver"

// What the driver does not do (scan, publish and subscribe, transactions) it
// does not implement, so that the store answers [kv.ErrNotSupported].
var (
	_ driver.Driver      = (*MemcachedDB)(nil)
	_ driver.BatchDriver = (*MemcachedDB)(nil)
	_ driver.CASDriver   = (*MemcachedDB)(nil)
	_ driver.TTLDriver   = (*MemcachedDB)(nil)
)

// version is the driver's own.
const version = "1.0.0"

// Name returns "memcached".
func (db *MemcachedDB) Name() string { return "memcached" }

// Info returns the driver's name, version and capabilities: TTL, CAS (NX, XX and
// CompareAndSwap) and Batch.
func (db *MemcachedDB) Info() driver.DriverInfo {
	return driver.DriverInfo{
		Name:         db.Name(),
		Version:      version,
		Capabilities: driver.CapTTL | driver.CapCAS | driver.CapBatch,
	}
}
