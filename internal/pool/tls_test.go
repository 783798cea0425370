package pool_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// serverNames makes config note the server names that are asked for.
func serverNames(config *tls.Config) (noted func() map[string]bool) {
	var mu sync.Mutex
	names := make(map[string]bool)
	config.VerifyConnection = func(s tls.ConnectionState) error {
		mu.Lock()
		defer mu.Unlock()
		names[s.ServerName] = true
		return nil
	}
	return func() map[string]bool {
		mu.Lock()
		defer mu.Unlock()
		return names
	}
}

// onLocalhost is a server's address by name.
func onLocalhost(t *testing.T, server *memcachedtest.Server) string {
	t.Helper()
	_, port, err := net.SplitHostPort(server.Addr())
	require.NoError(t, err)
	return net.JoinHostPort("localhost", port)
}

func TestTLSWorks(t *testing.T) {
	t.Parallel()
	server, config := memcachedtest.StartTLS(t)
	for dsn, name := range map[string]string{
		server.Addr():                "", // an IP address is not sent
		onLocalhost(t, server):       "localhost",
		server.Addr() + "?tls=false": "", // an option beats the DSN
		server.Addr() + "?tls=true":  "",
	} {
		t.Run(dsn, func(t *testing.T) {
			t.Parallel()
			config := config.Clone()
			noted := serverNames(config)
			db := drivertest.Open(t, dsn, driver.WithTLSConfig(config), memcacheddriver.WithTTLQuery())
			key, large := drivertest.Key(), make([]byte, 500_000)
			require.NoError(t, db.Set(t.Context(), key, large, time.Hour))
			values, err := db.MGet(t.Context(), []string{key, drivertest.Key()})
			require.NoError(t, err)
			assert.Equal(t, [][]byte{large, nil}, values)
			item, err := db.Client().Get(key)
			require.NoError(t, err)
			assert.Equal(t, large, item.Value)
			assert.EqualValues(t, 1, drivertest.Dials(db), "one connection is enough")

			key = drivertest.Key()
			for _, call := range drivertest.Calls {
				require.NoError(t, db.Set(t.Context(), key, []byte("1"), 0))
				assert.NoError(t, call.Run(t.Context(), db, key), call.Name)
			}
			assert.Equal(t, map[string]bool{name: true}, noted(), "the server name is that of the address")
			assert.Empty(t, config.ServerName, "the caller's config is the caller's")
		})
	}
}

// Whatever comes below TLS, as session tickets do, is no staleness.
func TestTLSConnectionsAreUsedAgain(t *testing.T) {
	t.Parallel()
	server, config := memcachedtest.StartTLS(t)
	config.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	db := drivertest.Open(t, server.Addr(), driver.WithTLSConfig(config))
	for range 5 {
		require.NoError(t, db.Ping(t.Context()))
		time.Sleep(rest)
	}
	s := drivertest.Stat(t, db)
	require.EqualValues(t, 1, s.Dials)
	require.Zero(t, s.StaleConns)
}

func TestTLSServerName(t *testing.T) {
	t.Parallel()
	server, config := memcachedtest.StartTLS(t)
	for name, c := range map[string]struct {
		change func(c *tls.Config)
		want   string
	}{
		"of the caller": {func(c *tls.Config) { c.ServerName = "127.0.0.1" }, ""},
		"also where the certificate is not checked": {func(c *tls.Config) { c.InsecureSkipVerify = true }, "localhost"}, // a proxy may route by it
	} {
		config := config.Clone()
		c.change(config)
		noted := serverNames(config)
		db := drivertest.Open(t, onLocalhost(t, server), driver.WithTLSConfig(config))
		require.NoError(t, db.Ping(t.Context()), name)
		assert.Equal(t, map[string]bool{c.want: true}, noted(), name)
	}
}

func TestTLSErrorsSayWhatIsWrong(t *testing.T) {
	t.Parallel()
	secure, config := memcachedtest.StartTLS(t)
	_, otherAuthority := memcachedtest.StartTLS(t)
	otherName := config.Clone()
	otherName.ServerName = "other.example"
	plain := memcachedtest.Listen(t, func(c net.Conn) {
		// Not a real one, which may wait for the end of the line that a handshake
		// begins with.
		_, _ = c.Read(make([]byte, 1<<14))
		_, _ = io.WriteString(c, "ERROR\r\n")
		_, _ = io.Copy(io.Discard, c)
	})
	for _, c := range []struct {
		name, addr string
		config     *tls.Config
		want       string
		as         []any
	}{
		{"an unknown authority", secure.Addr(), otherAuthority, "certificate",
			[]any{new(x509.UnknownAuthorityError), new(*tls.CertificateVerificationError)}},
		{"the system's authorities", secure.Addr() + "?tls=true", nil, "certificate",
			[]any{new(x509.UnknownAuthorityError), new(*tls.CertificateVerificationError)}},
		{"another name", secure.Addr(), otherName, "other.example",
			[]any{new(x509.HostnameError), new(*tls.CertificateVerificationError)}},
		{"TLS to a plain server", plain, config, "is it a plain port?", nil},
		{"plain to a TLS server", secure.Addr(), nil, "does it expect TLS?", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			opts := []driver.Option{memcacheddriver.WithServerFailureLimit(0, 0)}
			if c.config != nil {
				opts = append(opts, driver.WithTLSConfig(c.config))
			}
			db := drivertest.Open(t, c.addr, opts...)
			for _, call := range drivertest.Calls {
				if call.Name == "TTL" {
					continue // may say instead that the server does not speak meta
				}
				err := call.Run(t.Context(), db, "k")
				require.ErrorContains(t, err, c.want, call.Name)
				require.ErrorContains(t, err, "TLS", call.Name)
				for _, as := range c.as {
					require.ErrorAs(t, err, as, call.Name)
				}
			}
			drivertest.RequireIdle(t, db)
		})
	}
}

