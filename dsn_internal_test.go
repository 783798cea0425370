package memcacheddriver

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

func tcp(addrs ...string) (list []pool.Entry) {
	for _, a := range addrs {
		list = append(list, pool.Entry{Addr: pool.Addr{Net: "tcp", Address: a}, Weight: 1})
	}
	return list
}

func unix(path string) pool.Entry {
	return pool.Entry{Addr: pool.Addr{Net: "unix", Address: path}, Weight: 1}
}

func heavy(weight uint32, e pool.Entry) pool.Entry {
	e.Weight = weight
	return e
}

// parse is parseDSN, with the servers read.
func parse(dsn string, c *config) ([]pool.Entry, error) {
	servers, err := parseDSN(dsn, c)
	if err != nil {
		return nil, err
	}
	return parseServers(servers)
}

func TestDSNListsServers(t *testing.T) {
	t.Parallel()
	for dsn, want := range map[string][]pool.Entry{
		"localhost:11211":                     tcp("localhost:11211"),
		"localhost":                           tcp("localhost:11211"),
		"mc1":                                 tcp("mc1:11211"),
		"127.0.0.1":                           tcp("127.0.0.1:11211"),
		"127.0.0.1:11299":                     tcp("127.0.0.1:11299"),
		"mc1:1":                               tcp("mc1:1"),
		"mc1:65535":                           tcp("mc1:65535"),
		"mc1:00080":                           tcp("mc1:80"),
		"cache.internal.example.com:11211":    tcp("cache.internal.example.com:11211"),
		"my_cache-1:11211":                    tcp("my_cache-1:11211"),
		"MC1:11211":                           tcp("MC1:11211"),
		"[::1]:11299":                         tcp("[::1]:11299"),
		"[::1]":                               tcp("[::1]:11211"),
		"[2001:db8::1]:11211":                 tcp("[2001:db8::1]:11211"),
		"[fe80::1%eth0]:11211":                tcp("[fe80::1%eth0]:11211"),
		"[fe80::1%25eth0.7]":                  tcp("[fe80::1%25eth0.7]:11211"),
		"bücher.example":                      tcp("bücher.example:11211"),
		"bu\u0308cher":                        tcp("bu\u0308cher:11211"),
		"1:11211,2a":                          tcp("1:11211", "2a:11211"),
		"unix:11211":                          tcp("unix:11211"),
		"mc1:11211,mc2:11211,mc3:11211":       tcp("mc1:11211", "mc2:11211", "mc3:11211"),
		"mc1,mc2:11212,[::1]":                 tcp("mc1:11211", "mc2:11212", "[::1]:11211"),
		" mc1 ,\tmc2 , mc3 ":                  tcp("mc1:11211", "mc2:11211", "mc3:11211"),
		"mc1\n,mc2\n":                         tcp("mc1:11211", "mc2:11211"),
		"mc1,mc2,mc1":                         tcp("mc1:11211", "mc2:11211", "mc1:11211"), // weighs double
		"mc3,mc1,mc2":                         tcp("mc3:11211", "mc1:11211", "mc2:11211"), // the order is the mapping
		"memcached://mc1":                     tcp("mc1:11211"),
		"memcached://mc1:11212,mc2":           tcp("mc1:11212", "mc2:11211"),
		"MEMCACHED://mc1":                     tcp("mc1:11211"),
		" memcached://mc1 ":                   tcp("mc1:11211"),
		"/var/run/memcached.sock":             {unix("/var/run/memcached.sock")},
		"unix:///var/run/memcached.sock":      {unix("/var/run/memcached.sock")},
		"memcached:///var/run/memcached.sock": {unix("/var/run/memcached.sock")},
		"memcached://unix:///run/m":           {unix("/run/m")},
		"/run/a,/run/b":                       {unix("/run/a"), unix("/run/b")},
		"unix:///run/a, mc1":                  {unix("/run/a"), tcp("mc1:11211")[0]},
		"mc1,unix:///run/a":                   {tcp("mc1:11211")[0], unix("/run/a")},
		"mc1,/run/a?timeout=1s":               {tcp("mc1:11211")[0], unix("/run/a")},
		"/run/a b":                            {unix("/run/a b")},
		"mc1?":                                tcp("mc1:11211"),

		"mc1:11212:2":              {heavy(2, tcp("mc1:11212")[0])},
		"mc1:11212:1,mc2":          tcp("mc1:11212", "mc2:11211"),
		"[::1]:11211:3":            {heavy(3, tcp("[::1]:11211")[0])},
		"/run/a:2,unix:///run/b:3": {heavy(2, unix("/run/a")), heavy(3, unix("/run/b"))},
		"mc1:1:4294967295":         {heavy(math.MaxUint32, tcp("mc1:1")[0])},
	} {
		c := defaultConfig()
		got, err := parse(dsn, &c)
		if assert.NoError(t, err, dsn) {
			assert.Equal(t, want, got, dsn)
			if !strings.Contains(dsn, "timeout") {
				assert.Equal(t, defaultConfig(), c, dsn)
			}
		}
	}
}

