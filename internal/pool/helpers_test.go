package pool_test

import (
	"crypto/tls"
	"testing"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// openHung are drivers that hang, each somewhere else, and that no timeout of
// their own ends.
var openHung = map[string]func(t *testing.T) *memcacheddriver.MemcachedDB{
	"connecting": func(t *testing.T) *memcacheddriver.MemcachedDB {
		return openPatient(t, memcachedtest.BlackHole(t))
	},
	"the TLS handshake": func(t *testing.T) *memcacheddriver.MemcachedDB {
		return openFake(t, memcachedtest.Script{"*": memcachedtest.Hang}, driver.WithTLSConfig(&tls.Config{}))
	},
	"authentication": func(t *testing.T) *memcacheddriver.MemcachedDB {
		return openFake(t, memcachedtest.Script{"version": memcachedtest.Hang}, memcacheddriver.WithCredentials("user", "password"))
	},
	"the answer to the credentials": func(t *testing.T) *memcacheddriver.MemcachedDB {
		return openFake(t, memcachedtest.Script{
			"version": memcachedtest.Say("CLIENT_ERROR unauthenticated\r\n"),
			"set":     memcachedtest.Hang,
		}, memcacheddriver.WithCredentials("user", "password"))
	},
	"the question for meta": func(t *testing.T) *memcacheddriver.MemcachedDB {
		return openFake(t, memcachedtest.Script{"version": memcachedtest.Hang})
	},
	"the rest of its answer": func(t *testing.T) *memcacheddriver.MemcachedDB {
		return openFake(t, memcachedtest.Script{"mn": memcachedtest.Hang})
	},
	"the request": func(t *testing.T) *memcacheddriver.MemcachedDB {
		return openFake(t, hangsAfterDial)
	},
	"a stopped server with idle connections": func(t *testing.T) *memcacheddriver.MemcachedDB {
		server := memcachedtest.Start(t)
		db := openPatient(t, server.Addr())
		drivertest.Fill(t, db, 8)
		server.Stop()
		return db
	},
	"a stopped server over TLS": func(t *testing.T) *memcacheddriver.MemcachedDB {
		server, config := memcachedtest.StartTLS(t)
		db := openPatient(t, server.Addr(), driver.WithTLSConfig(config))
		drivertest.Fill(t, db, 8)
		server.Stop()
		return db
	},
}

// openPatient opens a driver that waits for ever and takes one failure for the
// end of its server.
func openPatient(t *testing.T, addr string, opts ...driver.Option) *memcacheddriver.MemcachedDB {
	t.Helper()
	return drivertest.Open(t, addr, append(opts, memcacheddriver.WithTTLQuery(), memcacheddriver.WithTimeout(drivertest.Never),
		driver.WithDialTimeout(drivertest.Never), memcacheddriver.WithServerFailureLimit(1, drivertest.Never))...)
}

func openFake(t *testing.T, script memcachedtest.Script, opts ...driver.Option) *memcacheddriver.MemcachedDB {
	t.Helper()
	return openPatient(t, memcachedtest.StartFake(t, script).Addr(), opts...)
}

// hangsAfterDial answers what every dial asks and no command after it.
var hangsAfterDial = memcachedtest.Script{"mn": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
	c.Say("MN\r\n")
	c.Hang()
}}
