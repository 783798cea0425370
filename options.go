package memcacheddriver

import (
	"fmt"
	"time"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
)

// extra is where the options that Grove has no field for keep their settings in
// [driver.DriverOptions].
const extra = "memcacheddriver"

// settings change a config, in the order of the options.
type settings []func(*config) error

func setting(apply func(*config) error) driver.Option {
	return func(o *driver.DriverOptions) {
		s, _ := o.Extra[extra].(settings)
		if o.Extra == nil {
			o.Extra = make(map[string]any)
		}
		o.Extra[extra] = append(s, apply)
	}
}

// WithTimeout sets the read timeout and the write timeout. A single-key call
// takes at most the dial, the write and the read timeout together, however
// slowly a server sends, and once more the dial timeout where it had to wait for a
// connection; a read that is sent again has them anew, a batch for each
// complete reply, and CompareAndSwap for each of its exchanges. The default is 3 s each, which 0 stands
// for as well; negative is [ErrInvalidOption]. DSN: timeout=2s.
//
// [driver.WithReadTimeout] and [driver.WithWriteTimeout] set one of the two, and
// [driver.WithDialTimeout] that for connecting (default 5 s: name look-up,
// connect, TLS, authentication and the question what the server speaks). Of
// options that set the same, the last one counts; every option beats the DSN.
func WithTimeout(d time.Duration) driver.Option {
	return func(o *driver.DriverOptions) {
		o.ReadTimeout = d
		o.WriteTimeout = d
	}
}

// WithMaxOpenConns sets how many connections to each server there are at most, those
// that are being made included, whoever uses them: single calls, batches, Do and
// [MemcachedDB.Client]. The default is 64, which 0 stands for as well; negative is
// [ErrInvalidOption]. DSN: max_open_conns=128.
//
// Single-key calls need few: those above the first eight at a time on a server share
// two connections, and so do all that would have to wait for one. Any other call that
// finds none free waits, first come first served, until its context ends, but not longer
// than the dial timeout: then it fails with [ErrPoolTimeout]. No call holds a connection
// while it waits for another one, and Do holds one only from a request to its reply.
// With a limit of 1 nothing is shared.
//
// A memcached takes 1,024 connections unless it is told otherwise (-c): all processes
// together should stay below that. Stats tells whether calls wait.
func WithMaxOpenConns(n int) driver.Option {
	return setting(func(c *config) error {
		c.maxOpenConns = orDefault(n, defaultMaxOpenConns)
		if n < 0 {
			return fmt.Errorf("%w: WithMaxOpenConns: %d is negative", ErrInvalidOption, n)
		}
		return nil
	})
}

// WithMaxIdleConns sets how many idle connections to each server are kept for
// later calls, at most [WithMaxOpenConns]. The default is 10, which 0 stands for as
// well; negative is [ErrInvalidOption]. It is the same as [driver.WithPoolSize].
// DSN: max_idle_conns=64.
//
// It is enough for any number of single-key calls, which share connections where they
// are many. Add the number of batches, swaps and calls of Do and Client that usually
// run at the same time: those above it connect anew.
func WithMaxIdleConns(n int) driver.Option { return driver.WithPoolSize(n) }

// WithConnMaxIdleTime closes connections that have been idle for d. The default,
// 0, is never; negative is [ErrInvalidOption]. DSN: conn_max_idle_time=5m.
//
// It saves the server memory; it is not needed for a server that closes idle
// connections itself, as those are replaced without failing a call (but on
// Windows, where they cannot be looked at).
func WithConnMaxIdleTime(d time.Duration) driver.Option {
	return setting(func(c *config) error {
		c.connMaxIdleTime = d
		return notNegative("WithConnMaxIdleTime", d)
	})
}

// WithServerFailureLimit sets after how many failures in a row a server is taken
// to be down. Its calls then fail at once with [ErrServerDown], but for one each
// retryTimeout, which probes it. Failures are the server's own: no connection, a
// timeout, a reset; never a call's cancellation or deadline, unless the server has said
// nothing to anybody for a read timeout while replies were due. A server that goes
// down loses its idle connections, so that the probe dials, and looks its name up,
// anew.
//
// The default is 3 and 1 s. A limit of 0 turns it off, a retryTimeout of 0
// stands for the default; negative is [ErrInvalidOption]. DSN:
// server_failure_limit=3&server_retry_timeout=1s.
func WithServerFailureLimit(limit int, retryTimeout time.Duration) driver.Option {
	return setting(func(c *config) error {
		c.failureLimit = limit
		c.retryTimeout = orDefault(retryTimeout, defaultRetryTimeout)
		if limit < 0 {
			return fmt.Errorf("%w: WithServerFailureLimit: %d is negative", ErrInvalidOption, limit)
		}
		return notNegative("WithServerFailureLimit", retryTimeout)
	})
}