func TestDSNParametersSetTheConfig(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]func(c *config){
		"timeout=2s":                 func(c *config) { c.readTimeout, c.writeTimeout = 2*time.Second, 2*time.Second },
		"timeout=1500ms":             func(c *config) { c.readTimeout, c.writeTimeout = 1500*time.Millisecond, 1500*time.Millisecond },
		"dial_timeout=2s":            func(c *config) { c.dialTimeout = 2 * time.Second },
		"read_timeout=2s":            func(c *config) { c.readTimeout = 2 * time.Second },
		"write_timeout=2s":           func(c *config) { c.writeTimeout = 2 * time.Second },
		"timeout=2s&read_timeout=1s": func(c *config) { c.readTimeout, c.writeTimeout = time.Second, 2*time.Second },
		"read_timeout=1s&timeout=2s": func(c *config) { c.readTimeout, c.writeTimeout = time.Second, 2*time.Second },
		"timeout=0":                  func(c *config) {},
		"timeout=0s&dial_timeout=0":  func(c *config) {},
		"max_idle_conns=64":          func(c *config) { c.maxIdleConns = 64 },
		"max_idle_conns=0":           func(c *config) {},
		"pool_size=3":                func(c *config) { c.maxIdleConns = 3 },
		"conn_max_idle_time=5m":      func(c *config) { c.connMaxIdleTime = 5 * time.Minute },
		"server_failure_limit=9":     func(c *config) { c.failureLimit = 9 },
		"server_failure_limit=0":     func(c *config) { c.failureLimit = 0 }, // off
		"server_retry_timeout=10s":   func(c *config) { c.retryTimeout = 10 * time.Second },
		"max_open_conns=128":         func(c *config) { c.maxOpenConns = 128 },
		"max_open_conns=0":           func(c *config) {},
		"ttl_query=true":             func(c *config) { c.ttlQuery = true },
		"ttl_query=1":                func(c *config) { c.ttlQuery = true },
		"ttl_query=false":            func(c *config) {},
		"traced_keys=true":           func(c *config) { c.tracedKeys = true },
		"traced_keys=false":          func(c *config) {},
		"ping=any":                   func(c *config) { c.pingPolicy = PingAny },
		"ping=all":                   func(c *config) {},
		"key_prefix=app:":            func(c *config) { c.keyPrefix = "app:" },
		"key_prefix=a%26b":           func(c *config) { c.keyPrefix = "a&b" },
		"key_prefix=":                func(c *config) {},
		"tls=true":                   func(c *config) { c.tls = &tls.Config{} },
		"tls=false":                  func(c *config) {},
		"insecure_credentials=true":  func(c *config) { c.insecureCredentials = true },
		"insecure_credentials=false": func(c *config) {},
		"distribution=ketama":        func(c *config) { c.distribution = Ketama },
		"distribution=modulo":        func(c *config) {},
		"discovery=elasticache":      func(c *config) { c.discovery = ElastiCache },
		"discovery=srv":              func(c *config) { c.discovery = SRV },
		"discovery_interval=5s":      func(c *config) { c.discoveryInterval = 5 * time.Second },
		"discovery_interval=0":       func(c *config) {},
		"timeout=2%73":               func(c *config) { c.readTimeout, c.writeTimeout = 2*time.Second, 2*time.Second },
		"":                           func(c *config) {},
		"timeout=2s&dial_timeout=3s&max_idle_conns=64&conn_max_idle_time=1m&server_failure_limit=5&server_retry_timeout=7s&ttl_query=true": func(c *config) {
			c.readTimeout, c.writeTimeout, c.dialTimeout = 2*time.Second, 2*time.Second, 3*time.Second
			c.maxIdleConns, c.connMaxIdleTime = 64, time.Minute
			c.failureLimit, c.retryTimeout, c.ttlQuery = 5, 7*time.Second, true
		},
	} {
		c := defaultConfig()
		_, err := parse("mc1?"+query, &c)
		expected := defaultConfig()
		want(&expected)
		if assert.NoError(t, err, query) {
			assert.Equal(t, expected, c, query)
		}
	}
}

