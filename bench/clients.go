package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	grafana "github.com/grafana/gomemcache/memcache"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/redisdriver"
)

// op is a call that is measured.
type op string

const (
	opGet    op = "Get"
	opSet    op = "Set"
	opMGet   op = "MGet"
	opMSet   op = "MSet"
	opDelete op = "Delete"
	opExists op = "Exists"
)

// value is what every key has.
var value = []byte(strings.Repeat("0123456789", 10))

// setters is how many goroutines a tuned client without batches sets or deletes
// by.
const setters = 32

// redisPool is the largest pool of redisdriver's: with more connections it was no
// quicker.
const redisPool = 64

// client is one way to do the work.
type client interface {
	// prepare returns a function for one caller that does o once: get and set
	// with one of keys after the other, the others with all of them. It fails if
	// a key is not there that should be.
	prepare(o op, keys []string) func() error
	close()
}

// setting is what a client is opened with.
type setting struct {
	addrs   []string
	tls     *tls.Config // nil: none
	callers int         // at the same time
	timeout time.Duration
}

// contestant is a client that takes turns with the others.
type contestant struct {
	name  string
	redis bool // its server is Redis
	open  func(setting) (client, error)
}

// Each is set up as its users would for that many callers.
var (
	ours        = contestant{name: "memcacheddriver", open: openOurs(false)}
	cancellable = contestant{name: "memcacheddriver, cancellable context", open: openOurs(true)}
	loop        = contestant{name: "gomemcache, in a loop", open: openGomemcache(1)}
	gomemcache  = contestant{name: "gomemcache", open: openGomemcache(setters)}
	fork        = contestant{name: "grafana/gomemcache", open: openGrafana}
	redis       = contestant{name: "redisdriver", redis: true, open: openRedis}
	hand        = contestant{name: "by hand", open: openByHand}
)

// library is a client with a function for each call.
type library struct {
	get                  func(key string) ([]byte, error)
	set                  func(key string, value []byte) error
	mset                 func(keys []string) func() error
	mget, delete, exists func(keys []string) (int, error)
	stop                 func()
}

func (c library) close() { c.stop() }

func (c library) prepare(o op, keys []string) func() error {
	next := 0
	counted := func(call func([]string) (int, error)) func() error {
		return func() error {
			n, err := call(keys)
			return expect(n, len(keys), err)
		}
	}
	switch o {
	case opGet:
		return func() error {
			next++
			v, err := c.get(keys[next%len(keys)])
			return expect(len(v), len(value), err)
		}
	case opSet:
		return func() error {
			next++
			return c.set(keys[next%len(keys)], value)
		}
	case opMSet:
		return c.mset(keys)
	case opMGet:
		return counted(c.mget)
	case opDelete:
		return counted(c.delete)
	}
	return counted(c.exists)
}

func expect(got, want int, err error) error {
	if err == nil && got != want {
		err = fmt.Errorf("got %d, expected %d", got, want)
	}
	return err
}

func openOurs(cancellable bool) func(setting) (client, error) {
	return func(s setting) (client, error) {
		ctx, cancel := context.Background(), func() {}
		if cancellable {
			ctx, cancel = context.WithCancel(ctx)
		}
		db := memcacheddriver.New()
		opts := []driver.Option{memcacheddriver.WithTimeout(s.timeout), memcacheddriver.WithMaxIdleConns(s.callers)}
		if s.tls != nil {
			opts = append(opts, driver.WithTLSConfig(s.tls))
		}
		err := db.Open(context.Background(), strings.Join(s.addrs, ","), opts...)
		return grove(ctx, cancel, db), err
	}
}

func openRedis(s setting) (client, error) {
	db := redisdriver.New()
	err := db.Open(context.Background(), "redis://"+s.addrs[0]+"/0",
		driver.WithReadTimeout(s.timeout), driver.WithWriteTimeout(s.timeout), driver.WithPoolSize(min(s.callers, redisPool)))
	return grove(context.Background(), func() {}, db), err
}

