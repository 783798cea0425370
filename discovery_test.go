package memcacheddriver_test

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// nodes writes addresses as a configuration endpoint does.
func nodes(addrs ...string) (all []string) {
	for _, a := range addrs {
		host, port, _ := net.SplitHostPort(a)
		all = append(all, "|"+host+"|"+port)
	}
	return all
}

func addrsOf(db *memcacheddriver.MemcachedDB) (all []string) {
	for _, s := range db.Stats() {
		all = append(all, s.Addr)
	}
	return all
}

// Opening asks nothing; the first calls, however many, ask once; a change is followed.
func TestDiscoveryByAConfigurationEndpoint(t *testing.T) {
	t.Parallel()
	_, addrs := drivertest.StartServers(t, 3)
	for name, script := range map[string]func(int64, ...string) memcachedtest.Script{
		"new": memcachedtest.ConfigEndpoint, "before 1.4.14": memcachedtest.OldConfigEndpoint,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			endpoint := memcachedtest.StartFake(t, script(1, nodes(addrs[0], addrs[1])...))
			logged := drivertest.NewLog()
			db := drivertest.Open(t, endpoint.Addr()+"?discovery=elasticache&discovery_interval=20ms", driver.WithLogger(logged))
			require.Empty(t, db.Stats())
			require.Equal(t, memcacheddriver.DiscoveryStats{Endpoint: endpoint.Addr(), Version: -1}, db.DiscoveryStats())
			time.Sleep(50 * time.Millisecond)
			require.Zero(t, endpoint.Accepted())

			keys := drivertest.Keys(64)
			var first sync.WaitGroup
			for _, key := range keys {
				first.Go(func() { assert.NoError(t, db.Set(t.Context(), key, drivertest.Value(key), 0)) })
			}
			first.Wait()
			require.Equal(t, addrs[:2], addrsOf(db))
			values, err := drivertest.Open(t, addrs[0]+","+addrs[1]).MGet(t.Context(), keys)
			require.NoError(t, err)
			require.Equal(t, len(keys), drivertest.AssertValues(t, keys, values), "keys are where the same list in a DSN has them")
			stats := db.DiscoveryStats()
			require.EqualValues(t, 1, stats.Version)
			require.NoError(t, stats.LastError)
			require.WithinDuration(t, time.Now(), stats.LastSuccess, time.Minute)

			endpoint.SetScript(script(2, nodes(addrs[1], addrs[2])...))
			logged.Await(t, 1, "info", "2 servers from now on; came: "+addrs[2]+"; left: "+addrs[0])
			require.Equal(t, addrs[1:], addrsOf(db))
			require.EqualValues(t, 2, db.DiscoveryStats().Version)

			require.NoError(t, db.Close())
			asked := endpoint.Count("*")
			time.Sleep(60 * time.Millisecond)
			require.Equal(t, asked, endpoint.Count("*"), "Close ends it")
			require.Zero(t, db.DiscoveryStats())
		})
	}
}

// One look-up for however many first calls, which come while it is under way.
func TestFirstCallsShareALookUp(t *testing.T) {
	t.Parallel()
	server := memcachedtest.StartFake(t, nil)
	proceed := make(chan struct{})
	script := memcachedtest.ConfigEndpoint(1, nodes(server.Addr())...)
	endpoint := memcachedtest.StartFake(t, memcachedtest.Script{"config": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		c.Wait(proceed)
		script["config"](c, cmd)
	}})
	db := drivertest.Open(t, endpoint.Addr(), memcacheddriver.WithDiscovery(memcacheddriver.ElastiCache), memcacheddriver.WithTTLQuery())
	var first sync.WaitGroup
	for _, call := range drivertest.Calls {
		first.Go(func() {
			_ = call.Run(t.Context(), db, "k") // the fake has nothing to say to some
			assert.NotEmpty(t, db.Stats(), call.Name)
		})
	}
	_, err := db.Get(ended(t), "k")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "discovery of servers by "+endpoint.Addr())
	require.ErrorContains(t, err, "in a hurry", "the cause")
	first.Go(func() {
		_, err := db.Client().Get("k")
		assert.Error(t, err) // a miss
		assert.NotEmpty(t, db.Stats(), "the native client")
	})
	time.Sleep(50 * time.Millisecond)
	close(proceed)
	first.Wait()
	require.Equal(t, 1, endpoint.Count("config"))
}

// ended returns a context that ends soon.
func ended(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, errors.New("in a hurry"))
	t.Cleanup(cancel)
	return ctx
}

