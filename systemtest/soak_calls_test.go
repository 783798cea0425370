package systemtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
)

// owner writes some keys of its own. Each is given up for a new one after a while:
// writes whose outcome is unknown stay possible for ever.
type owner struct {
	keys [6]atomic.Pointer[ownedKey]
	ops  [6]int
}

const writesOfKey = 300

func newOwner(s *soak, i int) *owner {
	o := &owner{}
	c := &caller{soak: s, id: 10_000 + i, rnd: rand.New(rand.NewPCG(s.seed, uint64(10_000+i)))}
	for i := range o.keys {
		o.keys[i].Store(newOwnedKey(c.newKey(false)))
	}
	return o
}

// lasting is a TTL that does not end in this test.
func lasting(ttl time.Duration) bool { return ttl == 0 || ttl >= time.Hour }

func (c *caller) ttl() time.Duration {
	switch c.rnd.IntN(8) {
	case 0:
		return c.between(50*time.Millisecond, 900*time.Millisecond)
	case 1:
		return c.between(time.Second, 3*time.Second)
	case 2, 3:
		return time.Hour
	}
	return 0
}

// payload is of any size, and some would do harm as a command.
func (c *caller) payload(small bool) string {
	size := c.rnd.IntN(100)
	switch n := c.rnd.IntN(50); {
	case n < 5:
		return "\r\nflush_all\r\n"
	case small:
	case n < 15:
		size = 1000 + c.rnd.IntN(2000)
	case n < 19:
		size = 9000 + c.rnd.IntN(5000)
	case n < 20:
		size = 20_000 + c.rnd.IntN(20_000)
	}
	return strings.Repeat("x", size)
}

// act makes one call for a key of its own.
func (o *owner) act(c *caller) {
	c.rest(c.between(0, 3*time.Millisecond))
	i := c.rnd.IntN(len(o.keys))
	k := o.keys[i].Load()
	if o.ops[i]++; o.ops[i] > writesOfKey {
		o.ops[i] = 0
		_ = c.call("delete", []string{k.name}, k.site.cluster, func(ctx context.Context) error {
			_, err := k.site.cluster.dbs[0].Delete(ctx, k.name)
			return err
		})
		o.keys[i].Store(newOwnedKey(c.newKey(false)))
		return
	}
	d := c.rnd.IntN(2)
	db, native := k.site.cluster.dbs[d], k.site.cluster.native[d]
	ttl := c.ttl()
	switch c.rnd.IntN(14) {
	case 0, 1, 2, 3:
		c.readOwn(k, db)
	case 4, 5:
		c.write("set", k, false, lasting(ttl), func(ctx context.Context, value []byte) (bool, error) {
			return true, db.Set(ctx, k.name, value, ttl)
		})
	case 6:
		c.write("setnx", k, false, lasting(ttl), func(ctx context.Context, value []byte) (bool, error) {
			ok, err := db.SetNX(ctx, k.name, value, ttl)
			if ok && err == nil && k.mustBeThere() {
				c.fault("a lost write", "SetNX has stored %s, which was there", k.name)
			}
			return ok, err
		})
	case 7:
		c.write("setxx", k, false, lasting(ttl), func(ctx context.Context, value []byte) (bool, error) {
			ok, err := db.SetXX(ctx, k.name, value, ttl)
			if !ok && err == nil {
				c.missing(k, "SetXX")
			}
			return ok, err
		})
	case 8:
		c.write("delete", k, false, false, func(ctx context.Context, _ []byte) (bool, error) {
			n, err := db.Delete(ctx, k.name)
			if n == 0 && err == nil {
				c.missing(k, "Delete")
			}
			return true, err
		})
	case 9:
		o.mset(c, k.site.cluster, db, ttl)
	case 10:
		c.swapOwn(k, db, ttl)
	case 11:
		c.expireOwn(k, db, ttl)
	case 12:
		c.write("do", k, true, true, func(ctx context.Context, value []byte) (bool, error) {
			return true, db.Do(ctx, func(m *memcache.Client) error { return m.Set(&memcache.Item{Key: k.name, Value: value}) })
		})
	case 13:
		c.write("native", k, true, true, func(_ context.Context, value []byte) (bool, error) {
			return true, native.Set(&memcache.Item{Key: k.name, Value: value})
		})
	}
}