// groveDriver is what a driver of Grove's does.
type groveDriver interface {
	driver.Driver
	driver.BatchDriver
}

func grove(ctx context.Context, cancel func(), db groveDriver) library {
	return library{
		get: func(key string) ([]byte, error) { return db.Get(ctx, key) },
		set: func(key string, value []byte) error { return db.Set(ctx, key, value, 0) },
		mset: func(keys []string) func() error {
			pairs := make(map[string][]byte, len(keys))
			for _, key := range keys {
				pairs[key] = value
			}
			return func() error { return db.MSet(ctx, pairs, 0) }
		},
		mget: func(keys []string) (int, error) {
			values, err := db.MGet(ctx, keys)
			return len(values), err
		},
		delete: func(keys []string) (int, error) {
			n, err := db.Delete(ctx, keys...)
			return int(n), err
		},
		exists: func(keys []string) (int, error) {
			n, err := db.Exists(ctx, keys...)
			return int(n), err
		},
		stop: func() { cancel(); db.Close() },
	}
}

func openGomemcache(goroutines int) func(setting) (client, error) {
	return func(s setting) (client, error) {
		c := memcache.New(s.addrs...)
		c.Timeout = s.timeout
		c.MaxIdleConns = max(s.callers, goroutines)
		if s.tls != nil {
			c.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
				return (&tls.Dialer{Config: s.tls}).DialContext(ctx, network, addr)
			}
		}
		get := func(key string) ([]byte, error) {
			it, err := c.Get(key)
			if err != nil {
				return nil, err
			}
			return it.Value, nil
		}
		set := func(key string, value []byte) error { return c.Set(&memcache.Item{Key: key, Value: value}) }
		mget := func(keys []string) (int, error) {
			items, err := c.GetMulti(keys)
			return len(items), err
		}
		return native(get, set, c.Delete, mget, func() { c.Close() }, goroutines), nil
	}
}

func openGrafana(s setting) (client, error) {
	c := grafana.New(s.addrs...)
	c.Timeout = s.timeout
	c.ConnectTimeout = s.timeout
	c.MaxIdleConns = max(s.callers, setters)
	c.MinIdleConnsHeadroomPercentage = -1
	get := func(key string) ([]byte, error) {
		it, err := c.Get(key)
		if err != nil {
			return nil, err
		}
		return it.Value, nil
	}
	set := func(key string, value []byte) error { return c.Set(&grafana.Item{Key: key, Value: value}) }
	mget := func(keys []string) (int, error) {
		items, err := c.GetMulti(context.Background(), keys)
		return len(items), err
	}
	return native(get, set, c.Delete, mget, c.Close, setters), nil
}

// native is gomemcache or its fork. Neither has MSet, Exists or a multi-key
// Delete, so that these are what a caller would write: a loop, by several
// goroutines where it is tuned, and a GetMulti that is counted.
func native(get func(string) ([]byte, error), set func(string, []byte) error, remove func(string) error,
	mget func([]string) (int, error), stop func(), goroutines int) library {
	return library{
		get: get,
		set: set,
		mset: func(keys []string) func() error {
			return func() error {
				return each(goroutines, keys, func(key string) error { return set(key, value) })
			}
		},
		mget:   mget,
		delete: func(keys []string) (int, error) { return len(keys), each(goroutines, keys, remove) },
		exists: mget,
		stop:   stop,
	}
}

// each calls fn for all keys, by so many goroutines.
func each(goroutines int, keys []string, fn func(string) error) error {
	n := min(goroutines, len(keys))
	errs := make([]error, n)
	some := func(g int) {
		for i := g; i < len(keys) && errs[g] == nil; i += n {
			errs[g] = fn(keys[i])
		}
	}
	if n == 1 {
		some(0)
		return errs[0]
	}
	var wg sync.WaitGroup
	for g := range n {
		wg.Go(func() { some(g) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