// Every parameter is one of the table above: whoever adds one adds its test.
func TestDSNParametersAreAllTested(t *testing.T) {
	t.Parallel()
	var names []string
	for _, p := range params {
		names = append(names, p.name)
	}
	assert.ElementsMatch(t, []string{
		"timeout", "dial_timeout", "read_timeout", "write_timeout", "max_open_conns", "max_idle_conns", "pool_size", "conn_max_idle_time",
		"server_failure_limit", "server_retry_timeout", "tls", "insecure_credentials", "discovery", "discovery_interval", "distribution", "ttl_query",
		"key_prefix", "ping", "traced_keys",
	}, names)
}

func TestDSNHasCredentialsOfAllServers(t *testing.T) {
	t.Parallel()
	for dsn, want := range map[string][2]string{
		"memcached://ann:pw@mc1":                   {"ann", "pw"},
		"memcached://ann:pw@mc1:11212,mc2":         {"ann", "pw"},
		"memcached://ann:pw@[::1]":                 {"ann", "pw"},
		"memcached://ann:@mc1":                     {"ann", ""},
		"memcached://ann:p%40%3A%2F%3F%25@mc1":     {"ann", "p@:/?%"},
		"memcached://a%3Ann:pw@mc1":                {"a:nn", "pw"},
		"memcached://ann:a:b@mc1":                  {"ann", "a:b"},
		"memcached://ann:pw+d@mc1":                 {"ann", "pw+d"},
		"memcached://ann:p#[]&=; w:d@mc1":          {"ann", "p#[]&=; w:d"}, // what can mean nothing else needs no escape
		"memcached://ann:p%2F%2Cw@mc1":             {"ann", "p/,w"},
		"memcached://ann:pw@/run/m":                {"ann", "pw"},
		"memcached://ann:pw@mc1?max_idle_conns=64": {"ann", "pw"},
		"mc1": {"", ""},
	} {
		c := defaultConfig()
		addrs, err := parse(dsn, &c)
		if assert.NoError(t, err, dsn) {
			assert.Equal(t, want, [2]string{c.user, c.password}, dsn)
			for _, a := range addrs {
				assert.True(t, a.Net == "unix" || !strings.Contains(a.Address, "@"), "%s: the address is %s", dsn, a)
			}
		}
	}
}

