package memcacheddriver

import (
	"bytes"
	"context"
	"crypto/rand"
	"math"
	"sync"
	"time"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// leaseSuffix makes the key of a lease of the key that is to be filled. Where that leads to
// several servers it is on the key's, wherever its own hash would put it.
const leaseSuffix = "~lease"

// noValue is in the place of a lease where it is remembered that there is no value. No
// token of a lease is as short.
const noValue = "none"

// takeBackTries is how often it is tried to remove a value that may be old. A server that
// is down refuses them at once.
const takeBackTries = 10

// lease is the right to fill a key: an item beside it that holds the token of whoever has
// it. It is taken by add and given back by cas, so that one that has expired, or that
// [DeleteFetched] has taken away, is noticed. A loader that dies loses it by its TTL.
type lease struct {
	db    *MemcachedDB
	key   string
	token string
	ttl   time.Duration
	nodes *nodes // that there were when it was taken
}

func newLease(db *MemcachedDB, key string, ttl time.Duration) *lease {
	return &lease{db: db, key: key, token: rand.Text(), ttl: ttl}
}

// expiration lets the lease live for its TTL at least, as memcached's seconds may be short.
func (l *lease) expiration() pipeline.Expiration {
	return seconds(min(l.ttl, math.MaxInt64-time.Second) + time.Second)
}

// look asks for the key's value and for who has the lease: "" is nobody, [noValue] that there
// is no value.
func (l *lease) look(ctx context.Context) (value []byte, holder string, err error) {
	err = l.exchange(ctx, func(c *call, conn *pool.Conn, leaseKey string) error {
		return pipeline.Get(conn, []string{c.key, leaseKey}, func(i int, v []byte) {
			if i == 0 {
				value = v
			} else {
				holder = string(v)
			}
		})
	})
	return value, holder, err
}

// take asks for the lease, and then for the key's value, nil for none: who has the lease
// knows that nobody is about to store one.
func (l *lease) take(ctx context.Context) (won bool, found *pipeline.Found, err error) {
	err = l.exchange(ctx, func(c *call, conn *pool.Conn, leaseKey string) error {
		l.nodes = c.nodes.Load()
		r, err := pipeline.Store(conn, pipeline.Set{
			Item: pipeline.Item{Key: leaseKey, Value: []byte(l.token)}, Expiration: l.expiration(), Mode: pipeline.ModeAdd,
		})
		switch {
		case err != nil:
			return err
		case r.Err != nil:
			return r.Err
		case r.Status != pipeline.StatusStored:
			return nil
		}
		found, err = pipeline.Fetch(conn, c.key)
		won = err == nil
		return err
	})
	if err != nil && ctx.Err() != nil {
		go l.finish(context.WithoutCancel(ctx), outcome{}) // it may be ours
	}
	return won, found, err
}

// isOurs reports whether an item is the lease as take has left it.
func (l *lease) isOurs(held *pipeline.Found) bool {
	return held != nil && string(held.Value) == l.token
}

// keep lets the lease live on until the function that it returns is called.
func (l *lease) keep(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var keeping sync.WaitGroup
	keeping.Go(func() {
		tick := time.NewTicker((min(l.ttl, maxRelative) + time.Second) / 3)
		defer tick.Stop()
		for held := true; held; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			// A failure is not the load's: there is the next tick.
			_ = l.exchange(ctx, func(_ *call, conn *pool.Conn, leaseKey string) error {
				item, err := pipeline.Fetch(conn, leaseKey)
				if held = err != nil || l.isOurs(item); err != nil || !held {
					return err
				}
				_, err = pipeline.Store(conn, pipeline.Set{
					Item: pipeline.Item{Key: leaseKey, Value: item.Value}, Expiration: l.expiration(), CAS: item.CAS,
				})
				return err
			})
		}
	})
	return func() {
		cancel()
		keeping.Wait()
	}
}

