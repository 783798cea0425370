package memcacheddriver_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
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

// net.Resolver.LookupSRV by itself heeds a deadline, but no cancellation.
func TestCloseWaitsForNoNameServer(t *testing.T) {
	t.Parallel()
	hung := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.Hang))
	names := memcachedtest.StartNameServer(t)
	names.SetSRV(srvName, srvRecord(t, hung.Addr()))
	db := drivertest.Open(t, srvName+"?discovery=srv&discovery_interval=20ms&timeout=1h&dial_timeout=1h", memcacheddriver.WithResolver(names.Resolver()))
	inFlight := make(chan error, 1)
	go func() { _, err := db.Get(t.Context(), "k"); inFlight <- err }()
	memcachedtest.Eventually(t, func() bool { return hung.Count("get")+hung.Count("gets") > 0 }, "a call is in flight")
	names.SetSilent(true)
	asked := names.Queries()
	memcachedtest.Eventually(t, func() bool { return names.Queries() > asked }, "a look-up is under way")
	start := time.Now()
	require.NoError(t, db.Close())
	require.ErrorIs(t, <-inFlight, memcacheddriver.ErrNotOpen)
	require.Less(t, time.Since(start), drivertest.Never/4)
}

func TestCloseWaitsForNoFirstAnswer(t *testing.T) {
	t.Parallel()
	names := memcachedtest.StartNameServer(t)
	names.SetSilent(true)
	db := drivertest.Open(t, srvName+"?discovery=srv&dial_timeout=1h", memcacheddriver.WithResolver(names.Resolver()))
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, db.Ping(ctx), context.DeadlineExceeded)
	start := time.Now()
	require.NoError(t, db.Close())
	require.Less(t, time.Since(start), drivertest.Never/4)
}

// Such as one that asks a vault.
func TestCloseWaitsForNoTLSCallback(t *testing.T) {
	t.Parallel()
	proceed, in := make(chan struct{}), make(chan struct{})
	endpoint, _ := memcachedtest.StartFakeTLS(t, memcachedtest.ConfigEndpoint(1, "localhost||1"))
	db := memcacheddriver.New()
	require.NoError(t, db.Open(t.Context(), endpoint.Addr()+"?discovery=elasticache", driver.WithTLSConfig(&tls.Config{
		InsecureSkipVerify: true,
		VerifyConnection:   func(tls.ConnectionState) error { close(in); <-proceed; return nil },
	})))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	require.Error(t, db.Ping(ctx))
	<-in
	drivertest.NoDeadlock("a callback that hangs", func() { require.NoError(t, db.Close()) })
	close(proceed)
}

// Which panics under GODEBUG=fips140=only: opening says so.
func TestKetamaWithoutMD5(t *testing.T) {
	if dsn := os.Getenv("TEST_KETAMA_DSN"); dsn != "" {
		err := memcacheddriver.New().Open(t.Context(), dsn)
		require.ErrorIs(t, err, memcacheddriver.ErrInvalidOption)
		require.ErrorContains(t, err, "MD5")
		return
	}
	for _, dsn := range []string{"mc1,mc2?distribution=ketama", "mc1?distribution=ketama", "mc1?discovery=elasticache&distribution=ketama"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKetamaWithoutMD5$", "-test.timeout=20s")
		cmd.Env = append(os.Environ(), "GODEBUG=fips140=only", "TEST_KETAMA_DSN="+dsn)
		out, err := cmd.CombinedOutput()
		assert.NoError(t, err, "%s: %.600s", dsn, out)
	}
}

// Of several endpoints one hangs, and another one says no.
func TestEveryEndpointsFailureIsTold(t *testing.T) {
	t.Parallel()
	hangs := memcachedtest.StartFake(t, memcachedtest.Script{"*": memcachedtest.Hang})
	refuses := memcachedtest.StartFake(t, memcachedtest.Script{
		"version": memcachedtest.Say("CLIENT_ERROR unauthenticated\r\n"), "set": memcachedtest.Say("CLIENT_ERROR authentication failure\r\n"),
	})
	db := drivertest.Open(t, "memcached://ann:secret@"+hangs.Addr()+","+refuses.Addr()+"?discovery=elasticache&timeout=300ms&dial_timeout=300ms")
	err := db.Ping(t.Context())
	require.ErrorIs(t, err, memcacheddriver.ErrAuth)
	require.ErrorContains(t, err, refuses.Addr()+": authentication refused")
	require.ErrorContains(t, err, hangs.Addr()+": no connection within the dial timeout of 300ms")
}

func TestAnEndpointIsNotThere(t *testing.T) {
	t.Parallel()
	dead := memcachedtest.StartFake(t, nil)
	dead.Close()
	err := drivertest.Open(t, dead.Addr()+"?discovery=elasticache").Ping(t.Context())
	require.ErrorContains(t, err, "discovery of servers by "+dead.Addr())
	require.ErrorContains(t, err, "is memcached running there?")
}