// No mistake is passed over.
func TestInvalidDSNErrorsNameThePart(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ dsn, says string }{
		{"", "no server"},
		{"  ", "no server"},
		{"memcached://", "no server"},
		{"?timeout=2s", "no server"},
		{"memcached://?timeout=2s", "no server"},
		{"memcached://ann:pw@", "no server"},

		{",", "server 1"},
		{"mc1,", "server 2"},
		{",mc1", "server 1"},
		{"mc1,,mc3", "server 2"},
		{"mc1, ,mc3", "server 2"},

		{"mc1:", "port"},
		{"mc1:0", "port"},
		{"mc1:-1", "port"},
		{"mc1:+11211", "port"},
		{"mc1:65536", "port"},
		{"mc1:99999999999999999999", "port"},
		{"mc1:http", "port"},
		{"mc1:11 211", "port"},
		{"mc1,mc2:x", "server 2"},
		{"[::1]:", "port"},
		{"[::1]:x", "port"},
		{":11211", "host"},
		{"mc1,:11211", "server 2"},

		{"::1", "[::1]"},
		{"::1:11211", "[::1]:11211"},
		{"fe80::1:11211", "[::1]:11211"},
		{"2001:db8:0:0:0:0:0:1", "[::1]:11211"},
		{"mc1:11211:1:1", "nothing comes after host:port:weight"},
		{"mc1:11211:", "weight"},
		{"mc1:11211:0", "weight"},
		{"mc1:11211:-1", "weight"},
		{"mc1:11211:1.5", "weight"},
		{"mc1:11211:two", "weight"},
		{"mc1:11211:4294967296", "weight"},
		{"mc1,mc2:1:4294967295", "weights"},
		{"mc1::2", "[::1]:11211"},
		{"[::1]:11211:x", "weight"},
		{"[::1]::2", "port"},
		{"/run/m:x", "weight"},
		{"/run/m:1:1", "weight"},
		{"[::1", "]"},
		{"[]", "IPv6"},
		{"[]:11211", "IPv6"},
		{"[mc1]:11211", "IPv6"},
		{"[127.0.0.1]:11211", "IPv6"},
		{"[::1]11211", "only a port"},
		{"[::1]]:1", "only a port"},
		{"::1]:11211", "IPv6"},
		{"[fe80::1%a%b]", "IPv6"},
		{"[fe80::1%a:b]", "IPv6"},

		{"mc 1", "host name"},
		{"mc1 mc2", "host name"},
		{"mc1;mc2", "commas"},
		{"mc1]", "host name"},
		{"mc[1]", "host name"},
		{"mc1/", "no database numbers"},
		{"mc1/0", "no database numbers"},
		{"memcached://localhost:11211/0", "no database numbers"},
		{"mc1,11211", "server 2: it is only a number"},
		{"11211", "localhost:11211"},
		{"mc1#a", "host name"},
		{"mc1&timeout=2s", "after a ?"},
		{"mc1:11211&timeout=2s", "after a ?"},
		{"timeout=2s", "host name"},
		{"mc1\x00", "host name"},
		{"mc%31", "host name"},
		{"mc\u20281", "host name"},

		{"redis://mc1", "scheme"},
		{"http://mc1", "scheme"},
		{"tcp://mc1", "scheme"},
		{"://mc1", "scheme"},
		{"mc1,redis://mc2", "server 2"},
		{"memcached:mc1", "port"},
		{"memcached:/mc1", "there is a / in it"},
		{"memcached://memcached://mc1", ""},
		{"unix://", "path"},
		{"unix:///", "path"},
		{"unix:/run/m", "three slashes"},
		{"mc1,unix:/run/m", "server 2: a Unix socket"},
		{"unix://run/m", "path"},
		{"/", "path"},
		{"unix:///run/m:", "weight"},
		{"/:1", "path"},
		{"/run/m%2Esock", "%"},
		{"/run/m\x1b", "control character"},
		{"/run/\u2028m", "control character"},

		{"ann:pw@mc1", "memcached://"},
		{"memcached://ann@mc1", "user:password"},
		{"memcached://:pw@mc1", "user:password"},
		{"memcached://@mc1", "user:password"},
		{"memcached://ann:%zz@mc1", "user:password"},
		{"memcached://%zz:pw@mc1", "user:password"},
		{"memcached://ann:p@w@mc1", "server 1"},
		{"memcached://ann:p?w@mc1", "?"},
		{"mc1,ann:pw@mc2", "server 2"},
		{"memcached://ann:pw@mc1,ann:pw@mc2", "server 2"},
		{"memcached://mc1,ann:pw@mc2", "once, before all servers"},
		{"memcached://mc1:11211,ann:pw@mc2", "once, before all servers"},
		{"memcached://memcached://ann:pw@mc1", "user:password"},
		{"memcached:///ann:pw@mc1", "user:password"},
		{"memcached:///run/a@b", "user:password"},
		{"//ann:pw@mc1", "memcached://user:password@host"},
		{"unix:///ann:pw@mc1", "memcached://user:password@/path"},
		{"/run/a@b", "memcached://user:password@/path"},

		{"mc1?timout=2s", "parameter 1 is unknown; there are timeout, dial_timeout"},
		{"mc1?tls=true&&Timeout=2s", "parameter 3 is unknown"},
		{"mc1?x", "parameter 1"},
		{"mc1?=1", "parameter 1"},
		{"mc1?timeout", "timeout"},
		{"mc1?timeout=", "timeout"},
		{"mc1?timeout=2", "timeout"},
		{"mc1?timeout=2x", "timeout"},
		{"mc1?timeout=-2s", "timeout"},
		{"mc1?timeout=1s&timeout=2s", "timeout is given twice"},
		{"mc1?timeout=2s?x", "timeout"},
		{"mc1?dial_timeout=soon", "dial_timeout"},
		{"mc1?read_timeout=-1ms", "read_timeout"},
		{"mc1?write_timeout=1", "write_timeout"},
		{"mc1?max_idle_conns=-1", "max_idle_conns"},
		{"mc1?max_idle_conns=many", "max_idle_conns"},
		{"mc1?max_idle_conns=1.5", "max_idle_conns"},
		{"mc1?max_idle_conns=99999999999999999999", "max_idle_conns"},
		{"mc1?pool_size=", "pool_size"},
		{"mc1?pool_size=1&max_idle_conns=1", "pool_size"},
		{"mc1?conn_max_idle_time=-1s", "conn_max_idle_time"},
		{"mc1?server_failure_limit=-1", "server_failure_limit"},
		{"mc1?server_failure_limit=x", "server_failure_limit"},
		{"mc1?server_retry_timeout=1", "server_retry_timeout"},
		{"mc1?tls=maybe", "tls"},
		{"mc1?insecure_credentials=on", "insecure_credentials"},
		{"mc1?ttl_query=yes", "ttl_query"},
		{"mc1?distribution=crc32", "neither modulo nor ketama"},
		{"mc1?distribution=", "distribution"},
		{"mc1?discovery=consul", "neither elasticache nor srv"},
		{"mc1?discovery=", "discovery"},
		{"mc1?discovery_interval=60", "discovery_interval"},
		{"mc1?discovery_interval=-1s", "discovery_interval"},
		{"mc1,mc2:1:2?discovery=elasticache", "server 2: it has a weight"},
		{"mc1:11211?discovery=srv", "one SRV record"},
		{"mc1,mc2?discovery=srv", "one SRV record"},
		{"/run/m?discovery=srv", "one SRV record"},
		{"[::1]?discovery=srv", "one SRV record"},
		{"?discovery=srv", "one SRV record"},
		{"mc1?tls=true&timeout=%zz", "parameter 2"},
		{"mc1?%zz=1", "parameter 1"},
		{"mc1?timeout=2s;tls=true", "parameter"},
	} {
		err := New().Open(t.Context(), c.dsn)
		if !assert.ErrorIs(t, err, ErrInvalidDSN, "%q is taken", c.dsn) {
			continue
		}
		// Past what every such error begins with.
		_, text, found := strings.Cut(err.Error(), ErrInvalidDSN.Error()+": ")
		require.True(t, found, err.Error())
		assert.Contains(t, text, c.says, "%q", c.dsn)
		assert.NotContains(t, text, "\n")
	}
}