// outcome is what a load has come to; none where it has failed.
type outcome struct {
	value []byte // nil where there is none
	ttl   time.Duration
	old   *pipeline.Found // the value that it replaces, if that is still there; nil: only fill

	none    bool          // the source has none either
	noneTTL time.Duration // how long that is remembered
}

// finish stores what was loaded, if the lease is still there, and gives it back.
//
// DeleteFetched deletes the lease first and then the key. So if the lease is there when it
// is given back, a DeleteFetched is still to delete the key, or there was none. If it is
// not, or nobody knows, the value is taken back.
func (l *lease) finish(ctx context.Context, o outcome) {
	filled, given := false, false
	_ = l.exchange(ctx, func(c *call, conn *pool.Conn, leaseKey string) error {
		held, err := pipeline.Fetch(conn, leaseKey)
		if err != nil || !l.isOurs(held) {
			return err
		}
		if c.nodes.Load() != l.nodes {
			o = outcome{} // the key may have been on another server meanwhile, and deleted there
		}
		back := pipeline.Set{Item: pipeline.Item{Key: leaseKey}, Expiration: seconds(-1), CAS: held.CAS}
		var refusal error
		switch {
		case o.value != nil:
			if filled, refusal, err = c.fill(conn, o); err != nil {
				return err
			}
		case o.none:
			gone, err := c.clear(conn, o.old)
			if err != nil {
				return err
			}
			if gone && o.noneTTL > 0 {
				back.Value, back.Expiration = []byte(noValue), seconds(o.noneTTL)
			}
		}
		r, err := pipeline.Store(conn, back)
		if given = err == nil && r.Status == pipeline.StatusStored; err == nil {
			err = refusal
		}
		return err
	})
	if filled && !given {
		for range takeBackTries {
			if l.takeBack(ctx, o.value) == nil {
				return
			}
		}
	}
}

// takeBack removes what finish has stored, if it is still there.
func (l *lease) takeBack(ctx context.Context, value []byte) error {
	return l.exchange(ctx, func(c *call, conn *pool.Conn, _ string) error {
		found, err := pipeline.Fetch(conn, c.key)
		if err == nil && found != nil && bytes.Equal(found.Value, value) {
			_, err = c.clear(conn, found)
		}
		return err
	})
}

// fill stores what was loaded, unless there is another value than that which it replaces.
// Where it fails the value may be there.
func (c *call) fill(conn *pool.Conn, o outcome) (filled bool, refusal, err error) {
	set := pipeline.Set{Item: pipeline.Item{Key: c.key, Value: o.value}, Expiration: seconds(o.ttl), Mode: pipeline.ModeAdd}
	if o.old != nil && o.old.CAS != 0 {
		set.Mode, set.CAS = 0, o.old.CAS
	}
	var r pipeline.SetResult
	began, subsecond := time.Now(), c.isSubsecond(o.ttl)
	if subsecond { // only a meta set tells the CAS number that the removal needs
		set.Expiration = subsecondExpiration
		err = pipeline.SetAll(conn, []pipeline.Set{set}, func(_ int, result pipeline.SetResult) { r = result })
	} else {
		r, err = pipeline.Store(conn, set)
	}
	if err != nil {
		return true, nil, err
	}
	if r.Status == pipeline.StatusStored {
		c.stored(len(o.value))
		if subsecond {
			c.node.removeLater(began, o.ttl, pipeline.KeyCAS{Key: c.key, CAS: r.CAS})
		}
	}
	return r.Status == pipeline.StatusStored, r.Err, nil
}

// clear removes a value, if there is one and it is still the same (which a server without
// CAS numbers cannot tell), and reports whether there is none.
func (c *call) clear(conn *pool.Conn, old *pipeline.Found) (gone bool, err error) {
	if old != nil && old.CAS != 0 {
		_, err := pipeline.Store(conn, pipeline.Set{Item: pipeline.Item{Key: c.key}, Expiration: seconds(-1), CAS: old.CAS})
		if err != nil {
			return false, err
		}
	}
	found, err := pipeline.Fetch(conn, c.key)
	return err == nil && found == nil, err
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
