package memcacheddriver_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestTLSWorks(t *testing.T) {
	t.Parallel()
	server, config := memcachedtest.StartTLS(t)
	_, port, err := net.SplitHostPort(server.Addr())
	require.NoError(t, err)
	for host, name := range map[string]string{"127.0.0.1": "", "localhost": "localhost"} { // an IP address is not sent
		names := make(map[string]bool)
		config := config.Clone()
		config.VerifyConnection = func(s tls.ConnectionState) error {
			names[s.ServerName] = true
			return nil
		}
		db := connOpen(t, net.JoinHostPort(host, port), driver.WithTLSConfig(config), memcacheddriver.WithTTLQuery())
		require.NoError(t, db.Set(context.Background(), "k", make([]byte, 500_000), time.Hour))
		for _, call := range connCalls() {
			require.NoError(t, call.run(context.Background(), db), call.name)
		}
		item, err := db.Client().Get("k")
		require.NoError(t, err)
		require.Equal(t, "value", string(item.Value))
		require.Equal(t, uint64(1), connStats(t, db).Dials, "one connection is enough")
		require.Equal(t, map[string]bool{name: true}, names, "the server name is that of the address")
		require.Empty(t, config.ServerName, "the caller's config is the caller's")
	}
}

// A session ticket is unread bytes on a connection that is sound.
func TestTLSTicketsAreNoStaleness(t *testing.T) {
	t.Parallel()
	server, config := memcachedtest.StartTLS(t)
	config.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	db := connOpen(t, server.Addr(), driver.WithTLSConfig(config))
	for range 5 {
		require.NoError(t, db.Ping(context.Background()))
		time.Sleep(5 * time.Millisecond) // so that it is looked at
	}
	s := connStats(t, db)
	require.Equal(t, uint64(1), s.Dials)
	require.Zero(t, s.StaleConns)
}

func TestTLSServerName(t *testing.T) {
	t.Parallel()
	server, config := memcachedtest.StartTLS(t)
	_, port, err := net.SplitHostPort(server.Addr())
	require.NoError(t, err)
	addr := "localhost:" + port
	var asked atomic.Value
	for _, c := range []struct {
		name   string
		change func(c *tls.Config)
		want   string
		ok     bool
	}{
		{"of the address", func(*tls.Config) {}, "localhost", true},
		{"of the caller", func(c *tls.Config) { c.ServerName = "127.0.0.1" }, "", true},
		{"a wrong one of the caller", func(c *tls.Config) { c.ServerName = "other.example" }, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := config.Clone()
			config.VerifyConnection = func(s tls.ConnectionState) error {
				asked.Store(s.ServerName)
				return nil
			}
			c.change(config)
			db := connOpen(t, addr, driver.WithTLSConfig(config))
			err := db.Ping(context.Background())
			if !c.ok {
				var wrong x509.HostnameError
				require.ErrorAs(t, err, &wrong)
				require.ErrorContains(t, err, "other.example")
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, asked.Load())
		})
	}
	t.Run("also where the certificate is not verified", func(t *testing.T) {
		var name atomic.Value
		db := connOpen(t, addr, driver.WithTLSConfig(&tls.Config{
			InsecureSkipVerify: true,
			VerifyConnection:   func(s tls.ConnectionState) error { name.Store(s.ServerName); return nil },
		}))
		require.NoError(t, db.Ping(context.Background()))
		require.Equal(t, "localhost", name.Load(), "a proxy may need the name to route by")
	})
}

func TestTLSErrorsSayWhatIsWrong(t *testing.T) {
	t.Parallel()
	secure, config := memcachedtest.StartTLS(t)
	_, otherAuthority := memcachedtest.StartTLS(t)
	plain := memcachedtest.Start(t)
	for _, c := range []struct {
		name, addr string
		opts       []driver.Option
		want       string
		as         any
	}{
		{"an unknown authority", secure.Addr(), []driver.Option{driver.WithTLSConfig(otherAuthority)}, "certificate", new(x509.UnknownAuthorityError)},
		{"the system's authorities", secure.Addr() + "?tls=true", nil, "certificate", new(x509.UnknownAuthorityError)},
		{"TLS to a plain server", plain.Addr(), []driver.Option{driver.WithTLSConfig(config), memcacheddriver.WithTimeout(2 * time.Second), driver.WithDialTimeout(2 * time.Second)}, "TLS", nil},
		{"plain to a TLS server", secure.Addr(), []driver.Option{memcacheddriver.WithTimeout(2 * time.Second)}, "TLS", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			db := connOpen(t, c.addr, append(c.opts, memcacheddriver.WithServerFailureLimit(0, 0))...)
			for _, call := range connCalls() {
				if call.name == "TTL" {
					continue
				}
				err := call.run(context.Background(), db)
				require.Error(t, err, call.name)
				require.ErrorContains(t, err, c.want, call.name)
				if c.as != nil {
					require.ErrorAs(t, err, c.as, call.name)
				}
			}
			connRequireIdle(t, db)
		})
	}
}

// A certificate that is refused is the server's failure.
func TestTLSRefusalsCount(t *testing.T) {
	t.Parallel()
	server, _ := memcachedtest.StartTLS(t)
	db := connOpen(t, server.Addr()+"?tls=true")
	connDown(t, db, 3)
	err := db.Ping(context.Background())
	require.ErrorIs(t, err, memcacheddriver.ErrServerDown)
	require.ErrorContains(t, err, "certificate")
	require.Equal(t, uint64(3), connStats(t, db).DialErrors)
}