// WithCredentials makes each connection log in by memcached's ASCII
// authentication (memcached -Y). A server that refuses them gives [ErrAuth]; to
// one that asks for no authentication they are not sent, which the log tells once.
// Without TLS they would cross the network in the clear: unless every server is on
// this machine (a loopback address, localhost, a Unix socket), opening gives
// [ErrInvalidOption], and so do the calls that a list of [WithDiscovery] cannot be
// taken for; [WithInsecureCredentials] allows it. An empty user is
// ErrInvalidOption too. DSN: memcached://user:password@host, both percent-encoded.
func WithCredentials(user, password string) driver.Option {
	return setting(func(c *config) error {
		if user == "" {
			return fmt.Errorf("%w: WithCredentials: the user is empty", ErrInvalidOption)
		}
		c.user, c.password = user, password
		return nil
	})
}

// WithInsecureCredentials lets [WithCredentials] send them to other machines
// without TLS, where all who can listen on the network learn them: for a network
// that only trusted machines are on. The default is to refuse. It changes nothing
// with TLS or without credentials. DSN: insecure_credentials=true.
func WithInsecureCredentials() driver.Option {
	return setting(func(c *config) error {
		c.insecureCredentials = true
		return nil
	})
}

// Distribution is how keys are spread over several servers. All programs that share them
// need the same one, and the same list of servers in the same order.
type Distribution string

const (
	// Modulo is gomemcache's, the default: the CRC-32 of the key modulo the number of
	// servers, each of which counts as often as its weight. It takes the least time and
	// spreads most evenly, but when a server is added to n others, n of n+1 keys move.
	Modulo Distribution = "modulo"

	// Ketama is that of libmemcached (MEMCACHED_BEHAVIOR_KETAMA_WEIGHTED), and of all
	// that is built on it: a consistent hash, of which one of n+1 keys moves when a
	// server is added to n others. The order of the list is of no importance, but the
	// names of the servers are: a name, its IP address and another spelling of them
	// are three servers. One whose weight is less than about a fortieth of the average
	// gets no keys.
	Ketama Distribution = "ketama"
)

// WithDistribution sets how keys are spread over several servers: [Modulo], the default,
// or [Ketama]. Another one is [ErrInvalidOption], and so is Ketama where there is no MD5
// (GODEBUG=fips140=only). DSN: distribution=ketama.
//
// To change it for a running service moves nearly all of its keys.
func WithDistribution(d Distribution) driver.Option {
	return setting(func(c *config) error {
		if err := parseDistribution(string(d), &c.distribution); err != nil {
			return fmt.Errorf("%w: WithDistribution: %w", ErrInvalidOption, err)
		}
		return nil
	})
}

// Discovery is where the list of servers comes from, if not from the DSN.
type Discovery string

const (
	// ElastiCache is a configuration endpoint of AWS ElastiCache, or of Google
	// Memorystore, which speaks the same. The DSN names it, or several of them, which
	// are asked at the same time, and the first good answer counts. The servers are in
	// its order, by their host names where they have some.
	ElastiCache Discovery = "elasticache"

	// SRV is the SRV records of a name, such as Kubernetes has for each named port of a
	// headless service. The DSN is that name alone. The servers are the targets, by
	// name, sorted; priority and weight count for nothing.
	SRV Discovery = "srv"
)

// WithDiscovery makes the driver ask for its servers, by [ElastiCache] or [SRV]; any
// other is [ErrInvalidOption]. It asks with the TLS, the credentials and the timeouts of
// its other connections. The default is the DSN's own list. DSN: discovery=elasticache.
//
// Opening asks nothing. The first call, or Ping, does and waits for the answer as long
// as its context lets it; all that come meanwhile wait for the same one. If that fails,
// the error says so and names the endpoint, and is the same for all calls of the next
// second. From then on one goroutine asks every [WithDiscoveryInterval], until Close.
// Only a good list that is newer (by its version where there is one) replaces the one in
// use, as [MemcachedDB.SetServers] does: what is empty or makes no sense, an endpoint
// that is down, or a list to whose servers the credentials may not go, is logged, and
// the servers stay. A cluster that was created anew under its old name counts its
// versions anew: open the driver anew, too.
func WithDiscovery(d Discovery) driver.Option {
	return setting(func(c *config) error {
		if err := parseDiscovery(string(d), &c.discovery); err != nil {
			return fmt.Errorf("%w: WithDiscovery: %w", ErrInvalidOption, err)
		}
		return nil
	})
}

// WithDiscoveryInterval sets how often [WithDiscovery] asks for the servers, to within a
// tenth. The default is a minute, which 0 stands for as well; negative is
// [ErrInvalidOption]. DSN: discovery_interval=60s.
func WithDiscoveryInterval(d time.Duration) driver.Option {
	return setting(func(c *config) error {
		c.discoveryInterval = orDefault(d, defaultDiscoveryInterval)
		return notNegative("WithDiscoveryInterval", d)
	})
}

