package pool_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

const (
	authUser     = "grove"
	authPassword = "s3cret/p@ss"
	authDSN      = "memcached://%67rove:s3cret%2Fp%40ss@"
)

var rightCredentials = memcacheddriver.WithCredentials(authUser, authPassword)

func TestAuthWorks(t *testing.T) {
	t.Parallel()
	server := memcachedtest.StartAuth(t, authUser, authPassword)
	authentications := func() (n int) {
		_, err := fmt.Sscan(server.Stats(t)["auth_cmds"], &n)
		require.NoError(t, err)
		return n
	}
	before := authentications()
	for _, c := range []struct {
		name, dsn string
		opts      []driver.Option
	}{
		{"option", server.Addr(), []driver.Option{rightCredentials}},
		{"DSN", authDSN + server.Addr(), nil},
		{"the last one", server.Addr(), []driver.Option{memcacheddriver.WithCredentials("x", "y"), rightCredentials}},
		{"an option beats the DSN", "memcached://x:y@" + server.Addr(), []driver.Option{rightCredentials}},
	} {
		db := drivertest.Open(t, c.dsn, append(c.opts, memcacheddriver.WithTTLQuery())...)
		key := drivertest.Key()
		for _, call := range drivertest.Calls {
			require.NoError(t, db.Set(t.Context(), key, []byte("1"), 0), c.name)
			require.NoError(t, call.Run(t.Context(), db, key), "%s, %s", c.name, call.Name)
		}
		_, err := db.Client().Get(key)
		require.NoError(t, err, c.name)
		drivertest.Fill(t, drivertest.Open(t, c.dsn, c.opts...), 2)
	}
	// Each look at the statistics is one more.
	assert.GreaterOrEqual(t, authentications()-before-1, 4*(1+2), "each connection authenticates")
}

func TestAuthRefused(t *testing.T) {
	t.Parallel()
	addr := memcachedtest.StartAuth(t, authUser, authPassword).Addr()
	const wrong = "wr0ng-Password"
	logger := drivertest.NewLog()
	opts := []driver.Option{driver.WithLogger(logger), memcacheddriver.WithTTLQuery(), memcacheddriver.WithServerFailureLimit(3, drivertest.Never)}
	open := func(dsn string, more ...driver.Option) *memcacheddriver.MemcachedDB {
		return drivertest.Open(t, dsn, append(more, opts...)...)
	}
	for name, db := range map[string]*memcacheddriver.MemcachedDB{
		"password":                open(addr, memcacheddriver.WithCredentials(authUser, wrong)),
		"user":                    open(addr, memcacheddriver.WithCredentials("somebody", authPassword)),
		"DSN":                     open("memcached://" + authUser + ":" + wrong + "@" + addr),
		"an option beats the DSN": open(authDSN+addr, memcacheddriver.WithCredentials(authUser, wrong)),
	} {
		for range 2 { // the second time the server is down
			for _, call := range drivertest.Calls {
				err := call.Run(t.Context(), db, "k")
				require.ErrorIs(t, err, memcacheddriver.ErrAuth, "%s, %s", name, call.Name)
				if call.Name != "Do" {
					assert.Equal(t, addr, drivertest.RequireOpError(t, err).Server, "%s, %s", name, call.Name)
				}
				for _, password := range []string{wrong, authPassword} {
					assert.NotContains(t, fmt.Sprintf("%v %+v %#v", err, err, err), password, "%s, %s", name, call.Name)
				}
			}
		}
		_, err := db.Client().Get("k")
		assert.ErrorIs(t, err, memcacheddriver.ErrAuth)
		assert.ErrorIs(t, err, memcacheddriver.ErrServerDown)
		drivertest.RequireIdle(t, db)
	}
	assert.Empty(t, logger.Lines(wrong))
	assert.Empty(t, logger.Lines(authPassword))

	missing := open(addr)
	for range 2 {
		for _, call := range drivertest.Calls {
			err := call.Run(t.Context(), missing, "k")
			require.ErrorIs(t, err, memcacheddriver.ErrAuth, call.Name)
			require.ErrorContains(t, err, "WithCredentials", call.Name)
		}
	}
	drivertest.RequireIdle(t, missing)
}

// To a server that asks for no authentication the credentials would be a value
// that everybody can read.
func TestAuthIsNotSentUnasked(t *testing.T) {
	t.Parallel()
	real := memcachedtest.Start(t)
	logger := drivertest.NewLog()
	drivertest.Fill(t, drivertest.Open(t, real.Addr(), rightCredentials, driver.WithLogger(logger)), 5)
	stats := real.Stats(t)
	require.Equal(t, "0", stats["cmd_set"])
	require.Equal(t, "0", stats["curr_items"])
	logger.Await(t, 1, "warn", real.Addr(), "no authentication") // said once, not for each connection

	for version, works := range map[string]bool{
		"VERSION 1.4.0": true,
		"VERSION":       false, "ERROR": false, "SERVER_ERROR out of memory": false, "HTTP/1.1 400 Bad Request": false, "": false,
	} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			f := memcachedtest.StartFake(t, memcachedtest.Script{"version": memcachedtest.Say(version + "\r\n")})
			db := drivertest.Open(t, f.Addr(), rightCredentials)
			_, err := db.Exists(t.Context(), "k")
			assert.Equal(t, works, err == nil, "%v", err)
			assert.NotContains(t, f.Received(), authPassword)
			assert.NotContains(t, f.Received(), "set ")
		})
	}
}

