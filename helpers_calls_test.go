package memcacheddriver_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

// calls are all calls of an open driver that take a key, each on one that is
// there with the value "1".
var calls = map[string]func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error{
	"get": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.Get(ctx, key)
		return err
	},
	"set": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return db.Set(ctx, key, []byte("1"), 0)
	},
	"setnx": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.SetNX(ctx, key, []byte("1"), 0)
		return err
	},
	"setxx": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.SetXX(ctx, key, []byte("1"), 0)
		return err
	},
	"delete": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.Delete(ctx, key)
		return err
	},
	"delete of two": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.Delete(ctx, "first", key)
		return err
	},
	"exists": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.Exists(ctx, key)
		return err
	},
	"exists of two": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.Exists(ctx, "first", key)
		return err
	},
	"mget of one": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.MGet(ctx, []string{key})
		return err
	},
	"mget": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.MGet(ctx, []string{"first", key})
		return err
	},
	"mset of one": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return db.MSet(ctx, map[string][]byte{key: []byte("1")}, 0)
	},
	"mset": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return db.MSet(ctx, map[string][]byte{"first": []byte("1"), key: []byte("1")}, 0)
	},
	"ttl": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		_, err := db.TTL(ctx, key)
		return err
	},
	"expire": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return db.Expire(ctx, key, time.Hour)
	},
	"cas": func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
		return db.CompareAndSwap(ctx, key, func(current []byte) ([]byte, error) { return current, nil })
	},
}

// useAtOnce makes n calls that have a connection at the same time.
func useAtOnce(t *testing.T, db *memcacheddriver.MemcachedDB, n int) {
	t.Helper()
	var ready, all sync.WaitGroup
	ready.Add(n)
	for range n {
		all.Go(func() {
			assert.NoError(t, db.Do(t.Context(), func(c *memcache.Client) error {
				err := c.Ping()
				ready.Done()
				ready.Wait()
				return err
			}))
		})
	}
	all.Wait()
}
