package systemtest

import (
	"context"
	"time"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

// mayfly writes a value that lives under a second, in one of all ways, and looks in
// one of all ways that the driver which wrote it takes it for a miss when its time
// is over, whatever happens to its server.
func (c *caller) mayfly() {
	key, at := c.newKey(true)
	in, d := at.cluster, c.rnd.IntN(2)
	db := in.dbs[d]
	began := at.state.Load()
	ttl := c.between(50*time.Millisecond, 900*time.Millisecond)
	value := soakValue(key, 1, c.payload(true))
	do := func(op string, run func(ctx context.Context) error) bool {
		return c.call(op, []string{key}, in, run) == nil
	}
	set := func(ttl time.Duration) bool {
		return do("set", func(ctx context.Context) error { return db.Set(ctx, key, value, ttl) })
	}
	swap := func(opts ...memcacheddriver.CASOption) bool {
		return do("cas", func(ctx context.Context) error {
			return db.CompareAndSwap(ctx, key, func(current []byte) ([]byte, error) { return current, nil }, opts...)
		})
	}
	ways := []string{"Set", "SetNX", "SetXX", "MSet", "CASTTL", "Expire", "Set and swap"}
	way := ways[c.rnd.IntN(len(ways))]
	ok, ends := false, time.Time{}
	switch way {
	case "Set":
		ok = set(ttl)
	case "SetNX":
		stored := false
		ok = do("setnx", func(ctx context.Context) (err error) { stored, err = db.SetNX(ctx, key, value, ttl); return err }) && stored
	case "SetXX":
		stored := false
		ok = set(0) && do("setxx", func(ctx context.Context) (err error) { stored, err = db.SetXX(ctx, key, value, ttl); return err }) && stored
	case "MSet":
		other := key + "-other"
		ok = c.call("mset", []string{key, other}, in, func(ctx context.Context) error {
			return db.MSet(ctx, map[string][]byte{key: value, other: value}, ttl)
		}) == nil
	case "CASTTL":
		ok = set(0) && swap(memcacheddriver.CASTTL(ttl))
	case "Expire":
		ok = set(0) && do("expire", func(ctx context.Context) error { return db.Expire(ctx, key, ttl) })
	case "Set and swap":
		ok = set(ttl)
		ends = time.Now().Add(ttl)
		ok = ok && swap()
	}
	if ends.IsZero() {
		ends = time.Now().Add(ttl)
	}
	if !ok || at.state.Load() != began || !at.asked(began, d) {
		c.rest(5 * time.Millisecond)
		return
	}
	c.rest(time.Until(ends) + c.between(20*time.Millisecond, 120*time.Millisecond))
	late := time.Since(ends)
	if late < 0 {
		return // the run is over
	}
	looks := []string{"Get", "MGet", "Exists", "TTL", "SetNX", "SetXX", "CompareAndSwap", "Delete", "Expire"}
	look := looks[c.rnd.IntN(len(looks))]
	if found, err := c.look(look, db, in, key); err == nil && found {
		c.fault("a value outlives its TTL under a second: "+look, "%s of %s, by %s with %v, %v after its end", key, at.server.Addr(), way, ttl, late)
	} else if err == nil {
		c.count("ended")
	}
}

// look reports whether a call finds key.
func (c *caller) look(name string, db *memcacheddriver.MemcachedDB, in *cluster, key string) (found bool, err error) {
	value := soakValue(key, 2, "")
	missed := func(err error) error {
		found = err == nil
		if err == kv.ErrNotFound {
			return nil
		}
		return err
	}
	one := []string{key}
	switch name {
	case "Get":
		err = c.call("get", one, in, func(ctx context.Context) error { _, err := db.Get(ctx, key); return missed(err) })
	case "MGet":
		keys := []string{key, key + "-absent"}
		err = c.call("mget", keys, in, func(ctx context.Context) error {
			values, err := db.MGet(ctx, keys)
			found = values[0] != nil
			return err
		})
	case "Exists":
		err = c.call("exists", one, in, func(ctx context.Context) error {
			n, err := db.Exists(ctx, key)
			found = n > 0
			return err
		})
	case "TTL":
		err = c.call("ttl", one, in, func(ctx context.Context) error { _, err := db.TTL(ctx, key); return missed(err) })
	case "SetNX":
		err = c.call("setnx", one, in, func(ctx context.Context) error {
			stored, err := db.SetNX(ctx, key, value, 0)
			found = !stored
			return err
		})
	case "SetXX":
		err = c.call("setxx", one, in, func(ctx context.Context) (err error) {
			found, err = db.SetXX(ctx, key, value, 0)
			return err
		})
	case "CompareAndSwap":
		err = c.call("cas", one, in, func(ctx context.Context) error {
			return missed(db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { return value, nil }))
		})
	case "Delete":
		err = c.call("delete", one, in, func(ctx context.Context) error {
			n, err := db.Delete(ctx, key)
			found = n > 0
			return err
		})
	case "Expire":
		err = c.call("expire", one, in, func(ctx context.Context) error { return missed(db.Expire(ctx, key, time.Hour)) })
	}
	return found, err
}

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