// As a server that asks for them and is given none.
func TestAnEndpointAsksForCredentials(t *testing.T) {
	t.Parallel()
	no := memcachedtest.Script{"*": memcachedtest.Say("CLIENT_ERROR unauthenticated\r\n"), "config": memcachedtest.Say("CLIENT_ERROR unauthenticated\r\n")}
	no["mn"], no["version"] = no["*"], no["*"]
	f := memcachedtest.StartFake(t, no)
	require.ErrorIs(t, drivertest.Open(t, f.Addr()).Ping(t.Context()), memcacheddriver.ErrAuth, "without discovery")
	err := drivertest.Open(t, f.Addr()+"?discovery=elasticache").Ping(t.Context())
	assert.ErrorIs(t, err, memcacheddriver.ErrAuth)
	assert.ErrorContains(t, err, "WithCredentials")
}

// As ElastiCache's does with encryption in transit.
func TestAnEndpointExpectsTLS(t *testing.T) {
	t.Parallel()
	f, _ := memcachedtest.StartFakeTLS(t, memcachedtest.ConfigEndpoint(1, "localhost||1"))
	err := drivertest.Open(t, f.Addr()+"?timeout=300ms").Ping(t.Context())
	require.ErrorContains(t, err, "does it expect TLS?", "without discovery")
	err = drivertest.Open(t, f.Addr()+"?discovery=elasticache&timeout=300ms&dial_timeout=300ms").Ping(t.Context())
	assert.ErrorContains(t, err, "TLS")
}

// It may hold credentials, or a value.
func TestNothingOfAnAnswerIsQuoted(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"first line":      "ann s3cret\r\n",
		"version":         "CONFIG cluster 0 9\r\nann s3cret\r\n",
		"node":            "CONFIG cluster 0 9\r\n1\nann|s3cret\n\r\nEND\r\n",
		"behind the list": "CONFIG cluster 0 9\r\n1\na||1\nann s3cret\r\n",
		"cut in two":      "CLIENT_ERROR " + strings.Repeat("x", 200-13-4) + "s3cret\r\n",
	} {
		logged := drivertest.NewLog()
		f := memcachedtest.StartFake(t, memcachedtest.Script{"config": memcachedtest.Say(answer)})
		err := drivertest.Open(t, "memcached://ann:s3cret@"+f.Addr()+"?discovery=elasticache", driver.WithLogger(logged)).Ping(t.Context())
		assert.NotContains(t, err.Error(), "s3cr", name)
	}
	// and a value of somebody's on a plain memcached
	s := memcachedtest.StartFake(t, memcachedtest.Script{"get": memcachedtest.Say(memcachedtest.Value("AmazonElastiCache:cluster", "a value") + "END\r\n")})
	err := drivertest.Open(t, s.Addr()+"?discovery=elasticache").Ping(t.Context())
	assert.NotContains(t, err.Error(), "a value")
}

// A name server may write a name in another case, which makes it no other server.
func TestNamesDoNotTellCase(t *testing.T) {
	t.Parallel()
	s := memcachedtest.StartFake(t, nil)
	record := srvRecord(t, s.Addr())
	inCapitals := net.SRV{Target: "LocalHost.", Port: record.Port}
	names := memcachedtest.StartNameServer(t)
	names.SetSRV(srvName, record)
	db := drivertest.Open(t, srvName+"?discovery=srv&discovery_interval=10ms", memcacheddriver.WithResolver(names.Resolver()))
	require.NoError(t, db.Ping(t.Context()))
	require.Len(t, db.Stats(), 1)
	dials := db.Stats()[0].Dials
	names.SetSRV(srvName, inCapitals)
	asked := names.Queries()
	memcachedtest.Eventually(t, func() bool { return names.Queries() > asked+3 }, "asked")
	require.NoError(t, db.Ping(t.Context()))
	addr := fmt.Sprint("localhost:", record.Port)
	assert.Equal(t, addr, db.Stats()[0].Addr)
	assert.Equal(t, dials, db.Stats()[0].Dials, "the server stays")
	names.SetSRV(srvName, inCapitals, record)
	asked = names.Queries()
	memcachedtest.Eventually(t, func() bool { return names.Queries() > asked+3 }, "asked")
	assert.Len(t, db.Stats(), 1, "one server")

	endpoint := memcachedtest.StartFake(t, memcachedtest.ConfigEndpoint(1, fmt.Sprint("localhost||", record.Port), fmt.Sprint("LOCALHOST||", record.Port)))
	db = drivertest.Open(t, endpoint.Addr()+"?discovery=elasticache")
	require.NoError(t, db.Ping(t.Context()))
	assert.Len(t, db.Stats(), 1, "one server by ElastiCache")
}