// A look-up that fails is told by every call, is no miss, and is not done by each.
func TestADiscoveryThatFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script memcachedtest.Script // nil is that of a plain memcached
		says   string
	}{
		"a plain memcached":   {nil, "is it a configuration endpoint?"},
		"it hangs up":         {memcachedtest.Script{"config": memcachedtest.HangUp}, "closed"},
		"it hangs":            {memcachedtest.Script{"config": memcachedtest.Hang}, "read timeout of 300ms"},
		"no servers":          {memcachedtest.Script{"config": memcachedtest.Say("CONFIG cluster 0 3\r\n1\n\n\r\nEND\r\n")}, "no servers"},
		"an error":            {memcachedtest.Script{"config": memcachedtest.Say("SERVER_ERROR busy\r\n")}, "busy"},
		"a flood":             {memcachedtest.Script{"config": memcachedtest.Flood("CONFIG cluster 0 3\r\n")}, "unexpected reply"},
		"nodes make no sense": {memcachedtest.ConfigEndpoint(1, "a|b"), "unexpected reply"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			endpoint := memcachedtest.StartFake(t, c.script)
			logged := drivertest.NewLog()
			db := drivertest.Open(t, endpoint.Addr()+"?discovery=elasticache", memcacheddriver.WithTTLQuery(),
				memcacheddriver.WithTimeout(ms(300)), driver.WithDialTimeout(ms(300)), driver.WithLogger(logged))
			start := time.Now()
			for _, call := range drivertest.Calls {
				err := call.Run(t.Context(), db, "k")
				require.ErrorContains(t, err, endpoint.Addr(), call.Name)
				require.ErrorContains(t, err, c.says, call.Name)
				require.NotErrorIs(t, err, kv.ErrNotFound)
				require.NotErrorIs(t, err, context.DeadlineExceeded)
				drivertest.RequireOpError(t, err)
			}
			_, err := db.Client().Get("k")
			require.ErrorContains(t, err, c.says, "the native client")
			require.ErrorContains(t, db.DiscoveryStats().LastError, c.says)
			require.LessOrEqual(t, endpoint.Accepted(), 1+int(time.Since(start)/time.Second), "one in a second")
			logged.Await(t, 1, "warn", c.says)

			server := memcachedtest.StartFake(t, nil)
			endpoint.SetScript(memcachedtest.ConfigEndpoint(1, nodes(server.Addr())...))
			memcachedtest.Eventually(t, func() bool { return db.Ping(t.Context()) == nil }, "it is tried again")
			logged.Await(t, 1, "info", "works again")
		})
	}
}

// Whatever an endpoint says later, the servers stay until it has a newer list.
func TestADiscoveryThatFailsLater(t *testing.T) {
	t.Parallel()
	server, other := memcachedtest.StartFake(t, nil), memcachedtest.StartFake(t, nil)
	endpoint := memcachedtest.StartFake(t, memcachedtest.ConfigEndpoint(5, nodes(server.Addr())...))
	logged := drivertest.NewLog()
	db := drivertest.Open(t, endpoint.Addr(), memcacheddriver.WithDiscovery(memcacheddriver.ElastiCache), memcacheddriver.WithDiscoveryInterval(ms(5)),
		memcacheddriver.WithTimeout(ms(300)), driver.WithLogger(logged))
	require.NoError(t, db.Ping(t.Context()))
	for _, script := range []memcachedtest.Script{
		{"config": memcachedtest.Say("CONFIG cluster 0 3\r\n6\n\n\r\nEND\r\n")}, // empty
		{"config": memcachedtest.HangUp},
		{"config": memcachedtest.Say("CONFIG cluster 0 9\r\n6\na|b|c d\n\r\nEND\r\n")},
		memcachedtest.ConfigEndpoint(4, nodes(other.Addr())...),
		memcachedtest.ConfigEndpoint(5, nodes(other.Addr())...),
	} {
		endpoint.SetScript(script)
		asked := endpoint.Count("*")
		memcachedtest.Eventually(t, func() bool { return endpoint.Count("*") > asked+3 }, "it is asked")
		require.Equal(t, []string{server.Addr()}, addrsOf(db))
		require.NoError(t, db.Ping(t.Context()))
	}
	require.Len(t, logged.Lines("warn"), 2, "each kind of trouble but once: %v", logged.Lines())
	endpoint.SetScript(memcachedtest.ConfigEndpoint(6, nodes(other.Addr())...))
	memcachedtest.Eventually(t, func() bool { return addrsOf(db)[0] == other.Addr() }, "a newer list is followed")
}