// A certificate that is refused is the server's failure.
// Whoever has answered in the clear, on any connection, does not wait for TLS.
func TestServersThatAnsweredInTheClearExpectNoTLS(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script memcachedtest.Script // until the server hangs up on everything
		opts   []driver.Option
	}{
		"a request":             {script: memcachedtest.Script{"mn": memcachedtest.HangUp}},
		"the question for meta": {script: memcachedtest.Script{"gets": memcachedtest.HangUp}},
		"authentication": {
			script: memcachedtest.Script{"mn": memcachedtest.HangUp, "gets": memcachedtest.HangUp},
			opts:   []driver.Option{rightCredentials},
		},
	} {
		server := memcachedtest.StartFake(t, c.script)
		db := drivertest.Open(t, server.Addr(), append(c.opts, memcacheddriver.WithServerFailureLimit(0, 0))...)
		_, _ = db.Get(t.Context(), "k")
		server.SetScript(memcachedtest.Script{"mn": memcachedtest.HangUp, "gets": memcachedtest.HangUp})
		for range 3 {
			_, err := db.Get(t.Context(), "k")
			require.ErrorContains(t, err, "the server closed the connection", name)
			assert.NotContains(t, err.Error(), "TLS", name)
		}
	}
}

func TestOverTLSNobodyIsHintedAtIt(t *testing.T) {
	t.Parallel()
	server, config := memcachedtest.StartFakeTLS(t, memcachedtest.Script{"mn": memcachedtest.HangUp, "gets": memcachedtest.HangUp})
	_, err := drivertest.Open(t, server.Addr(), driver.WithTLSConfig(config)).Get(t.Context(), "k")
	require.ErrorContains(t, err, "the server closed the connection")
	assert.NotContains(t, err.Error(), "TLS")
}

func TestTLSRefusalsCount(t *testing.T) {
	t.Parallel()
	server, _ := memcachedtest.StartTLS(t)
	db := drivertest.Open(t, server.Addr()+"?tls=true", memcacheddriver.WithServerFailureLimit(3, drivertest.Never))
	for range 3 {
		require.NotErrorIs(t, db.Ping(t.Context()), memcacheddriver.ErrServerDown)
	}
	err := db.Ping(t.Context())
	require.ErrorIs(t, err, memcacheddriver.ErrServerDown)
	require.ErrorContains(t, err, "certificate")
	require.EqualValues(t, 3, drivertest.Stat(t, db).DialErrors)
}

// inOnePiece starts a front of the server at addr that hands on what it says when it
// has been silent for a moment, all at once.
func inOnePiece(t *testing.T, addr string) string {
	return memcachedtest.Listen(t, func(c net.Conn) {
		server, err := net.Dial("tcp", addr)
		if err != nil {
			return
		}
		var back sync.WaitGroup
		back.Go(func() {
			defer c.Close()
			var said []byte
			b := make([]byte, 64<<10)
			for {
				_ = server.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
				n, err := server.Read(b)
				said = append(said, b[:n]...)
				if err != nil {
					_, _ = c.Write(said)
					said = nil
				}
				if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					return
				}
			}
		})
		defer back.Wait()
		defer server.Close()
		_, _ = io.Copy(server, c)
	})
}

// What a server sends too much may have been read already, by TLS.
func TestOverTLSTooMuchReachesNoOtherCall(t *testing.T) {
	t.Parallel()
	tooMuch := func(reply string) memcachedtest.Handler {
		return func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			if cmd.Args[0] == "other" {
				c.Say("VALUE other 0 5\r\nright\r\nEND\r\n")
				return
			}
			c.Say(reply) // each is a record of its own
			c.Say("VALUE other 0 5\r\nwrong\r\nEND\r\n")
		}
	}
	server, config := memcachedtest.StartFakeTLS(t, memcachedtest.Script{
		"gets": tooMuch("END\r\n"), "set": tooMuch("SERVER_ERROR x\r\n"), "delete": tooMuch("DELETED\r\n"),
	})
	addr := inOnePiece(t, server.Addr())
	for _, call := range drivertest.Calls {
		if !slices.Contains([]string{"Get", "Set", "Delete"}, call.Name) {
			continue
		}
		db := drivertest.Open(t, addr, driver.WithTLSConfig(config))
		_ = call.Run(t.Context(), db, "k")
		time.Sleep(rest)
		value, err := db.Get(t.Context(), "other")
		require.NoError(t, err, call.Name)
		assert.Equal(t, "right", string(value), "after %s", call.Name)
	}
}

// TLS 1.2 tells of the end of a connection together with the last bytes.
func TestOverTLS12AnEndBehindTheReplyIsNoFailure(t *testing.T) {
	t.Parallel()
	server, config := memcachedtest.StartFakeTLS(t, memcachedtest.Script{"gets": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
		c.Say("END\r\n")
		c.Close()
	}})
	config.MaxVersion = tls.VersionTLS12
	db := drivertest.Open(t, inOnePiece(t, server.Addr()), driver.WithTLSConfig(config),
		memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
	for range 5 {
		_, err := db.Get(t.Context(), "k")
		require.Equal(t, kv.ErrNotFound, err)
	}
}
