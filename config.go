package memcacheddriver

import (
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/xraph/go-utils/log"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/ketama"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

const (
	defaultMaxOpenConns = 64
	defaultFailureLimit = 3
	defaultRetryTimeout = time.Second

	defaultDiscoveryInterval = time.Minute
)

// config is what Open makes of the defaults, the DSN and the options, each
// beating the one before.
type config struct {
	servers      []pool.Entry // none where they are discovered
	distribution Distribution

	discovery         Discovery // "" is none
	discoveryInterval time.Duration
	endpoints         []pool.Entry // of ElastiCache
	srvName           string
	resolver          *net.Resolver // of SRV names

	dialTimeout, readTimeout, writeTimeout time.Duration

	maxOpenConns    int
	maxIdleConns    int
	connMaxIdleTime time.Duration

	failureLimit int
	retryTimeout time.Duration

	tls            *tls.Config
	user, password string

	insecureCredentials bool // they may be sent anywhere without TLS

	ttlQuery bool

	logger log.Logger // nil is none

	keyPrefix  string
	pingPolicy PingPolicy

	tracer     Tracer // nil is none
	tracedKeys bool

	store []kv.Option // of WithStoreOptions
}

func defaultConfig() config {
	common := driver.DefaultDriverOptions()
	return config{
		dialTimeout:  common.DialTimeout,
		readTimeout:  common.ReadTimeout,
		writeTimeout: common.WriteTimeout,
		maxOpenConns: defaultMaxOpenConns,
		maxIdleConns: common.PoolSize,
		distribution: Modulo,
		pingPolicy:   PingAll,

		discoveryInterval: defaultDiscoveryInterval,
		resolver:          net.DefaultResolver,

		failureLimit: defaultFailureLimit,
		retryTimeout: defaultRetryTimeout,
	}
}

// setServers reads the servers of a DSN, for what the config says of them.
func (c *config) setServers(list string) error {
	if c.distribution == Ketama && !ketama.Usable() {
		return fmt.Errorf("%w: WithDistribution: ketama needs MD5, which GODEBUG=fips140=only forbids", ErrInvalidOption)
	}
	if c.discovery == SRV {
		if c.srvName = strings.TrimSpace(list); c.srvName == "" || !isName(c.srvName) {
			return invalidDSN("with discovery=srv it names one SRV record, without a port, as in _memcached._tcp.example.com")
		}
		return nil
	}
	entries, err := parseServers(list)
	if err != nil {
		return err
	}
	if err := c.checkCredentials(entries); err != nil {
		return err
	}
	if c.discovery == "" {
		c.servers = entries
		return nil
	}
	for i, e := range entries {
		if e.Weight != 1 {
			return invalidDSN("server %d: it has a weight, but with discovery it is where to ask for the servers", i+1)
		}
	}
	c.endpoints = entries
	return nil
}

// checkCredentials refuses to send them to another machine in the clear.
func (c *config) checkCredentials(servers []pool.Entry) error {
	if c.user == "" || c.tls != nil || c.insecureCredentials {
		return nil
	}
	for _, e := range servers {
		if !isLocal(e.Addr) {
			return fmt.Errorf("%w: WithCredentials: to server %s they would cross the network in the clear; use TLS (tls=true, or driver.WithTLSConfig), or allow it by WithInsecureCredentials (insecure_credentials=true)", ErrInvalidOption, e)
		}
	}
	return nil
}

// isLocal reports whether a is this machine by its name.
func isLocal(a pool.Addr) bool {
	host, _, _ := net.SplitHostPort(a.Address)
	if a.Net == "unix" || strings.EqualFold(strings.TrimSuffix(host, "."), "localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

func orDefault[T time.Duration | int](v, byDefault T) T {
	if v == 0 {
		return byDefault
	}
	return v
}
