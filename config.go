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
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

const (
	defaultMaxOpenConns = 64
	defaultFailureLimit = 3
	defaultRetryTimeout = time.Second
)

// config is what Open makes of the defaults, the DSN and the options, each
// beating the one before.
type config struct {
	servers      []pool.Entry
	distribution Distribution

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
		failureLimit: defaultFailureLimit,
		retryTimeout: defaultRetryTimeout,
	}
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