// WithTTLQuery makes TTL answer, with the remaining life of a key, on servers
// that speak the meta protocol (memcached 1.6.10). Without it TTL gives
// [kv.ErrNotSupported]. DSN: ttl_query=true.
func WithTTLQuery() driver.Option {
	return setting(func(c *config) error {
		c.ttlQuery = true
		return nil
	})
}

// WithKeyPrefix puts prefix in front of every key of the store and of the driver: on the
// servers keys have it, in results, errors and traces they do not. So several programs can
// share servers. It counts for the 250 bytes of a key, and for the choice of the server.
// The default is none. A prefix that is not a key itself, or leaves no room for one, is
// [ErrInvalidOption]. Do and Client see keys as they are on the servers. DSN:
// key_prefix=app:.
func WithKeyPrefix(prefix string) driver.Option {
	return setting(func(c *config) error {
		if err := parseKeyPrefix(prefix, &c.keyPrefix); err != nil {
			return fmt.Errorf("%w: WithKeyPrefix: %w", ErrInvalidOption, err)
		}
		return nil
	})
}

// PingPolicy says what [MemcachedDB.Ping] takes for good.
type PingPolicy string

const (
	// PingAll is all servers, the default.
	PingAll PingPolicy = "all"

	// PingAny is one server at least: Ping returns as soon as one has answered. The
	// others are asked all the same, which goes on after it, with the driver's timeouts.
	PingAny PingPolicy = "any"
)

// WithPingPolicy sets which servers must answer a Ping: [PingAll], the default, or
// [PingAny], for a health check that is not to take a service down for one cache server
// that is. Another one is [ErrInvalidOption]. DSN: ping=any.
func WithPingPolicy(p PingPolicy) driver.Option {
	return setting(func(c *config) error {
		if err := parsePingPolicy(string(p), &c.pingPolicy); err != nil {
			return fmt.Errorf("%w: WithPingPolicy: %w", ErrInvalidOption, err)
		}
		return nil
	})
}

// WithTracer has t told of every call of an open driver, of each server's part in one, and
// of every dial. Nil, the default, is nobody, which costs nothing. Client's calls, and what
// the function of a Do does, are not calls of the driver's: t is told of the Do. What
// makes a driver by its name alone, as Grove's registry does, has options by [New].
func WithTracer(t Tracer) driver.Option {
	return setting(func(c *config) error {
		c.tracer = t
		return nil
	})
}

// WithTracedKeys lets a [Tracer] see the keys of the calls, and those in errors, which
// may be personal data. The default is to keep them from it. It is never
// given values. DSN: traced_keys=true.
func WithTracedKeys() driver.Option {
	return setting(func(c *config) error {
		c.tracedKeys = true
		return nil
	})
}

// WithStoreOptions carries options of the store, such as [kv.WithCodec], through
// [OpenStore]. Open itself makes no store and refuses it with
// [ErrInvalidOption]: hand the options to kv.Open there.
func WithStoreOptions(opts ...kv.Option) driver.Option {
	return setting(func(c *config) error {
		c.store = append(c.store, opts...)
		return nil
	})
}

// apply lets what the options set beat what the config has.
func (c *config) apply(opts []driver.Option) error {
	o := &driver.DriverOptions{
		PoolSize:     c.maxIdleConns,
		DialTimeout:  c.dialTimeout,
		ReadTimeout:  c.readTimeout,
		WriteTimeout: c.writeTimeout,
		TLSConfig:    c.tls,
	}
	for _, opt := range opts {
		if opt != nil {
			opt(o)
		}
	}
	defaults := defaultConfig()
	for _, d := range []struct {
		option    string
		value     time.Duration
		to        *time.Duration
		byDefault time.Duration
	}{
		{"WithDialTimeout", o.DialTimeout, &c.dialTimeout, defaults.dialTimeout},
		{"WithReadTimeout or WithTimeout", o.ReadTimeout, &c.readTimeout, defaults.readTimeout},
		{"WithWriteTimeout or WithTimeout", o.WriteTimeout, &c.writeTimeout, defaults.writeTimeout},
	} {
		if err := notNegative(d.option, d.value); err != nil {
			return err
		}
		*d.to = orDefault(d.value, d.byDefault)
	}
	if o.PoolSize < 0 {
		return fmt.Errorf("%w: WithMaxIdleConns or WithPoolSize: %d is negative", ErrInvalidOption, o.PoolSize)
	}
	c.maxIdleConns = orDefault(o.PoolSize, defaults.maxIdleConns)
	if o.TLSConfig != nil {
		c.tls = o.TLSConfig
	}
	c.logger = o.Logger
	own, _ := o.Extra[extra].(settings)
	for _, apply := range own {
		if err := apply(c); err != nil {
			return err
		}
	}
	return nil
}

func notNegative(option string, d time.Duration) error {
	if d < 0 {
		return fmt.Errorf("%w: %s: %v is negative", ErrInvalidOption, option, d)
	}
	return nil
}
