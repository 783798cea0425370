package systemtest

import (
	"context"
	"time"

	"github.com/xraph/grove/kv"
)

// keep gives a value that lives under a second a long life, before its end. It
// must keep it as long as its server lives.
func (c *caller) keep() {
	key, at := c.newKey(true)
	in := at.cluster
	db := in.dbs[c.rnd.IntN(2)]
	began, start := at.state.Load(), time.Now()
	value := soakValue(key, 1, c.payload(true))
	ttl := c.between(300*time.Millisecond, 900*time.Millisecond)
	ok := c.call("set", []string{key}, in, func(ctx context.Context) error { return db.Set(ctx, key, value, ttl) }) == nil
	if c.rnd.IntN(2) == 0 { // just before its end
		c.rest(ttl - time.Since(start) - c.between(0, 20*time.Millisecond))
	}
	ok = ok && c.call("expire", []string{key}, in, func(ctx context.Context) error { return db.Expire(ctx, key, time.Hour) }) == nil && time.Since(start) < ttl
	if ok && c.rnd.IntN(2) == 0 {
		ok = c.call("cas", []string{key}, in, func(ctx context.Context) error {
			return db.CompareAndSwap(ctx, key, func(current []byte) ([]byte, error) { return current, nil })
		}) == nil
	}
	if !ok {
		c.rest(10 * time.Millisecond)
		return
	}
	c.rest(c.between(2*time.Second, 4*time.Second))
	reader := in.dbs[c.rnd.IntN(2)]
	err := c.call("get", []string{key}, in, func(ctx context.Context) error {
		_, err := reader.Get(ctx, key)
		return err
	})
	switch {
	case at.state.Load() != began: // and its data gone
	case err == nil:
		c.count("kept")
	case err == kv.ErrNotFound:
		c.fault("Expire did not keep a value", "%s of %s with %v, after %v", key, at.server.Addr(), ttl, time.Since(start))
	}
}

// fade swaps a value that lives for some seconds, which must not make it live on.
func (c *caller) fade() {
	key, at := c.newKey(true)
	in, d := at.cluster, c.rnd.IntN(2)
	db := in.dbs[d]
	began := at.state.Load()
	value := soakValue(key, 1, c.payload(true))
	ttl := c.between(2*time.Second, 3*time.Second)
	ok := c.call("set", []string{key}, in, func(ctx context.Context) error { return db.Set(ctx, key, value, ttl) }) == nil
	for swaps := 1 + c.rnd.IntN(2); swaps > 0 && ok; swaps-- {
		c.rest(c.between(0, 500*time.Millisecond))
		ok = c.call("cas", []string{key}, in, func(ctx context.Context) error {
			return db.CompareAndSwap(ctx, key, func(current []byte) ([]byte, error) { return current, nil })
		}) == nil
	}
	if !ok || at.state.Load() != began || !at.asked(began, d) {
		c.rest(10 * time.Millisecond)
		return
	}
	swapped := time.Now()
	c.rest(6 * time.Second)
	for c.over.Err() == nil {
		if !at.calm() {
			c.rest(100 * time.Millisecond)
			continue
		}
		err := c.call("get", []string{key}, in, func(ctx context.Context) error {
			_, err := in.dbs[c.rnd.IntN(2)].Get(ctx, key)
			return err
		})
		switch {
		case err == kv.ErrNotFound:
			c.count("faded")
			return
		case err == nil && at.calm():
			c.fault("a value lives on without an expiry", "%s of %s with %v, %v after its swap", key, at.server.Addr(), ttl, time.Since(swapped))
			return
		}
	}
}