// Nothing of a DSN that may be a password is in what the driver says of it,
// however wrongly it is written. WORD stands for the password.
func TestNoDSNTellsASecret(t *testing.T) {
	t.Parallel()
	shapes := []string{
		// In place.
		"memcached://ann:WORD@mc1", "memcached://ann:WORD@/run/m", "memcached://WORD:pw@mc1", "memcached://ann:WORD@unix:///run/m",
		"memcached://ann:WORD@mc1?insecure_credentials=true", "memcached://ann:WORD@localhost",
		// In place, and something else is wrong.
		"memcached://ann:WORD@", "memcached://ann:WORD@mc1,", "memcached://ann:WORD@mc1:x", "memcached://ann:WORD@mc 1",
		"memcached://ann:WORD@mc1?nonsense=1", "memcached://ann:WORD@mc1?timeout=x", "memcached://ann:WORD@mc1?%zz", "memcached://ann:WORD@redis://mc1",
		// Without the scheme, with another one, with two, with half of one.
		"ann:WORD@mc1", "ann:WORD@mc1:x", "WORD@mc1", ":WORD@mc1", "//ann:WORD@mc1", "///ann:WORD@mc1", "/ann:WORD@mc1", "://ann:WORD@mc1",
		"redis://ann:WORD@mc1", "redis://:WORD@mc1/0", "rediss://WORD@mc1", "ann:WORD://mc1", "memcached+tls://ann:WORD@mc1",
		"memcached:ann:WORD@mc1", "memcached:/ann:WORD@mc1", "memcached//ann:WORD@mc1", "memcached:///ann:WORD@mc1", "memcached:////ann:WORD@mc1",
		"memcached://memcached://ann:WORD@mc1", "memcached://unix://ann:WORD@/run/m", "memcached://unix:///ann:WORD@mc1",
		"unix:///ann:WORD@mc1", "unix://ann:WORD@/run/m", "unix:/ann:WORD@mc1", "/run/m:ann:WORD",
		// For one server of the list.
		"mc1,ann:WORD@mc2", "memcached://mc1,ann:WORD@mc2", "memcached://ann:WORD@mc1,ann:WORD@mc2", "memcached://mc1,memcached://ann:WORD@mc2", "mc1,/ann:WORD@mc2",
		// Behind the servers.
		"mc1@ann:WORD", "mc1/ann:WORD", "mc1 ann:WORD", "mc1:ann:WORD", "mc1#ann:WORD", "mc1;ann:WORD", "mc1&password=WORD", "mc1:11211:WORD", "[::1]:WORD", "[::1]WORD", "[::1%ann:WORD]", "[ann:WORD]", "[WORD]",
		"mc1?password=WORD", "mc1?WORD", "mc1?WORD=1", "mc1?timeout=WORD", "mc1?tls=WORD", "mc1?pool_size=WORD", "mc1?server_failure_limit=WORD", "mc1?timeout=-WORD",
		"mc1?user=ann&password=WORD&timeout=x", "mc1?password=WORD%zz", "mc1?%zzWORD", "mc1?tls=true;WORD", "mc1?ann:WORD@", "mc1?ann:WORD@mc1", "mc1?tls=true&ann:WORD", "mc1?timeout=1s?WORD",
		// The @ is another character, or there is none.
		"memcached://ann:WORD%40mc1", "memcached:///ann:WORD%40mc1", "memcached:///ann:WORD", "unix:///ann:WORD", "memcached://ann:WORD#mc1", "memcached://ann:WORD/mc1", "memcached://ann:WORD,mc1", "memcached://ann:WORD",
		"memcached://ann:WORD mc1", "memcached://ann%3AWORD%40mc1", "memcached:///ann%3AWORD%40mc1", "ann%3AWORD%40mc1", "ann%3aWORD", "%2Fann%3AWORD%40mc1", "memcached%3A%2F%2Fann%3AWORD%40mc1", "[::1%25ann%3AWORD%40mc1]",
	}
	// What a password may have in it that is not percent-encoded.
	for _, special := range []string{"@", ":", "/", "?", "#", "%", "&", "=", ",", ";", " ", "\n", "\t", "[", "]", "%zz", "%40", "://", "ü", "\xff"} {
		shapes = append(shapes, "memcached://ann:x"+special+"WORD@mc1", "memcached://ann:WORD"+special+"x@mc1", "ann:x"+special+"WORD@mc1",
			"memcached:///ann:WORD"+special+"x@mc1", "memcached://ann:WORD"+special+"x@mc1:x,?x", "mc1?password=x"+special+"WORD")
	}
	for _, shape := range shapes {
		assertTellsNothing(t, strings.ReplaceAll(shape, "WORD", "hunter2"), "hunter2")
	}
}

// assertTellsNothing opens dsn and looks for the secret in all that comes of it.
func assertTellsNothing(t *testing.T, dsn, secret string) {
	t.Helper()
	db := New()
	defer db.Close()
	err := db.Open(t.Context(), dsn)
	assert.NotContains(t, fmt.Sprintf("%v %#v", err, err), secret, "%q", dsn)
	for e := err; e != nil; e = errors.Unwrap(e) {
		assert.NotContains(t, e.Error(), secret, "%q", dsn)
	}
	for _, st := range db.Stats() {
		assert.NotContains(t, st.Addr, secret, "%q", dsn)
	}
}