// With TLS and credentials as the servers', and of several endpoints the first one that
// answers.
func TestDiscoveryOverTLSWithCredentials(t *testing.T) {
	t.Parallel()
	locked := func(config memcachedtest.Handler) memcachedtest.Script {
		var open sync.Map // by connection
		return memcachedtest.Script{
			"version": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
				if _, ok := open.Load(c.N); !ok {
					c.Say("CLIENT_ERROR unauthenticated\r\n")
					return
				}
				c.Default(cmd)
			},
			"set": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
				open.Store(c.N, true)
				c.Say("STORED\r\n")
			},
			"config": config,
		}
	}
	server, roots1 := memcachedtest.StartFakeTLS(t, locked(memcachedtest.Hang))
	_, port, _ := net.SplitHostPort(server.Addr())
	dead := memcachedtest.StartFake(t, nil)
	dead.Close()
	endpoint, roots2 := memcachedtest.StartFakeTLS(t, locked(memcachedtest.ConfigEndpoint(1, "localhost||"+port)["config"]))
	db := drivertest.Open(t, dead.Addr()+","+endpoint.Addr()+"?discovery=elasticache", memcacheddriver.WithCredentials("ann", "secret"),
		driver.WithTLSConfig(trust(roots1, roots2)))
	require.NoError(t, db.Ping(t.Context()))
	require.Equal(t, []string{"localhost:" + port}, addrsOf(db))
	require.Contains(t, endpoint.Received(), "ann secret")
	require.Contains(t, server.Received(), "ann secret")
	require.Equal(t, dead.Addr()+","+endpoint.Addr(), db.DiscoveryStats().Endpoint)
}

// trust returns a config for servers of several authorities.
func trust(configs ...*tls.Config) *tls.Config {
	return &tls.Config{
		InsecureSkipVerify: true, // VerifyConnection does it
		VerifyConnection: func(state tls.ConnectionState) (err error) {
			for _, c := range configs {
				_, err = state.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: state.ServerName, Roots: c.RootCAs, Intermediates: pooled(state)})
				if err == nil {
					return nil
				}
			}
			return err
		},
	}
}

func pooled(state tls.ConnectionState) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		pool.AddCert(c)
	}
	return pool
}

// srvName is what the name servers of the tests are asked.
const srvName = "_memcached._tcp.cache.example."

// srvRecord is that of a server on this machine.
func srvRecord(t *testing.T, addr string) net.SRV {
	_, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	n, err := strconv.ParseUint(port, 10, 16)
	require.NoError(t, err)
	return net.SRV{Target: "localhost.", Port: uint16(n)}
}

// Credentials do not follow a list to another machine in the clear.
func TestDiscoveredServersGetNoCredentialsInTheClear(t *testing.T) {
	t.Parallel()
	endpoint := memcachedtest.StartFake(t, memcachedtest.ConfigEndpoint(1, "evil.example||11211"))
	for _, allowed := range []bool{false, true} {
		opts := []driver.Option{memcacheddriver.WithCredentials("ann", "secret")}
		if allowed {
			opts = append(opts, memcacheddriver.WithInsecureCredentials())
		}
		db := drivertest.Open(t, endpoint.Addr()+"?discovery=elasticache", opts...)
		err := db.Do(t.Context(), func(*memcache.Client) error { return nil })
		if allowed {
			require.NoError(t, err)
			continue
		}
		require.ErrorIs(t, err, memcacheddriver.ErrInvalidOption)
		require.NotContains(t, err.Error(), "secret")
	}
}

func TestDiscoveryBySRV(t *testing.T) {
	t.Parallel()
	_, addrs := drivertest.StartServers(t, 3)
	var records []net.SRV
	for _, a := range addrs {
		records = append(records, srvRecord(t, a))
	}
	slices.SortFunc(records, func(a, b net.SRV) int { return cmp.Compare(a.Port, b.Port) })
	at := func(records ...net.SRV) (addrs []string) {
		for _, r := range records {
			addrs = append(addrs, fmt.Sprintf("localhost:%d", r.Port))
		}
		return addrs
	}
	names := memcachedtest.StartNameServer(t)
	logged := drivertest.NewLog()
	db := drivertest.Open(t, strings.TrimSuffix(srvName, ".")+"?discovery=srv&discovery_interval=10ms", memcacheddriver.WithResolver(names.Resolver()), driver.WithLogger(logged))
	require.Zero(t, names.Queries())
	err := db.Ping(t.Context())
	require.ErrorContains(t, err, "discovery of servers by _memcached._tcp.cache.example: ")
	require.ErrorContains(t, err, "check the name")

	names.SetSRV(srvName, records[1], records[0])
	memcachedtest.Eventually(t, func() bool { return db.Ping(t.Context()) == nil }, "the name is there")
	require.Equal(t, at(records[:2]...), addrsOf(db), "sorted")
	require.EqualValues(t, -1, db.DiscoveryStats().Version)
	key := drivertest.Key()
	require.NoError(t, db.Set(t.Context(), key, []byte("v"), 0))

	names.SetFailing(true)
	memcachedtest.Eventually(t, func() bool { return db.DiscoveryStats().LastError != nil }, "a failure is told")
	_, err = db.Get(t.Context(), key)
	require.NoError(t, err)
	names.SetFailing(false)
	names.SetSRV(srvName)
	memcachedtest.Eventually(t, func() bool {
		err := db.DiscoveryStats().LastError
		return err != nil && strings.Contains(err.Error(), "no such host")
	}, "so is an empty answer")
	require.Equal(t, at(records[:2]...), addrsOf(db), "which changes nothing")
	require.Len(t, logged.Lines("warn", "the servers in use stay"), 1)

	names.SetSRV(srvName, records...)
	memcachedtest.Eventually(t, func() bool { return len(db.Stats()) == 3 }, "a change is followed")
	require.NoError(t, db.Ping(t.Context()))
}

