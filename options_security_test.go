package memcacheddriver_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/xraph/go-utils/log"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestTLS(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	server, trusting := memcachedtest.StartTLS(t)
	db := openDB(t, server.Addr(), driver.WithTLSConfig(trusting))
	require.NoError(t, db.Set(ctx, "key", []byte("v"), 0))
	all, err := db.MGet(ctx, []string{"key", "absent"})
	require.NoError(t, err)
	assert.Equal(t, [][]byte{[]byte("v"), nil}, all)
	item, err := db.Client().Get("key")
	require.NoError(t, err)
	assert.Equal(t, "v", string(item.Value))
	assert.Empty(t, trusting.ServerName, "the caller's config was changed")

	for _, dsn := range []string{server.Addr() + "?tls=false", server.Addr() + "?tls=true"} {
		assert.NoError(t, openDB(t, dsn, driver.WithTLSConfig(trusting)).Ping(ctx), "an option beats the DSN")
	}

	var untrusted *tls.CertificateVerificationError
	err = openDB(t, server.Addr()+"?tls=true").Ping(ctx)
	assert.True(t, errors.As(err, &untrusted), "a certificate that nobody vouches for is taken: %v", err)
	err = openDB(t, server.Addr(), driver.WithTLSConfig(&tls.Config{RootCAs: trusting.RootCAs, ServerName: "other"})).Ping(ctx)
	assert.True(t, errors.As(err, &untrusted), "a certificate for another name is taken: %v", err)
	assert.Error(t, openDB(t, server.Addr()).Ping(ctx), "plain on a TLS port")
	assert.ErrorContains(t, openShared(t, driver.WithTLSConfig(trusting)).Ping(ctx), "TLS", "TLS on a plain port")
}

func TestCredentials(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	addr := memcachedtest.StartAuth(t, "ann", "hunter2").Addr()
	right := memcacheddriver.WithCredentials("ann", "hunter2")
	for name, db := range map[string]*memcacheddriver.MemcachedDB{
		"option":                  openDB(t, addr, right),
		"DSN":                     openDB(t, "memcached://ann:hunter2@"+addr),
		"DSN, encoded":            openDB(t, "memcached://%61nn:hunter%32@"+addr),
		"the last one":            openDB(t, addr, memcacheddriver.WithCredentials("x", "y"), right),
		"an option beats the DSN": openDB(t, "memcached://x:y@"+addr, right),
	} {
		require.NoError(t, db.Set(ctx, "key", []byte("v"), 0), name)
		got, err := db.MGet(ctx, []string{"key", "absent"})
		require.NoError(t, err, name)
		assert.Equal(t, [][]byte{[]byte("v"), nil}, got)
		_, err = db.Client().Get("key")
		require.NoError(t, err, name)
	}
	for name, db := range map[string]*memcacheddriver.MemcachedDB{
		"a wrong password":        openDB(t, addr, memcacheddriver.WithCredentials("ann", "hunter3")),
		"a wrong user":            openDB(t, addr, memcacheddriver.WithCredentials("bob", "hunter2")),
		"an option beats the DSN": openDB(t, "memcached://ann:hunter2@"+addr, memcacheddriver.WithCredentials("ann", "hunter3")),
	} {
		_, err := db.Get(ctx, "key")
		require.ErrorIs(t, err, memcacheddriver.ErrAuth, name)
		assert.NotContains(t, err.Error(), "hunter", name)
		assert.Equal(t, addr, requireOpError(t, err).Server)
	}
	_, err := openDB(t, addr).Get(ctx, "key")
	assert.Error(t, err, "no credentials")
}

// A server that asks for no authentication never gets the password, which it
// would store for all to read.
func TestCredentialsAreNotSentUnasked(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var heard bytes.Buffer
	addr := startScripted(t, func(c net.Conn) {
		answer(c, func(line string) string {
			mu.Lock()
			heard.WriteString(line + "\n")
			mu.Unlock()
			return "VERSION 1.6.0\r\n"
		})
	})
	logger := &log.TestLogger{}
	db := openDB(t, addr, memcacheddriver.WithCredentials("ann", "hunter2"), driver.WithLogger(logger))
	require.NoError(t, db.Ping(t.Context()))
	mu.Lock()
	defer mu.Unlock()
	assert.NotContains(t, heard.String(), "hunter2")
	assert.Equal(t, 1, logger.CountLogs("WARN"), "nothing was said")
}

// No password is in an error or in a log, whatever goes wrong.
func TestNoSecretIsTold(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	const secret = "hunter2"
	dead := memcachedtest.Start(t)
	dead.Kill()
	for name, addr := range map[string]string{
		"refused":           memcachedtest.StartAuth(t, "ann", "another").Addr(),
		"dead":              dead.Addr(),
		"silent":            startScripted(t, silence),
		"no such socket":    "/no/such/socket",
		"an echo":           startScripted(t, func(c net.Conn) { answer(c, func(line string) string { return line + "\r\n" }) }),
		"an echo in errors": startScripted(t, func(c net.Conn) { answer(c, func(line string) string { return "SERVER_ERROR " + line + "\r\n" }) }),
	} {
		for _, dsn := range []string{
			"memcached://ann:" + secret + "@" + addr,
			"memcached://ann:" + secret + "@" + addr + "?tls=true",
		} {
			logger := &log.TestLogger{}
			db := openDB(t, dsn, driver.WithLogger(logger), driver.WithDialTimeout(ms(100)), memcacheddriver.WithTimeout(ms(100)),
				memcacheddriver.WithTTLQuery(), memcacheddriver.WithServerFailureLimit(1, 1))
			for by, call := range calls {
				err := call(ctx, db, "key")
				require.Error(t, err, "%s: %s", name, by)
				assert.NotContains(t, err.Error(), secret, "%s: %s", name, by)
			}
			err := db.Ping(ctx)
			require.Error(t, err, name)
			assert.NotContains(t, err.Error(), secret, name)
			_, err = db.Client().Get("key")
			require.Error(t, err, name)
			assert.NotContains(t, err.Error(), secret, name)
			for _, entry := range logger.GetLogs() {
				assert.NotContains(t, entry.Message, secret, name)
			}
		}
	}
}