// missing is told of a call that did not find an owner's key.
func (c *caller) missing(k *ownedKey, what string) {
	if k.mustBeThere() {
		c.fault("a lost write", "%s did not find %s, write %d, of %s", what, k.name, k.solid, k.site.server.Addr())
	}
}

// outcome is what an error says of a write.
func outcome(stored bool, err error) status {
	switch {
	case err == nil && stored:
		return done
	case err == nil, err == kv.ErrNotFound, errors.Is(err, kv.ErrConflict), errors.Is(err, memcacheddriver.ErrServerDown):
		return undone
	}
	return unknown
}

// write makes one write of an owner's.
func (c *caller) write(op string, k *ownedKey, small, lasts bool, call func(ctx context.Context, value []byte) (stored bool, err error)) {
	began := k.site.state.Load()
	seq := k.begin()
	value := soakValue(k.name, seq, c.payload(small))
	stored := false
	err := c.call(op, []string{k.name}, k.site.cluster, func(ctx context.Context) (err error) {
		stored, err = call(ctx, value)
		return err
	})
	s := outcome(stored, err)
	k.end(seq, s)
	k.settle(began, seq, s, lasts)
}

// readOwn reads what must be there, if something must.
func (c *caller) readOwn(k *ownedKey, db *memcacheddriver.MemcachedDB) {
	acked := k.lastAcked()
	err := c.call("get", []string{k.name}, k.site.cluster, func(ctx context.Context) error {
		value, err := db.Get(ctx, k.name)
		if err == nil {
			c.checkValue(k, value, acked)
		}
		return err
	})
	switch {
	case err == kv.ErrNotFound:
		c.missing(k, "Get")
	case err == nil && k.mustBeThere():
		c.count("must hit")
	}
}

// checkValue looks at what a read of an owner's key has found.
func (c *caller) checkValue(k *ownedKey, value []byte, acked int) {
	c.count("hit")
	if err := k.check(value, acked); err != nil {
		c.fault("a wrong value", "%s of %s: %v", k.name, k.site.server.Addr(), err)
	}
}

func (o *owner) mset(c *caller, in *cluster, db *memcacheddriver.MemcachedDB, ttl time.Duration) {
	var keys []*ownedKey
	var names []string
	pairs := make(map[string][]byte)
	var began []*siteState
	var seqs []int
	for i := range o.keys {
		if k := o.keys[i].Load(); k.site.cluster == in {
			keys, names = append(keys, k), append(names, k.name)
			began, seqs = append(began, k.site.state.Load()), append(seqs, k.begin())
			pairs[k.name] = soakValue(k.name, seqs[len(seqs)-1], c.payload(false))
		}
	}
	op := "mset"
	if len(keys) == 1 {
		op = "set"
	}
	err := c.call(op, names, in, func(ctx context.Context) error { return db.MSet(ctx, pairs, ttl) })
	ops := drivertest.OpErrors(err)
	for i, k := range keys {
		s := outcome(true, nil)
		for _, e := range ops {
			if slices.Contains(e.Keys, k.name) || len(e.Keys) == 0 {
				s = outcome(true, e)
			}
		}
		k.end(seqs[i], s)
		k.settle(began[i], seqs[i], s, lasting(ttl))
	}
}

func (c *caller) swapOwn(k *ownedKey, db *memcacheddriver.MemcachedDB, ttl time.Duration) {
	lasts := k.solid > 0 // as what it swaps
	var opts []memcacheddriver.CASOption
	if c.rnd.IntN(2) == 0 {
		opts, lasts = append(opts, memcacheddriver.CASTTL(ttl)), lasting(ttl)
	}
	acked := k.lastAcked()
	c.write("cas", k, false, lasts, func(ctx context.Context, value []byte) (bool, error) {
		err := db.CompareAndSwap(ctx, k.name, func(current []byte) ([]byte, error) {
			c.checkValue(k, current, acked)
			return value, nil
		}, opts...)
		if err == kv.ErrNotFound || errors.Is(err, kv.ErrConflict) {
			c.missing(k, "CompareAndSwap")
		}
		return true, err
	})
}

