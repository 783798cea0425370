package memcacheddriver_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

const (
	authUser     = "grove"
	authPassword = "s3cret/p@ss"
	authEncoded  = "s3cret%2Fp%40ss"
)

func TestAuthWorks(t *testing.T) {
	t.Parallel()
	server := memcachedtest.StartAuth(t, authUser, authPassword)
	for name, db := range map[string]*memcacheddriver.MemcachedDB{
		"option": connOpen(t, server.Addr(), memcacheddriver.WithCredentials(authUser, authPassword), memcacheddriver.WithTTLQuery()),
		"DSN":    connOpen(t, "memcached://"+authUser+":"+authEncoded+"@"+server.Addr()+"?ttl_query=true"),
	} {
		require.NoError(t, db.Set(context.Background(), "k", []byte("v"), 0), name)
		for _, call := range connCalls() {
			require.NoError(t, call.run(context.Background(), db), "%s, %s", name, call.name)
		}
		_, err := db.Client().Get("k")
		require.NoError(t, err)
		require.Equal(t, uint64(1), connStats(t, db).Dials, "once for each connection")
	}
}

func TestAuthRefused(t *testing.T) {
	t.Parallel()
	server := memcachedtest.StartAuth(t, authUser, authPassword)
	const wrong = "wr0ng-Password"
	logger := newConnLog()
	for name, db := range map[string]*memcacheddriver.MemcachedDB{
		"option": connOpen(t, server.Addr(), memcacheddriver.WithCredentials(authUser, wrong), driver.WithLogger(logger)),
		"DSN":    connOpen(t, "memcached://"+authUser+":"+wrong+"@"+server.Addr(), driver.WithLogger(logger)),
	} {
		for range 2 { // the second time the server is down
			for _, call := range connCalls() {
				if call.name == "TTL" {
					continue
				}
				err := call.run(context.Background(), db)
				require.ErrorIs(t, err, memcacheddriver.ErrAuth, "%s, %s", name, call.name)
				require.NotContains(t, fmt.Sprintf("%v %+v %#v", err, err, err), wrong)
			}
		}
		_, err := db.Client().Get("k")
		require.ErrorIs(t, err, memcacheddriver.ErrAuth)
		require.ErrorIs(t, err, memcacheddriver.ErrServerDown)
		connRequireIdle(t, db)
	}
	assert.Empty(t, logger.with(wrong))

	missing := connOpen(t, server.Addr())
	require.Error(t, missing.Set(context.Background(), "k", []byte("v"), 0))
	_, err := missing.Get(context.Background(), "k")
	require.ErrorIs(t, err, memcacheddriver.ErrAuth)
	require.ErrorContains(t, err, "WithCredentials")
}

// To a server that asks for no authentication the credentials would be a value
// that everybody can read.
func TestAuthIsNotSentUnasked(t *testing.T) {
	t.Parallel()
	real := memcachedtest.Start(t)
	logger := newConnLog()
	db := connOpen(t, real.Addr(), memcacheddriver.WithCredentials(authUser, authPassword), driver.WithLogger(logger))
	connFill(t, db, 5)
	stats := real.Stats(t)
	require.Equal(t, "0", stats["cmd_set"])
	require.Equal(t, "0", stats["curr_items"])
	require.Len(t, logger.with("warn", real.Addr(), "no authentication"), 1, "said once, not for each connection")

	for _, version := range []string{"VERSION 1.4.0", "VERSION", "ERROR", "SERVER_ERROR out of memory", "HTTP/1.1 400 Bad Request", ""} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			server := connServe(t, func(c net.Conn, r *bufio.Reader) {
				for {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					if strings.HasPrefix(line, "version") {
						fmt.Fprint(c, version+"\r\n")
					} else {
						fmt.Fprint(c, connMissReply(line))
					}
				}
			})
			db := connOpen(t, server.addr(), memcacheddriver.WithCredentials(authUser, authPassword))
			_, _ = db.Get(context.Background(), "k")
			_, received := server.got()
			require.NotContains(t, received, authPassword)
			require.NotContains(t, received, "set ")
		})
	}
}

func TestAuthInTheClearIsWarnedOf(t *testing.T) {
	t.Parallel()
	credentials := memcacheddriver.WithCredentials(authUser, authPassword)
	for _, c := range []struct {
		dsn  string
		warn []string // servers
	}{
		{"cache.example", []string{"cache.example:11211"}},
		{"localhost,a.example,127.0.0.1,b.example:1", []string{"a.example:11211", "b.example:1"}},
		{"10.1.2.3", []string{"10.1.2.3:11211"}},
		{"localhost,127.0.0.7,[::1],/run/memcached.sock", nil},
		{"cache.example?tls=true", nil},
	} {
		logger := newConnLog()
		connOpen(t, c.dsn, credentials, driver.WithLogger(logger))
		require.Len(t, logger.with(""), len(c.warn), c.dsn)
		for _, server := range c.warn {
			require.Len(t, logger.with("warn", "clear", server), 1, c.dsn)
		}
		require.Empty(t, logger.with(authPassword))

		logger = newConnLog()
		connOpen(t, c.dsn, driver.WithLogger(logger))
		require.Empty(t, logger.with(""), "no credentials, no warning")
	}
}
