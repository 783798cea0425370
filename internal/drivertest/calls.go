package drivertest

import (
	"context"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

// Call is a call of the driver's API that talks to a server.
type Call struct {
	// Name is the method's, and what is special about the call.
	Name string

	// Keys is how many keys the driver is given: none by Ping and Do, two by a
	// batch, which are [Other] and then the test's.
	Keys int

	// Run makes the call, with values that are numbers, as Do increments the
	// key's. A key that is not there is no error.
	Run func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error
}

// Other is the other key of the calls with two.
const Other = "drivertest-other"

// subsecond is a TTL that the driver keeps itself.
const subsecond = 500 * time.Millisecond

// Calls are all of them. TTL needs a driver with WithTTLQuery.
var Calls = []Call{
	{"Get", 1, func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.Get(ctx, key)
		return missed(err)
	}},
	{"Set", 1, set(0)},
	{"Set under a second", 1, set(subsecond)},
	{"SetNX", 1, setNX(0)},
	{"SetNX under a second", 1, setNX(subsecond)},
	{"SetXX", 1, setXX(0)},
	{"SetXX under a second", 1, setXX(subsecond)},
	{"Delete", 1, func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.Delete(ctx, key)
		return err
	}},
	{"Delete of two", 2, func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.Delete(ctx, Other, key)
		return err
	}},
	{"Exists", 1, func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.Exists(ctx, key)
		return err
	}},
	{"Exists of two", 2, func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.Exists(ctx, Other, key)
		return err
	}},
	{"MGet of one", 1, func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.MGet(ctx, []string{key})
		return err
	}},
	{"MGet", 2, func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.MGet(ctx, []string{Other, key})
		return err
	}},
	{"MSet of one", 1, func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return db.MSet(ctx, map[string][]byte{key: one}, 0)
	}},
	{"MSet", 2, mSet(0)},
	{"MSet under a second", 2, mSet(subsecond)},
	{"Expire", 1, expire(time.Hour)},
	{"Expire under a second", 1, expire(subsecond)},
	{"TTL", 1, func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.TTL(ctx, key)
		return missed(err)
	}},
	{"CompareAndSwap", 1, compareAndSwap()},
	{"CompareAndSwap under a second", 1, compareAndSwap(memcacheddriver.CASTTL(subsecond))},
	{"Ping", 0, func(ctx context.Context, db *memcacheddriver.MemcachedDB, _ string) error {
		return db.Ping(ctx)
	}},
	{"Do", 0, func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return db.Do(ctx, func(c *memcache.Client) error {
			if _, err := c.Increment(key, 1); err != memcache.ErrCacheMiss {
				return err
			}
			return nil
		})
	}},
}

var one = []byte("1")

func missed(err error) error {
	if err == kv.ErrNotFound {
		return nil
	}
	return err
}

func set(ttl time.Duration) func(context.Context, *memcacheddriver.MemcachedDB, string) error {
	return func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return db.Set(ctx, key, one, ttl)
	}
}

func setNX(ttl time.Duration) func(context.Context, *memcacheddriver.MemcachedDB, string) error {
	return func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.SetNX(ctx, key, one, ttl)
		return err
	}
}

func setXX(ttl time.Duration) func(context.Context, *memcacheddriver.MemcachedDB, string) error {
	return func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.SetXX(ctx, key, one, ttl)
		return err
	}
}

func mSet(ttl time.Duration) func(context.Context, *memcacheddriver.MemcachedDB, string) error {
	return func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return db.MSet(ctx, map[string][]byte{Other: one, key: one}, ttl)
	}
}

func expire(ttl time.Duration) func(context.Context, *memcacheddriver.MemcachedDB, string) error {
	return func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return missed(db.Expire(ctx, key, ttl))
	}
}

func compareAndSwap(opts ...memcacheddriver.CASOption) func(context.Context, *memcacheddriver.MemcachedDB, string) error {
	return func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return missed(db.CompareAndSwap(ctx, key, func(current []byte) ([]byte, error) { return current, nil }, opts...))
	}
}