func (c *caller) expireOwn(k *ownedKey, db *memcacheddriver.MemcachedDB, ttl time.Duration) {
	began := k.site.state.Load()
	err := c.call("expire", []string{k.name}, k.site.cluster, func(ctx context.Context) error {
		return db.Expire(ctx, k.name, ttl)
	})
	if err == kv.ErrNotFound {
		c.missing(k, "Expire")
	}
	if s := outcome(true, err); s == unknown || s == done && !lasting(ttl) {
		k.settle(began, 0, s, false)
	}
}

// read reads keys of all owners.
func (c *caller) read(owners []*owner) {
	c.rest(c.between(0, 3*time.Millisecond))
	in := c.clusters[c.rnd.IntN(len(c.clusters))]
	var keys []*ownedKey
	var names []string
	var acked []int
	for len(keys) < 6 {
		k := owners[c.rnd.IntN(len(owners))].keys[c.rnd.IntN(6)].Load()
		if k.site.cluster == in && !slices.Contains(keys, k) {
			keys, names, acked = append(keys, k), append(names, k.name), append(acked, k.lastAcked())
		}
		if in == c.clusters[1] && len(keys) == 2 { // which has few
			break
		}
	}
	d := c.rnd.IntN(2)
	db, native := in.dbs[d], in.native[d]
	k, one := keys[0], names[:1]
	single := func(op string, get func(ctx context.Context) ([]byte, error)) {
		err := c.call(op, one, in, func(ctx context.Context) error {
			value, err := get(ctx)
			if err == nil {
				c.checkValue(k, value, acked[0])
			}
			return err
		})
		if err == kv.ErrNotFound {
			c.count("miss")
		}
	}
	switch c.rnd.IntN(8) {
	case 0, 1:
		single("get", func(ctx context.Context) ([]byte, error) { return db.Get(ctx, k.name) })
	case 2, 3:
		_ = c.call("mget", names, in, func(ctx context.Context) error {
			values, err := db.MGet(ctx, names)
			for i, value := range values {
				if value != nil {
					c.checkValue(keys[i], value, acked[i])
				}
			}
			return err
		})
	case 4:
		_ = c.call("exists", names, in, func(ctx context.Context) error {
			n, err := db.Exists(ctx, names...)
			if n < 0 || n > int64(len(names)) {
				c.fault("a wrong count", "%d of %d keys exist", n, len(names))
			}
			return err
		})
	case 5:
		_ = c.call("ttl", one, in, func(ctx context.Context) error {
			left, err := db.TTL(ctx, k.name)
			if err == nil && left != memcacheddriver.NoExpiry && (left <= 0 || left > time.Hour+time.Second) {
				c.fault("a wrong TTL", "%v", left)
			}
			return err
		})
	case 6:
		get := func(m *memcache.Client) ([]byte, error) {
			item, err := m.Get(k.name)
			if err != nil {
				return nil, err
			}
			return item.Value, nil
		}
		if c.rnd.IntN(2) == 0 {
			single("native", func(context.Context) ([]byte, error) { return get(native) })
			break
		}
		single("do", func(ctx context.Context) (value []byte, err error) {
			err = db.Do(ctx, func(m *memcache.Client) (err error) {
				value, err = get(m)
				return err
			})
			return value, err
		})
	case 7:
		_ = c.call("ping", nil, in, func(ctx context.Context) error { return db.Ping(ctx) })
	}
}