func TestWhatNeedsNoServerDiscoversNone(t *testing.T) {
	t.Parallel()
	dead := memcachedtest.StartFake(t, nil)
	dead.Close()
	db := drivertest.Open(t, dead.Addr()+"?discovery=elasticache")
	_, err := db.TTL(t.Context(), "k")
	assert.ErrorIs(t, err, kv.ErrNotSupported)
	_, err = db.MGet(t.Context(), nil)
	assert.NoError(t, err, "MGet of nothing")
	assert.NoError(t, db.MSet(t.Context(), nil, 0), "MSet of nothing")
	_, err = db.Delete(t.Context())
	assert.NoError(t, err, "Delete of nothing")
}

// It moves keys.
func TestAnotherOrderIsLogged(t *testing.T) {
	t.Parallel()
	endpoint := memcachedtest.StartFake(t, memcachedtest.ConfigEndpoint(1, "|127.0.0.1|1", "|127.0.0.1|2"))
	logged := drivertest.NewLog()
	db := drivertest.Open(t, endpoint.Addr()+"?discovery=elasticache&discovery_interval=10ms", driver.WithLogger(logged))
	_ = db.Ping(t.Context())
	logged.Await(t, 1, "info", "came: 127.0.0.1:1, 127.0.0.1:2")
	endpoint.SetScript(memcachedtest.ConfigEndpoint(2, "|127.0.0.1|2", "|127.0.0.1|1"))
	memcachedtest.Eventually(t, func() bool { return db.Stats()[0].Addr == "127.0.0.1:2" }, "changed")
	logged.Await(t, 1, "info", "2 servers from now on; came: none; left: none")
}

// It is no end of the caller's context.
func TestANameServerThatSaysNothing(t *testing.T) {
	t.Parallel()
	names := memcachedtest.StartNameServer(t)
	names.SetSilent(true)
	db := drivertest.Open(t, srvName+"?discovery=srv&dial_timeout=300ms", memcacheddriver.WithResolver(names.Resolver()))
	err := db.Ping(t.Context())
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
	assert.NotErrorIs(t, err, context.DeadlineExceeded)
	assert.ErrorContains(t, err, "within 300ms")
}

// As the testing package's FailNow does.
func TestACallbackEndsALookUp(t *testing.T) {
	t.Parallel()
	endpoint, _ := memcachedtest.StartFakeTLS(t, memcachedtest.ConfigEndpoint(1, "localhost||1"))
	db := drivertest.Open(t, endpoint.Addr()+"?discovery=elasticache&timeout=200ms&dial_timeout=200ms", driver.WithTLSConfig(&tls.Config{
		InsecureSkipVerify: true,
		VerifyConnection: func(tls.ConnectionState) error {
			runtime.Goexit()
			return nil
		},
	}))
	require.ErrorContains(t, db.Ping(t.Context()), "discovery of servers by "+endpoint.Addr())
}

func TestOneOfTwoEndpointsHangs(t *testing.T) {
	t.Parallel()
	server := memcachedtest.StartFake(t, nil)
	works := memcachedtest.StartFake(t, memcachedtest.ConfigEndpoint(1, nodes(server.Addr())...))
	for name, hangs := range map[string]string{
		"answering":  memcachedtest.StartFake(t, memcachedtest.Script{"*": memcachedtest.Hang}).Addr(),
		"connecting": memcachedtest.BlackHole(t),
	} {
		t.Run(name, func(t *testing.T) {
			db := drivertest.Open(t, hangs+","+works.Addr()+"?discovery=elasticache", memcacheddriver.WithTimeout(drivertest.Never), driver.WithDialTimeout(drivertest.Never))
			start := time.Now()
			require.NoError(t, db.Ping(t.Context()))
			require.Less(t, time.Since(start), drivertest.Never/4)
		})
	}
}

// Which may be a quarter of a megabyte.
func TestALongListIsLoggedInShort(t *testing.T) {
	t.Parallel()
	var all []string
	for i := range 1000 {
		all = append(all, fmt.Sprintf("%s%03d||1", strings.Repeat("a", 249), i))
	}
	endpoint := memcachedtest.StartFake(t, memcachedtest.ConfigEndpoint(1, all...))
	logged := drivertest.NewLog()
	db := drivertest.Open(t, endpoint.Addr()+"?discovery=elasticache", driver.WithLogger(logged))
	require.NoError(t, db.Do(t.Context(), func(*memcache.Client) error { return nil })) // which dials no server
	logged.Await(t, 1, "info", "1000 servers")
	assert.Less(t, len(logged.Lines("info")[0]), 16<<10)
}
