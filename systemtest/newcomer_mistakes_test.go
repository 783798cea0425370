package systemtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/kvtest"
)

// secret is in every mistake that has a password, and must be in no message.
const secret = "hunter2"

// newcomersMistakes are what people do wrong on their first day. Each message
// must say in one line what is wrong and what to do next.
var newcomersMistakes = []struct {
	name  string
	make  func(t *testing.T) error
	is    error    // what errors.Is must find; nil where there is no such error
	wrong string   // says what is wrong
	next  []string // says what to do next, or what to look at
}{
	{
		name:  "a port where nothing listens",
		make:  func(t *testing.T) error { return setOn(t, closed) },
		wrong: "connection refused",
		next:  []string{"127.0.0.1:", "is memcached running there?"},
	},
	{
		// With an empty label in it, the name is asked of no name server.
		name:  "a host that does not exist",
		make:  func(t *testing.T) error { return setOn(t, "cache..internal:11211") },
		wrong: "no such host",
		next:  []string{"cache..internal", "check the host name"},
	},
	{
		name: "TLS to a plain port",
		make: func(t *testing.T) error {
			return setOn(t, memcachedtest.Addr(t)+"?tls=true")
		},
		wrong: "TLS",
		next:  []string{"is it a plain port?"},
	},
	{
		name: "no TLS to a TLS port",
		make: func(t *testing.T) error {
			server, _ := memcachedtest.StartTLS(t)
			return setOn(t, server.Addr())
		},
		wrong: "closed the connection",
		next:  []string{"does it expect TLS?"},
	},
	{
		name: "a certificate that nobody vouches for",
		make: func(t *testing.T) error {
			server, _ := memcachedtest.StartTLS(t)
			return setOn(t, server.Addr()+"?tls=true")
		},
		wrong: "certificate",
		next:  []string{"WithTLSConfig", "RootCAs"},
	},
	{
		name: "a value of 2 MB",
		make: func(t *testing.T) error {
			return drivertest.OpenStore(t, memcachedtest.Addr(t)).Set(t.Context(), "newcomer:big", strings.Repeat("x", 2<<20))
		},
		is:    memcacheddriver.ErrValueTooLarge,
		wrong: "too large",
		next:  []string{"1 MB", "-I"},
	},
	{
		name: "a key with a space",
		make: func(t *testing.T) error {
			return drivertest.OpenStore(t, memcachedtest.Addr(t)).Set(t.Context(), "user 42", 1)
		},
		is:    memcacheddriver.ErrInvalidKey,
		wrong: `"user 42"`,
		next:  []string{"1 to 250 bytes without spaces"},
	},
	{
		name: "a key that is a whole document",
		make: func(t *testing.T) error {
			return drivertest.OpenStore(t, memcachedtest.Addr(t)).Set(t.Context(), strings.Repeat("key", 5000), 1)
		},
		is:    memcacheddriver.ErrInvalidKey,
		wrong: "invalid key",
		next:  []string{"250 bytes"},
	},
	{
		name: "a forgotten Open",
		make: func(t *testing.T) error {
			store, err := kv.Open(memcacheddriver.New())
			require.NoError(t, err)
			return store.Set(t.Context(), "newcomer", 1)
		},
		is:    memcacheddriver.ErrNotOpen,
		wrong: "not open",
		next:  []string{"Open comes first"},
	},
	{
		name: "a driver used after its Close",
		make: func(t *testing.T) error {
			store := drivertest.OpenStore(t, memcachedtest.Addr(t))
			db := memcacheddriver.Unwrap(store)
			require.NoError(t, store.Close())
			_, err := db.Get(t.Context(), "newcomer")
			return err
		},
		is:    memcacheddriver.ErrNotOpen,
		wrong: "not open",
		next:  []string{"Open comes first"},
	},
	{
		name: "Open twice",
		make: func(t *testing.T) error {
			db := memcacheddriver.Unwrap(drivertest.OpenStore(t, memcachedtest.Addr(t)))
			return db.Open(t.Context(), memcachedtest.Addr(t))
		},
		is:    memcacheddriver.ErrAlreadyOpen,
		wrong: "open already",
		next:  []string{"Close"},
	},
	{
		name:  "no DSN, from an empty environment variable",
		make:  func(t *testing.T) error { return openError("") },
		is:    memcacheddriver.ErrInvalidDSN,
		wrong: "names no server",
		next:  []string{"mc1:11211,mc2:11211"},
	},
	{
		name:  "a Redis URL",
		make:  func(t *testing.T) error { return openError("redis://:" + secret + "@localhost:6379/0") },
		is:    memcacheddriver.ErrInvalidDSN,
		wrong: "the scheme is not memcached",
		next:  []string{"memcached://host:port"},
	},
	{
		name:  "servers separated by semicolons",
		make:  func(t *testing.T) error { return openError("mc1:11211;mc2:11211") },
		is:    memcacheddriver.ErrInvalidDSN,
		wrong: "server 1: there is a semicolon in it",
		next:  []string{"separated by commas"},
	},
	{
		name:  "a port out of range",
		make:  func(t *testing.T) error { return openError("mc1:11211,mc2:112112") },
		is:    memcacheddriver.ErrInvalidDSN,
		wrong: "server 2: the port is not a number",
		next:  []string{"1 to 65535"},
	},
	{
		name:  "IPv6 without brackets",
		make:  func(t *testing.T) error { return openError("::1:11211") },
		is:    memcacheddriver.ErrInvalidDSN,
		wrong: "too many colons",
		next:  []string{"[::1]:11211"},
	},
	{
		name:  "a database number, as Redis has",
		make:  func(t *testing.T) error { return openError("memcached://localhost:11211/0") },
		is:    memcacheddriver.ErrInvalidDSN,
		wrong: "server 1: there is a / in it",
		next:  []string{"nothing comes after host:port", "no database numbers"},
	},
	{
		name:  "an & where the parameters begin",
		make:  func(t *testing.T) error { return openError("localhost:11211&timeout=1s") },
		is:    memcacheddriver.ErrInvalidDSN,
		wrong: "server 1: there is an & in it",
		next:  []string{"host:port?timeout=1s"},
	},
	{
		name:  "a comma before the port",
		make:  func(t *testing.T) error { return openError("localhost,11211") },
		is:    memcacheddriver.ErrInvalidDSN,
		wrong: "server 2: it is only a number",
		next:  []string{"localhost:11211"},
	},
	{
		name:  "a Unix socket with one slash",
		make:  func(t *testing.T) error { return openError("unix:/tmp/x.sock") },
		is:    memcacheddriver.ErrInvalidDSN,
		wrong: "server 1: a Unix socket is named by its whole path",
		next:  []string{"/path", "unix:///path"},
	},
	{
		name:  "credentials as a path",
		make:  func(t *testing.T) error { return openError("unix:///me:" + secret + "@localhost") },
		is:    memcacheddriver.ErrInvalidDSN,
		wrong: "server 1: there is an @ in it",
		next:  []string{"memcached://user:password@host", "memcached://user:password@/path"},
	},
	{
		name:  "credentials as parameters",
		make:  func(t *testing.T) error { return openError("localhost?user=me&password=" + secret) },
		is:    memcacheddriver.ErrInvalidDSN,
		wrong: "parameter 1 is unknown",
		next:  []string{"memcached://user:password@host"},
	},
	{
		name:  "a misspelt parameter",
		make:  func(t *testing.T) error { return openError("localhost?timout=2s") },
		is:    memcacheddriver.ErrInvalidDSN,
		wrong: "parameter 1 is unknown",
		next:  []string{"timeout", "max_idle_conns"},
	},
	{
		name:  "a duration without its unit",
		make:  func(t *testing.T) error { return openError("localhost?timeout=2") },
		is:    memcacheddriver.ErrInvalidDSN,
		wrong: "parameter timeout: it is not a duration",
		next:  []string{"2s"},
	},
	{
		name:  "a password with an @ in it",
		make:  func(t *testing.T) error { return openError("memcached://me:" + secret + "@" + secret + "@localhost") },
		is:    memcacheddriver.ErrInvalidDSN,
		wrong: "there is an @",
		next:  []string{"percent-encoded"},
	},
	{
		name:  "credentials without the scheme",
		make:  func(t *testing.T) error { return openError("me:" + secret + "@localhost:11211") },
		is:    memcacheddriver.ErrInvalidDSN,
		wrong: "there is an @",
		next:  []string{"memcached://user:password@host"},
	},
	{
		name:  "credentials without TLS",
		make:  func(t *testing.T) error { return openError("memcached://me:" + secret + "@cache.example") },
		is:    memcacheddriver.ErrInvalidOption,
		wrong: "to server cache.example:11211 they would cross the network in the clear",
		next:  []string{"tls=true", "WithInsecureCredentials"},
	},
	{
		name: "a wrong password",
		make: func(t *testing.T) error {
			server := memcachedtest.StartAuth(t, "me", "right")
			return setOn(t, "memcached://me:"+secret+"@"+server.Addr())
		},
		is:    memcacheddriver.ErrAuth,
		wrong: "refused",
		next:  []string{"user", "password"},
	},
	{
		name: "no password where one is asked for",
		make: func(t *testing.T) error {
			return setOn(t, memcachedtest.StartAuth(t, "me", secret).Addr())
		},
		is:    memcacheddriver.ErrAuth,
		wrong: "authentication",
		next:  []string{"WithCredentials"},
	},
	{
		name:  "a negative timeout",
		make:  func(t *testing.T) error { return openError("localhost", memcacheddriver.WithTimeout(-time.Second)) },
		is:    memcacheddriver.ErrInvalidOption,
		wrong: "-1s is negative",
		next:  []string{"WithTimeout"},
	},
	{
		name: "the store's options given to the driver",
		make: func(t *testing.T) error {
			return memcacheddriver.New().Open(t.Context(), "localhost", memcacheddriver.WithStoreOptions(kv.WithCodec(nil)))
		},
		is:    memcacheddriver.ErrInvalidOption,
		wrong: "WithStoreOptions is for OpenStore",
		next:  []string{"kv.Open"},
	},
	{
		name: "the port of a web server",
		make: func(t *testing.T) error {
			server := httptest.NewServer(nil)
			t.Cleanup(server.Close)
			return setOn(t, server.Listener.Addr().String())
		},
		is:    memcacheddriver.ErrProtocol,
		wrong: "unexpected reply",
		next:  []string{"is this a memcached?"},
	},
	{
		name: "the port of a Redis",
		make: func(t *testing.T) error {
			redis := memcachedtest.StartFake(t, memcachedtest.Script{"*": memcachedtest.Say("-ERR unknown command\r\n")})
			return setOn(t, redis.Addr())
		},
		is:    memcacheddriver.ErrProtocol,
		wrong: "unexpected reply",
		next:  []string{"is this a memcached?"},
	},
	{
		name: "a port that swallows everything",
		make: func(t *testing.T) error {
			silent := memcachedtest.Listen(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
			return setOn(t, silent, memcacheddriver.WithTimeout(20*time.Millisecond))
		},
		wrong: "no complete reply",
		next:  []string{"127.0.0.1:", "the read timeout of 20ms", "WithTimeout"},
	},
	{
		name: "a server that is known to be down",
		make: func(t *testing.T) error {
			return setOn(t, closed, memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
		},
		is:    memcacheddriver.ErrServerDown,
		wrong: "server is down",
		next:  []string{"tried again", "1m0s", "connection refused"},
	},
	{
		name:  "a Unix socket that is not there",
		make:  func(t *testing.T) error { return setOn(t, filepath.Join(t.TempDir(), "no.sock")) },
		wrong: "no such file",
		next:  []string{"no.sock", "is memcached running there?"},
	},
	{
		name: "TTL without asking for it",
		make: func(t *testing.T) error {
			_, err := drivertest.OpenStore(t, memcachedtest.Addr(t)).TTL(t.Context(), "newcomer")
			return err
		},
		is:    kv.ErrNotSupported,
		wrong: "not supported",
		next:  []string{"WithTTLQuery"},
	},
	{
		name: "a TTL without its unit",
		make: func(t *testing.T) error {
			logger := drivertest.NewLog()
			store := drivertest.OpenStore(t, memcachedtest.Addr(t), driver.WithLogger(logger))
			require.NoError(t, store.Set(t.Context(), "newcomer:ttl", 1, kv.WithTTL(60)))
			logger.Await(t, 1) // it is told beside the call
			return errors.New(strings.Join(logger.Lines(), "\n"))
		},
		wrong: "a TTL of 60ns is under a millisecond",
		next:  []string{"60*time.Second"},
	},
	{
		name: "Unwrap of a store on another driver",
		make: func(t *testing.T) (err error) {
			store, err := kv.Open(otherDriver{})
			require.NoError(t, err)
			defer func() { err = fmt.Errorf("%v", recover()) }()
			memcacheddriver.Unwrap(store)
			return nil
		},
		wrong: `on driver "redis"`,
		next:  []string{"OpenStore"},
	},
}

func TestNewcomersMistakes(t *testing.T) {
	t.Parallel()
	require.GreaterOrEqual(t, len(newcomersMistakes), 20)
	for _, m := range newcomersMistakes {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			err := m.make(t)
			require.Error(t, err)
			text := err.Error()
			t.Log(text)

			assert.NotContains(t, text, "\n", "one line")
			assert.Less(t, len(text), 400, "a line that fits a screen")
			assert.NotContains(t, text, secret)
			assert.Contains(t, text, m.wrong, "what is wrong")
			for _, next := range m.next {
				assert.Contains(t, text, next, "what to do next")
			}
			if m.is != nil {
				assert.ErrorIs(t, err, m.is)
			}
		})
	}
}

func openError(dsn string, opts ...driver.Option) error {
	_, err := memcacheddriver.OpenStore(context.Background(), dsn, opts...)
	return err
}

// setOn opens a store, which every one of these mistakes survives, and returns
// the error of the second Set: what a service goes on logging.
func setOn(t *testing.T, dsn string, opts ...driver.Option) error {
	t.Helper()
	store := drivertest.OpenStore(t, dsn, opts...)
	first := store.Set(t.Context(), "newcomer", 1)
	require.Error(t, first)
	return store.Set(t.Context(), "newcomer", 1)
}

// closed is a port that nobody listens on; one that was free a moment ago may be
// another test's by now.
const closed = "127.0.0.1:1"

type otherDriver struct{ *kvtest.MockDriver }

func (otherDriver) Name() string { return "redis" }
