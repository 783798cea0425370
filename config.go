package memcacheddriver

import (
	"crypto/tls"
	"time"

	"github.com/xraph/go-utils/log"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

const (
	defaultFailureLimit = 3
	defaultRetryTimeout = time.Second
)

// config is what Open makes of the defaults, the DSN and the options, each
// beating the one before.
type config struct {
	addrs []pool.Addr

	dialTimeout, readTimeout, writeTimeout time.Duration

	maxIdleConns    int
	connMaxIdleTime time.Duration

	failureLimit int
	retryTimeout time.Duration

	tls            *tls.Config
	user, password string

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
		maxIdleConns: common.PoolSize,
		failureLimit: defaultFailureLimit,
		retryTimeout: defaultRetryTimeout,
	}
}

func orDefault[T time.Duration | int](v, byDefault T) T {
	if v == 0 {
		return byDefault
	}
	return v
}
