package main

import (
	"context"
	"errors"
	"fmt"
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

const (
	timeout  = 3 * time.Second
	maxConns = 256 // idle connections of the clients that are tuned, as many as the goroutines

	// setters is how many goroutines a tuned client without batches sets or
	// deletes by.
	setters = 32
)

// client is one way to do the work.
type client interface {
	// prepare returns a function for one goroutine that does o once: get and set
	// with one of keys after the other, the others with all of them. It fails if
	// a key is not there that should be.
	prepare(o op, keys []string) func() error
	close()
}

// contestant is a column of the table.
type contestant struct {
	name    string
	redis   bool // its server is Redis, and there is one of it
	servers int  // if not as many as the work says
	open    func(addrs []string) (client, error)
}

var (
	ours        = contestant{name: "memcacheddriver", open: openOurs(context.Background())}
	cancellable = contestant{name: "memcacheddriver, cancellable context", open: openCancellable}
	bare        = contestant{name: "gomemcache", open: openBare(0, 1)}
	tuned       = contestant{name: "gomemcache, tuned", open: openBare(maxConns, setters)}
	fork        = contestant{name: "grafana/gomemcache, tuned", open: openGrafana}
	redisGrove  = contestant{name: "redisdriver", redis: true, open: openRedis}
	hand        = contestant{name: "by hand", open: openByHand}
)

// groveDriver is what a driver of Grove's does.
type groveDriver interface {
	driver.Driver
	driver.BatchDriver
}

// grove is a client of Grove's, this driver or another one.
type grove struct {
	db     groveDriver
	ctx    context.Context
	cancel context.CancelFunc
}

func openOurs(ctx context.Context) func([]string) (client, error) {
	return func(addrs []string) (client, error) {
		db := memcacheddriver.New()
		err := db.Open(ctx, strings.Join(addrs, ","),
			memcacheddriver.WithTimeout(timeout), memcacheddriver.WithMaxIdleConns(maxConns))
		return grove{db, ctx, func() {}}, err
	}
}

func openCancellable(addrs []string) (client, error) {
	ctx, cancel := context.WithCancel(context.Background())
	c, err := openOurs(ctx)(addrs)
	g := c.(grove)
	g.cancel = cancel
	return g, err
}

func openRedis(addrs []string) (client, error) {
	db := redisdriver.New()
	err := db.Open(context.Background(), "redis://"+addrs[0]+"/0",
		driver.WithReadTimeout(timeout), driver.WithWriteTimeout(timeout), driver.WithPoolSize(maxConns))
	return grove{db, context.Background(), func() {}}, err
}

func (c grove) close() {
	c.cancel()
	c.db.Close()
}

func (c grove) prepare(o op, keys []string) func() error {
	next := 0
	pairs := pairsOf(keys)
	return map[op]func() error{
		opGet: func() error {
			next++
			v, err := c.db.Get(c.ctx, keys[next%len(keys)])
			return expect(len(v), len(value), err)
		},
		opSet: func() error {
			next++
			return c.db.Set(c.ctx, keys[next%len(keys)], value, 0)
		},
		opMGet: func() error {
			values, err := c.db.MGet(c.ctx, keys)
			return expect(len(values), len(keys), err)
		},
		opMSet: func() error {
			return c.db.MSet(c.ctx, pairs, 0)
		},
		opDelete: func() error {
			n, err := c.db.Delete(c.ctx, keys...)
			return expect(int(n), len(keys), err)
		},
		opExists: func() error {
			n, err := c.db.Exists(c.ctx, keys...)
			return expect(int(n), len(keys), err)
		},
	}[o]
}

func pairsOf(keys []string) map[string][]byte {
	pairs := make(map[string][]byte, len(keys))
	for _, key := range keys {
		pairs[key] = value
	}
	return pairs
}

func expect(got, want int, err error) error {
	if err == nil && got != want {
		err = fmt.Errorf("got %d, expected %d", got, want)
	}
	return err
}

// native is gomemcache or its fork. Neither has MSet, Exists or a multi-key
// Delete, so that these are what a caller would write: a loop, by several
// goroutines where it is tuned, and a GetMulti that is counted.
type native struct {
	get, set, delete func(key string) error
	getMulti         func(keys []string) (int, error)
	stop             func()
	goroutines       int
}

func openBare(maxIdleConns, goroutines int) func([]string) (client, error) {
	return func(addrs []string) (client, error) {
		c := memcache.New(addrs...)
		c.Timeout = timeout
		c.MaxIdleConns = maxIdleConns
		return native{
			get: func(key string) error {
				it, err := c.Get(key)
				if err != nil {
					return err
				}
				return expect(len(it.Value), len(value), nil)
			},
			set:    func(key string) error { return c.Set(&memcache.Item{Key: key, Value: value}) },
			delete: c.Delete,
			getMulti: func(keys []string) (int, error) {
				items, err := c.GetMulti(keys)
				return len(items), err
			},
			stop:       func() { c.Close() },
			goroutines: goroutines,
		}, nil
	}
}

func openGrafana(addrs []string) (client, error) {
	c := grafana.New(addrs...)
	c.Timeout = timeout
	c.ConnectTimeout = timeout
	c.MaxIdleConns = maxConns
	c.MinIdleConnsHeadroomPercentage = -1
	return native{
		get: func(key string) error {
			it, err := c.Get(key)
			if err != nil {
				return err
			}
			return expect(len(it.Value), len(value), nil)
		},
		set:    func(key string) error { return c.Set(&grafana.Item{Key: key, Value: value}) },
		delete: c.Delete,
		getMulti: func(keys []string) (int, error) {
			items, err := c.GetMulti(context.Background(), keys)
			return len(items), err
		},
		stop:       c.Close,
		goroutines: setters,
	}, nil
}

func (c native) close() { c.stop() }

func (c native) prepare(o op, keys []string) func() error {
	next := 0
	multi := func() error {
		n, err := c.getMulti(keys)
		return expect(n, len(keys), err)
	}
	return map[op]func() error{
		opGet:    func() error { next++; return c.get(keys[next%len(keys)]) },
		opSet:    func() error { next++; return c.set(keys[next%len(keys)]) },
		opMSet:   func() error { return c.each(keys, c.set) },
		opDelete: func() error { return c.each(keys, c.delete) },
		opMGet:   multi,
		opExists: multi,
	}[o]
}

// each calls fn for all keys.
func (c native) each(keys []string, fn func(string) error) error {
	n := min(c.goroutines, len(keys))
	if n == 1 {
		for _, key := range keys {
			if err := fn(key); err != nil {
				return err
			}
		}
		return nil
	}
	var wg sync.WaitGroup
	errs := make([]error, n)
	for g := range n {
		wg.Go(func() {
			for i := g; i < len(keys) && errs[g] == nil; i += n {
				errs[g] = fn(keys[i])
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