// As a service does that knows a driver by its name.
func TestDiscoveryByDSNAlone(t *testing.T) {
	t.Parallel()
	_, addrs := drivertest.StartServers(t, 2)
	endpoint := memcachedtest.StartFake(t, memcachedtest.ConfigEndpoint(1, nodes(addrs...)...))
	db, err := kv.OpenDriver(t.Context(), "memcached", "memcached://"+endpoint.Addr()+"?discovery=elasticache&distribution=ketama")
	require.NoError(t, err)
	store, err := kv.Open(db)
	require.NoError(t, err)
	defer store.Close()
	key := drivertest.Key()
	require.NoError(t, store.Set(t.Context(), key, 1))
	value, err := drivertest.Open(t, strings.Join(addrs, ",")+"?distribution=ketama").Get(t.Context(), key)
	require.NoError(t, err)
	require.Equal(t, "1", string(value))
}

// The list changes all the time, the endpoint says nonsense in between, and no call
// fails.
func TestDiscoveryUnderLoad(t *testing.T) {
	t.Parallel()
	servers, addrs := drivertest.StartServers(t, 3)
	counts := connections(t, servers)
	endpoint := memcachedtest.StartFake(t, memcachedtest.ConfigEndpoint(1, nodes(addrs...)...))
	db := drivertest.Open(t, endpoint.Addr()+"?discovery=elasticache&discovery_interval=5ms&distribution=ketama", memcacheddriver.WithTTLQuery())
	load(t, db, func() {
		for version := int64(2); version < 150; version++ {
			from := rand.IntN(len(addrs))
			endpoint.SetScript(memcachedtest.ConfigEndpoint(version, nodes(addrs[from:]...)...))
			time.Sleep(10 * time.Millisecond)
			endpoint.SetScript(memcachedtest.Script{"config": []memcachedtest.Handler{memcachedtest.HangUp, memcachedtest.Say("END\r\n")}[rand.IntN(2)]})
			time.Sleep(10 * time.Millisecond)
		}
		endpoint.SetScript(memcachedtest.ConfigEndpoint(200, nodes(addrs[0])...))
		for _, left := range counts[1:] {
			memcachedtest.Eventually(t, func() bool { return left() == 0 }, "no connection is left to a server that left, under load")
		}
	})
}

func TestADriverThatDiscoversTakesNoServers(t *testing.T) {
	t.Parallel()
	db := drivertest.Open(t, "localhost?discovery=elasticache")
	err := db.SetServers("localhost")
	require.ErrorIs(t, err, kv.ErrNotSupported)
	require.ErrorContains(t, err, "WithDiscovery")
	for _, opt := range []driver.Option{memcacheddriver.WithDiscovery("consul"), memcacheddriver.WithDiscoveryInterval(-1)} {
		require.ErrorIs(t, memcacheddriver.New().Open(t.Context(), "mc1", opt), memcacheddriver.ErrInvalidOption)
	}
}

// Close does not wait for a look-up.
func TestCloseEndsALookUp(t *testing.T) {
	t.Parallel()
	endpoint := memcachedtest.StartFake(t, memcachedtest.Script{"config": memcachedtest.Hang})
	db := drivertest.Open(t, endpoint.Addr()+"?discovery=elasticache", memcacheddriver.WithTimeout(drivertest.Never))
	client := db.Client()
	errs := make(chan error, 2)
	go func() { _, err := db.Get(t.Context(), "k"); errs <- err }()
	go func() { _, err := client.Get("k"); errs <- err }()
	memcachedtest.Eventually(t, func() bool { return endpoint.Count("config") == 1 }, "it hangs")
	drivertest.NoDeadlock("Close", func() { require.NoError(t, db.Close()) })
	for range 2 {
		require.ErrorIs(t, <-errs, memcacheddriver.ErrNotOpen)
	}
}
