package memcacheddriver

import (
	"context"
	"crypto/rand"
	"math"
	"time"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// leaseSuffix makes the key of a lease of the key that is to be filled. It is on the same
// server, wherever its own hash would put it.
const leaseSuffix = "~lease"

// noValue is in the place of a lease where it is remembered that there is no value. No
// token of a lease is as short.
const noValue = "none"

// lease is the right to fill a key: an item beside it that holds the token of whoever has
// it. It is taken by add and given back by cas, so that one that has expired, or that
// [DeleteFetched] has taken away, is noticed. A loader that dies loses it by its TTL.
type lease struct {
	db    *MemcachedDB
	key   string
	token string
	ttl   time.Duration
}

func newLease(db *MemcachedDB, key string, ttl time.Duration) *lease {
	return &lease{db: db, key: key, token: rand.Text(), ttl: ttl}
}

// expiration lets the lease live for its TTL at least, as memcached's seconds may be short.
func (l *lease) expiration() pipeline.Expiration {
	return seconds(min(l.ttl, math.MaxInt64-time.Second) + time.Second)
}

// claimed is what a claim has found.
type claimed struct {
	won   bool
	found *pipeline.Found // the key's value; nil where there is none
	none  bool            // it is remembered that there is none
}

// claim asks for the lease, and then for the key's value: who has the lease knows that
// nobody is about to store one.
func (l *lease) claim(ctx context.Context) (result claimed, err error) {
	err = l.exchange(ctx, func(c *call, conn *pool.Conn, leaseKey string) error {
		r, err := setOne(conn, pipeline.Set{
			Item: pipeline.Item{Key: leaseKey, Value: []byte(l.token)}, Expiration: l.expiration(), Mode: pipeline.ModeAdd,
		})
		if err != nil {
			return err
		}
		result.won = r.Status == pipeline.StatusStored
		if result.found, err = pipeline.Fetch(conn, c.key); err != nil || result.won || result.found != nil {
			return err
		}
		return pipeline.Get(conn, []string{leaseKey}, func(_ int, value []byte) { result.none = string(value) == noValue })
	})
	return result, err
}

// keep lets the lease live on until the function that it returns is called.
func (l *lease) keep(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		tick := time.NewTicker(max(l.ttl/3, time.Second/4)) // a server's second at least
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			// Another's lease would live longer by it, which that one sees to itself. A
			// failure is not the load's: there is the next tick.
			_ = l.exchange(ctx, func(_ *call, conn *pool.Conn, leaseKey string) error {
				_, _, err := pipeline.Touch(conn, leaseKey, l.expiration())
				return err
			})
		}
	}()
	return func() {
		cancel()
		<-kept
	}
}

// outcome is what a load has come to.
type outcome struct {
	value []byte // nil where there is none
	ttl   time.Duration
	old   *pipeline.Found // the value that it replaces, if that is still there; nil: only fill

	none    bool          // the source has none either
	noneTTL time.Duration // how long that is remembered
}

// finish stores what was loaded, if the lease is still there, and gives it back.
//
// DeleteFetched deletes the lease first and then the key. So if the lease is there when
// it is given back, a DeleteFetched is still to delete the key, or there was none. If it is
// not, the key is deleted here.
func (l *lease) finish(ctx context.Context, o outcome) error {
	stored, given := false, false
	err := l.exchange(ctx, func(c *call, conn *pool.Conn, leaseKey string) error {
		held, err := pipeline.Fetch(conn, leaseKey)
		if err != nil || held == nil || string(held.Value) != l.token {
			return err
		}
		back := pipeline.Set{Item: pipeline.Item{Key: leaseKey}, Expiration: seconds(-1), CAS: held.CAS}
		var refusal error
		switch {
		case o.value != nil:
			stored, refusal, err = c.fill(conn, o)
		case o.none && o.old != nil:
			_, err = setOne(conn, pipeline.Set{Item: pipeline.Item{Key: c.key}, Expiration: seconds(-1), CAS: o.old.CAS})
		}
		if err != nil {
			return err
		}
		if o.none && o.noneTTL > 0 {
			back.Value, back.Expiration = []byte(noValue), seconds(o.noneTTL)
		}
		r, err := setOne(conn, back)
		if given = err == nil && r.Status == pipeline.StatusStored; err == nil {
			err = refusal
		}
		return err
	})
	if stored && !given {
		_, gone := l.db.delete(ctx, l.key)
		if err == nil {
			err = gone
		}
	}
	return err
}

// fill stores what was loaded, unless there is another value than that which it replaces.
func (c *call) fill(conn *pool.Conn, o outcome) (stored bool, refusal, err error) {
	set := pipeline.Set{Item: pipeline.Item{Key: c.key, Value: o.value}, Expiration: seconds(o.ttl), Mode: pipeline.ModeAdd}
	if o.old != nil {
		set.Mode, set.CAS = 0, o.old.CAS
	}
	began, subsecond := time.Now(), c.isSubsecond(o.ttl)
	if subsecond {
		set.Expiration = subsecondExpiration
	}
	r, err := setOne(conn, set)
	if stored = err == nil && r.Status == pipeline.StatusStored; stored {
		c.stored(len(o.value))
		if subsecond {
			c.node.removeLater(began, o.ttl, pipeline.KeyCAS{Key: c.key, CAS: r.CAS})
		}
	}
	return stored, r.Err, err
}

// exchange runs fn on a connection to the key's server.
func (l *lease) exchange(ctx context.Context, fn func(c *call, conn *pool.Conn, leaseKey string) error) (err error) {
	c, err := l.db.call(ctx, opFetch, l.key)
	defer c.end(&err)
	if err != nil {
		return err
	}
	return c.viaConn(func(conn *pool.Conn) error { return fn(&c, conn, c.key+leaseSuffix) }, nil)
}

// setOne is [pipeline.SetAll] of one.
func setOne(conn *pool.Conn, set pipeline.Set) (result pipeline.SetResult, err error) {
	err = pipeline.SetAll(conn, []pipeline.Set{set}, func(_ int, r pipeline.SetResult) { result = r })
	return result, err
}