// Whenever a server quotes the credentials in an error line, it is not quoted
// with them.
func TestAuthHidesAnEcho(t *testing.T) {
	t.Parallel()
	const user, password = "ann-of-grove", "ann-of-grove+secret"
	for name, c := range map[string]struct {
		at     string // the command; "again" is the version that is asked for after the login
		line   string
		hidden bool // the line is quoted
	}{
		"instead of asking for them":     {"version", "SERVER_ERROR what, %s %s", true},
		"refusing them":                  {"set", "CLIENT_ERROR no such %s %s", false},
		"refusing another version":       {"again", "ERROR no more %s %s", true},
		"asking for them once more":      {"again", "CLIENT_ERROR unauthenticated %s %s", false},
		"in its version":                 {"again", "VERSION 1.6.18 %s %s", false},
		"instead of its word on meta":    {"mn", "SERVER_ERROR %s %s", false},
		"in a refusal":                   {"*", "SERVER_ERROR %s %s may not", true},
		"in the refusal of a request":    {"*", "CLIENT_ERROR %s %s may not", true},
		"in what is no command":          {"*", "ERROR %s %s", true},
		"in what is no line of an error": {"*", "%s %s", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			echo := memcachedtest.Say(fmt.Sprintf(c.line, user, password) + "\r\n")
			var known sync.Map // connections that were asked for their version
			script := memcachedtest.Script{
				"version": func(conn *memcachedtest.FakeConn, cmd memcachedtest.Command) {
					_, again := known.LoadOrStore(conn, true)
					switch {
					case c.at == "version" && !again, c.at == "again" && again:
						echo(conn, cmd)
					case !again:
						conn.Say("CLIENT_ERROR unauthenticated\r\n")
					default:
						conn.Default(cmd)
					}
				},
				"set": memcachedtest.Say("STORED\r\n"),
				"mn":  (*memcachedtest.FakeConn).Default,
			}
			if c.at != "version" && c.at != "again" {
				script[c.at] = echo
			}
			logger := drivertest.NewLog()
			db := drivertest.Open(t, memcachedtest.StartFake(t, script).Addr(), memcacheddriver.WithCredentials(user, password),
				driver.WithLogger(logger), memcacheddriver.WithTTLQuery())
			var texts strings.Builder
			for _, call := range drivertest.Calls {
				if call.Name != "Do" || c.at != "*" { // what gomemcache says there is its own
					fmt.Fprintln(&texts, call.Run(t.Context(), db, "key"))
				}
			}
			fmt.Fprintln(&texts, logger.Lines())
			assert.NotContains(t, texts.String(), user)
			assert.NotContains(t, texts.String(), "+secret")
			assert.Equal(t, c.hidden, strings.Contains(texts.String(), "[hidden] [hidden]"), texts.String())
		})
	}
}

// An empty password is nothing to look for.
func TestAuthHidesNoEmptyPassword(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"*": memcachedtest.Say("SERVER_ERROR busy, ann\r\n")})
	err := drivertest.Open(t, f.Addr(), memcacheddriver.WithCredentials("ann", "")).Ping(t.Context())
	assert.ErrorContains(t, err, `"SERVER_ERROR busy, [hidden]"`)
}

// No password is in an error or in a log, whatever goes wrong.
func TestAuthTellsNoSecret(t *testing.T) {
	t.Parallel()
	const secret = "hunter2"
	echo := func(prefix string) string {
		return memcachedtest.StartFake(t, memcachedtest.Script{"*": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			c.Say(prefix + cmd.Line + string(cmd.Data) + "\r\n")
		}}).Addr()
	}
	dead := memcachedtest.StartFake(t, nil)
	dead.Close()
	for name, addr := range map[string]string{
		"refused":                       memcachedtest.StartAuth(t, "ann", "another").Addr(),
		"dead":                          dead.Addr(),
		"silent":                        memcachedtest.StartFake(t, memcachedtest.Script{"*": memcachedtest.Hang}).Addr(),
		"no such socket":                "/no/such/socket",
		"an echo":                       echo(""),
		"an echo as the server's error": echo("SERVER_ERROR "),
		"an echo as the client's error": echo("CLIENT_ERROR "), // is told the password
	} {
		for _, query := range []string{"", "?tls=true"} {
			t.Run(name+query, func(t *testing.T) {
				t.Parallel()
				logger := drivertest.NewLog()
				db := drivertest.Open(t, "memcached://ann:"+secret+"@"+addr+query, driver.WithLogger(logger),
					driver.WithDialTimeout(20*time.Millisecond), memcacheddriver.WithTimeout(20*time.Millisecond),
					memcacheddriver.WithTTLQuery(), memcacheddriver.WithServerFailureLimit(2, time.Millisecond))
				for _, call := range drivertest.Calls {
					err := call.Run(t.Context(), db, "key")
					require.Error(t, err, call.Name)
					assert.NotContains(t, err.Error(), secret, call.Name)
				}
				_, err := db.Client().Get("key")
				require.Error(t, err)
				assert.NotContains(t, err.Error(), secret)
				memcachedtest.Eventually(t, func() bool { return len(logger.Lines("is down")) > 0 }, "it is logged")
				assert.Empty(t, logger.Lines(secret))
			})
		}
	}
}