// compareAndCount counts a counter up by CompareAndSwap.
func (c *caller) compareAndCount() {
	c.rest(c.between(0, 3*time.Millisecond))
	k := c.casts[c.rnd.IntN(len(c.casts))]
	db := k.in.dbs[c.rnd.IntN(2)]
	least := k.acked()
	var of *generation
	err := c.call("cas", []string{k.key}, k.in, func(ctx context.Context) error {
		return db.CompareAndSwap(ctx, k.key, func(current []byte) ([]byte, error) {
			gen, n, err := readCount(k.key, current)
			if err == nil {
				err = k.check(gen, n, least)
			}
			if err != nil {
				c.fault("a wrong count", "%s, to be swapped: %v", k.key, err)
				return current, nil
			}
			k.mu.Lock()
			defer k.mu.Unlock()
			of = k.gens[gen]
			of.most++
			return countValue(k.key, gen, n+1), nil
		})
	})
	if of != nil {
		k.mu.Lock()
		switch outcome(true, err) {
		case done:
			of.acked++
			c.count("swaps counted")
		case undone:
			of.most--
		}
		k.mu.Unlock()
	}
	if err == kv.ErrNotFound {
		value := countValue(k.key, k.newGeneration(), 0)
		_ = c.call("setnx", []string{k.key}, k.in, func(ctx context.Context) error {
			_, err := db.SetNX(ctx, k.key, value, 0)
			return err
		})
	}
}

// generationSize is how far apart the generations of a counter of bare numbers are.
const generationSize = 1_000_000_000

// increment counts a counter up by Do and Increment.
func (c *caller) increment() {
	c.rest(c.between(0, 3*time.Millisecond))
	k := c.incrs[c.rnd.IntN(len(c.incrs))]
	db := k.in.dbs[c.rnd.IntN(2)]
	least := k.acked()
	k.mu.Lock()
	k.open++
	k.mu.Unlock()
	var value uint64
	err := c.call("do", []string{k.key}, k.in, func(ctx context.Context) error {
		return db.Do(ctx, func(m *memcache.Client) (err error) {
			value, err = m.Increment(k.key, 1)
			return err
		})
	})
	gen, n := int(value/generationSize), int(value%generationSize)
	var wrong error
	if err == nil {
		for i := range least {
			least[i]++ // and this one
		}
		wrong = k.check(gen, n, least)
	}
	k.mu.Lock()
	k.open--
	switch {
	case err == nil && wrong == nil:
		k.gens[gen].acked++
		k.gens[gen].most++
		c.count("increments")
	case err == nil, err == memcache.ErrCacheMiss, errors.Is(err, memcacheddriver.ErrServerDown):
	default:
		k.lost[k.site.state.Load().epoch]++
	}
	k.mu.Unlock()
	if wrong != nil {
		c.fault("a wrong count", "%s, incremented: %v", k.key, wrong)
	}
	if err == memcache.ErrCacheMiss {
		first := strconv.Itoa(k.newGeneration() * generationSize)
		_ = c.call("setnx", []string{k.key}, k.in, func(ctx context.Context) error {
			_, err := db.SetNX(ctx, k.key, []byte(first), 0)
			return err
		})
	}
}

// readCounters reads both kinds.
func (c *caller) readCounters() {
	c.rest(c.between(0, 10*time.Millisecond))
	look := func(k *counter, parse func(value []byte) (gen, n int, err error)) {
		least := k.acked()
		_ = c.call("get", []string{k.key}, k.in, func(ctx context.Context) error {
			value, err := k.in.dbs[c.rnd.IntN(2)].Get(ctx, k.key)
			if err != nil {
				return err
			}
			gen, n, wrong := parse(value)
			if wrong == nil {
				wrong = k.check(gen, n, least)
			}
			if wrong != nil {
				c.fault("a wrong count", "%s, read: %v", k.key, wrong)
			}
			return nil
		})
	}
	cast := c.casts[c.rnd.IntN(len(c.casts))]
	look(cast, func(value []byte) (int, int, error) { return readCount(cast.key, value) })
	look(c.incrs[c.rnd.IntN(len(c.incrs))], func(value []byte) (int, int, error) {
		var n int
		if _, err := fmt.Sscan(string(value), &n); err != nil {
			return 0, 0, fmt.Errorf("no number: %.50q", value)
		}
		return n / generationSize, n % generationSize, nil
	})
}
