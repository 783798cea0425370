package memcacheddriver_test

import (
	"crypto/tls"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
)

func TestCredentialsNeedTLSToOtherMachines(t *testing.T) {
	t.Parallel()
	credentials := memcacheddriver.WithCredentials("ann-of-grove", "s3cret")
	insecure := memcacheddriver.WithInsecureCredentials()
	for _, c := range []struct {
		dsn     string
		opts    []driver.Option
		refused string // for the sake of which server
	}{
		{"cache.example", []driver.Option{credentials}, "cache.example:11211"},
		{"memcached://ann-of-grove:s3cret@cache.example", nil, "cache.example:11211"},
		{"localhost,127.0.0.1,b.example:1,/run/m", []driver.Option{credentials}, "b.example:1"},
		{"10.1.2.3", []driver.Option{credentials}, "10.1.2.3:11211"},
		{"[2001:db8::1]", []driver.Option{credentials}, "[2001:db8::1]:11211"},
		{"localhost.example", []driver.Option{credentials}, "localhost.example:11211"},
		{"cache.example?tls=false", []driver.Option{credentials}, "cache.example:11211"},
		{"cache.example?insecure_credentials=false", []driver.Option{credentials}, "cache.example:11211"},

		{"Localhost,localhost.:1,127.0.0.7,[::1],/run/memcached.sock", []driver.Option{credentials}, ""},
		{"cache.example?tls=true", []driver.Option{credentials}, ""},
		{"cache.example", []driver.Option{credentials, driver.WithTLSConfig(&tls.Config{})}, ""},
		{"cache.example", []driver.Option{credentials, insecure}, ""},
		{"cache.example", []driver.Option{insecure, credentials}, ""},
		{"cache.example?insecure_credentials=true", []driver.Option{credentials}, ""},
		{"cache.example?insecure_credentials=false", []driver.Option{credentials, insecure}, ""},
		{"memcached://ann-of-grove:s3cret@cache.example?insecure_credentials=true", nil, ""},
		{"cache.example", nil, ""},
	} {
		l := drivertest.NewLog()
		opts := append(c.opts, driver.WithLogger(l))
		if c.refused == "" {
			drivertest.Open(t, c.dsn, opts...)
			assert.Empty(t, l.Lines(), c.dsn)
			continue
		}
		err := memcacheddriver.New().Open(t.Context(), c.dsn, opts...)
		require.ErrorIs(t, err, memcacheddriver.ErrInvalidOption, c.dsn)
		for _, says := range []string{"server " + c.refused + " ", "tls=true", "WithTLSConfig", "WithInsecureCredentials", "insecure_credentials=true"} {
			assert.ErrorContains(t, err, says, c.dsn)
		}
		assert.NotContains(t, err.Error(), "ann-of-grove")
		assert.NotContains(t, err.Error(), "s3cret")
	}
}
