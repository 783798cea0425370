package systemtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
)

// talk is one run of calls, and what all who make them share.
type talk struct {
	t         *testing.T
	db        *memcacheddriver.MemcachedDB
	left      atomic.Int64 // calls to make
	done, cut atomic.Int64
	limits    []atomic.Int64 // by the kind of call; see context

	callers []*talker
	shared  []*register
	counter string
	counts  [2]atomic.Int64 // of increments: done, and cut off
	counted sync.Map        // what increments have answered
	swapped sync.Map        // writes that were replaced by a swap
	once    [1 << 16]atomic.Uint64
	added   atomic.Int64
}

// talker makes calls, one at a time. It alone uses its own keys.
type talker struct {
	*talk
	id     uint64
	writes atomic.Uint64 // how many it has begun
	own    [6]*register

	counter        string
	last, possible uint64 // what it holds, and how many increments may still be to come
}

// talkCalls are the kinds of calls, some of them more often than others.
var talkCalls = []func(*talker, context.Context) error{
	(*talker).get, (*talker).get, (*talker).get, (*talker).get, (*talker).set, (*talker).set, (*talker).set,
	(*talker).setNX, (*talker).setXX, (*talker).delete, (*talker).exists, (*talker).expire, (*talker).addOnce,
	(*talker).mget, (*talker).mset, (*talker).swap, (*talker).increment, (*talker).native,
}

func newTalk(t *testing.T, db *memcacheddriver.MemcachedDB, callers, calls int) *talk {
	r := &talk{t: t, db: db, limits: make([]atomic.Int64, len(talkCalls)), counter: drivertest.Key()}
	r.left.Store(int64(calls))
	for i := range r.limits {
		r.limits[i].Store(int64(10 * time.Millisecond))
	}
	for _, key := range drivertest.Keys(64) {
		r.shared = append(r.shared, &register{key: key})
	}
	zeros := map[string][]byte{r.counter: []byte("0")}
	for i := range callers {
		c := &talker{talk: r, id: uint64(i), counter: drivertest.Key()}
		for i := range c.own {
			c.own[i] = newRegister()
		}
		zeros[c.counter] = []byte("0")
		r.callers = append(r.callers, c)
	}
	require.NoError(t, db.MSet(t.Context(), zeros, 0))
	return r
}

func (c *talker) run() {
	for c.left.Add(-1) >= 0 && !c.t.Failed() {
		kind := rand.IntN(len(talkCalls))
		ctx, judge := c.context(kind)
		judge(talkCalls[kind](c, ctx))
	}
}

// context returns the one of a call, and what takes the call's error. While less than a
// third of all calls are cut off, it ends at a random moment up to a limit, which grows
// where that was too soon and shrinks where it was too late, and so follows the machine.
func (c *talker) context(kind int) (context.Context, func(error)) {
	ctx, cancel := c.t.Context(), func() {}
	limit := &c.limits[kind]
	hurried := 2*c.cut.Load() <= c.done.Load()
	if hurried {
		ctx, cancel = context.WithTimeout(ctx, time.Duration(rand.Int64N(max(1, limit.Load()))))
	}
	return ctx, func(err error) {
		defer cancel()
		switch {
		case err == nil:
			c.done.Add(1)
			if hurried {
				limit.Add(-limit.Load() / 16)
			}
		case ctx.Err() != nil && errors.Is(err, ctx.Err()):
			c.cut.Add(1)
			limit.Add(limit.Load()/16 + 1)
		default:
			c.t.Errorf("neither done nor cut off by its context (%v): %v", ctx.Err(), err)
		}
	}
}

// checkAtRest compares what the servers hold with what they may, when no call is made.
func (r *talk) checkAtRest() {
	ctx := r.t.Context()
	for _, c := range r.callers {
		for _, k := range c.own {
			value, err := r.db.Get(ctx, k.key)
			assert.NoError(r.t, c.holds(k, value, err))
		}
		assert.NoError(r.t, c.increment(ctx))
	}
	n, err := r.db.Client().Increment(r.counter, 0)
	require.NoError(r.t, err)
	assert.GreaterOrEqual(r.t, int64(n), r.counts[0].Load())
	assert.LessOrEqual(r.t, int64(n), r.counts[0].Load()+r.counts[1].Load())
}

// register is what one talker knows of a key of its own. Of a shared key nobody knows
// which of all writes it holds. Writes have numbers, and 0 is for what removes the key.
type register struct {
	key string

	// may is what it holds, as far as is known. late are the writes that were cut off
	// and not seen: each may happen at any time, and only once.
	may, late map[uint64]bool
}

// newRegister returns one of a key that is not there.
func newRegister() *register {
	return &register{drivertest.Key(), map[uint64]bool{0: true}, map[uint64]bool{}}
}

func (r *register) shared() bool { return r.may == nil }

// saw is told that the key held n, which is an error if it may not have.
func (r *register) saw(n uint64) error {
	if r.shared() {
		return nil
	}
	if !r.may[n] {
		return fmt.Errorf("%s holds %d, and not one of %v", r.key, n, r.may)
	}
	if n != 0 {
		delete(r.late, n)
	}
	r.holdsOrLate(n)
	return nil
}

// wrote is told of a write that may have happened or, without err, has.
func (r *register) wrote(n uint64, err error) {
	switch {
	case r.shared():
	case err == nil:
		r.holdsOrLate(n)
	default:
		r.may[n], r.late[n] = true, true
	}
}

func (r *register) holdsOrLate(n uint64) {
	clear(r.may)
	r.may[n] = true
	for late := range r.late {
		r.may[late] = true
	}
}

// key returns a shared one or one of the talker's own, which it gives up for a new one
// when too much may happen to it.
func (c *talker) key() *register { return c.keys(1)[0] }

// keys returns some, up to most, none of them twice.
func (c *talker) keys(most int) []*register {
	var some []*register
	for range 1 + rand.IntN(most) {
		k := c.shared[rand.IntN(len(c.shared))]
		if i := rand.IntN(2 * len(c.own)); i < len(c.own) {
			if len(c.own[i].late) > 3 {
				c.own[i] = newRegister()
			}
			k = c.own[i]
		}
		if !slices.Contains(some, k) {
			some = append(some, k)
		}
	}
	return some
}

func names(keys []*register) (names []string) {
	for _, k := range keys {
		names = append(names, k.key)
	}
	return names
}

// write begins a write to key, and returns its number and its value.
func (c *talker) write(key string) (n uint64, value []byte) {
	size := rand.IntN(60)
	if rand.IntN(50) == 0 {
		size = 1000 // more than a shared link takes
	}
	n = c.id<<32 | c.writes.Add(1)
	return n, talkValue(key, n, size)
}

// talkValue names its key and its write, in all of its parts.
func talkValue(key string, n uint64, size int) []byte {
	value := fmt.Appendf(nil, "%s %d %d ", key, n, size)
	value = append(value, bytes.Repeat(fmt.Appendf(nil, "%d ", n), size)...)
	return append(value, key...)
}

// written returns the number of the write of a value.
func (c *talker) written(key string, value []byte) (uint64, error) {
	parts := bytes.SplitN(value, []byte(" "), 4)
	if len(parts) == 4 {
		n, _ := strconv.ParseUint(string(parts[1]), 10, 64)
		size, _ := strconv.ParseUint(string(parts[2]), 10, 10)
		by := n >> 32
		if bytes.Equal(value, talkValue(key, n, int(size))) && by < uint64(len(c.callers)) && n&(1<<32-1) <= c.callers[by].writes.Load() {
			return n, nil
		}
	}
	return 0, fmt.Errorf("the value of %s is %.200q", key, value)
}

// holds checks what a read of a key has returned.
func (c *talker) holds(k *register, value []byte, err error) error {
	n := uint64(0)
	if err == nil {
		n, err = c.written(k.key, value)
	}
	if err != nil && err != kv.ErrNotFound {
		return err
	}
	return k.saw(n)
}

// there checks an answer that says how many of keys are there.
func (c *talker) there(n int64, keys ...*register) error {
	least, most := int64(0), int64(0)
	for _, k := range keys {
		if !k.shared() && !k.may[0] {
			least++
		}
		if k.shared() || len(k.may) > 1 || !k.may[0] {
			most++
		}
	}
	if n < least || n > most {
		return fmt.Errorf("%d of %v are there, and not %d to %d", n, names(keys), least, most)
	}
	return nil
}

func (c *talker) get(ctx context.Context) error {
	k := c.key()
	value, err := c.db.Get(ctx, k.key)
	return c.holds(k, value, err)
}

func (c *talker) set(ctx context.Context) error {
	k := c.key()
	n, value := c.write(k.key)
	err := c.db.Set(ctx, k.key, value, 0)
	clear(value) // it is the caller's again
	k.wrote(n, err)
	return err
}

func (c *talker) setNX(ctx context.Context) error { return c.setIf(ctx, c.db.SetNX, 0) }
func (c *talker) setXX(ctx context.Context) error { return c.setIf(ctx, c.db.SetXX, 1) }

// setIf makes a call that stores where as many keys are there as it says.
func (c *talker) setIf(ctx context.Context, call func(context.Context, string, []byte, time.Duration) (bool, error), there int64) error {
	k := c.key()
	n, value := c.write(k.key)
	stored, err := call(ctx, k.key, value, 0)
	clear(value)
	switch {
	case err != nil:
		k.wrote(n, err)
		return err
	case !stored:
		return c.there(1-there, k)
	}
	err = c.there(there, k)
	k.wrote(n, nil)
	return err
}

func (c *talker) delete(ctx context.Context) error {
	keys := c.keys(3)
	n, err := c.db.Delete(ctx, names(keys)...)
	wrong := c.there(n, keys...)
	for _, k := range keys {
		k.wrote(0, err)
	}
	if err != nil {
		return err
	}
	return wrong
}

func (c *talker) exists(ctx context.Context) error {
	keys := c.keys(3)
	n, err := c.db.Exists(ctx, names(keys)...)
	if err != nil {
		return err
	}
	return c.there(n, keys...)
}

func (c *talker) expire(ctx context.Context) error {
	k := c.key()
	switch err := c.db.Expire(ctx, k.key, time.Hour); err {
	case nil:
		return c.there(1, k)
	case kv.ErrNotFound:
		return c.there(0, k)
	default:
		return err
	}
}

// addOnce is for keys that some talkers try to add and none removes: all see the same.
func (c *talker) addOnce(ctx context.Context) error {
	const each = 8
	i := c.added.Add(1) / each % int64(len(c.once))
	key := fmt.Sprint(c.talk.counter, "-", i)
	n, value := c.write(key)
	stored, err := c.db.SetNX(ctx, key, value, 0)
	if err != nil {
		return err
	}
	value, err = c.db.Get(ctx, key)
	if err != nil && !stored {
		return err
	}
	if err == nil {
		var read uint64
		if read, err = c.written(key, value); err == nil && stored && read != n {
			return fmt.Errorf("%s holds %d after %d was added", key, read, n)
		}
		n = read
	}
	if first := &c.once[i]; !first.CompareAndSwap(0, n) && first.Load() != n {
		return fmt.Errorf("%s holds %d and %d", key, first.Load(), n)
	}
	return err
}

func (c *talker) mget(ctx context.Context) error {
	keys := c.keys(20)
	values, err := c.db.MGet(ctx, names(keys))
	for i, value := range values {
		var missed error
		if value == nil {
			if err != nil {
				continue // cut off before it came
			}
			missed = kv.ErrNotFound
		}
		if wrong := c.holds(keys[i], value, missed); wrong != nil {
			return wrong
		}
	}
	return err
}

func (c *talker) mset(ctx context.Context) error {
	keys := c.keys(20)
	pairs := make(map[string][]byte)
	numbers := make([]uint64, len(keys))
	for i, k := range keys {
		numbers[i], pairs[k.key] = c.write(k.key)
	}
	err := c.db.MSet(ctx, pairs, 0)
	var unknown []string
	for _, op := range drivertest.OpErrors(err) {
		unknown = append(unknown, op.Keys...)
	}
	for i, k := range keys {
		clear(pairs[k.key])
		if slices.Contains(unknown, k.key) {
			k.wrote(numbers[i], err)
		} else {
			k.wrote(numbers[i], nil)
		}
	}
	return err
}

// swap checks also that no write is replaced by two swaps.
func (c *talker) swap(ctx context.Context) error {
	k := c.key()
	n, value := c.write(k.key)
	was := uint64(0)
	var wrong error
	err := c.db.CompareAndSwap(ctx, k.key, func(current []byte) ([]byte, error) {
		if wrong = c.holds(k, current, nil); wrong == nil {
			was, wrong = c.written(k.key, current)
		}
		return value, nil
	})
	switch {
	case wrong != nil:
		return wrong
	case err == nil:
		k.wrote(n, nil)
		if _, twice := c.swapped.LoadOrStore(was, true); twice {
			return fmt.Errorf("%s: two swaps have replaced %d", k.key, was)
		}
	case errors.Is(err, kv.ErrConflict):
		if !k.shared() && len(k.late) == 0 {
			return fmt.Errorf("%s was not changed: %w", k.key, err)
		}
		return nil
	case err == kv.ErrNotFound:
		return c.there(0, k)
	case was != 0:
		k.wrote(n, err)
	}
	return err
}

// increment counts on a counter of the talker's own, and on one for all, of which no
// two get the same number.
func (c *talker) increment(ctx context.Context) error {
	return c.db.Do(ctx, func(m *memcache.Client) error {
		n, err := m.Increment(c.counter, 1)
		if err != nil {
			c.possible++
			return err
		}
		if n <= c.last || n > c.last+1+c.possible {
			return fmt.Errorf("%s is %d after %d with %d possible", c.counter, n, c.last, c.possible)
		}
		c.possible -= n - c.last - 1
		c.last = n
		n, err = m.Increment(c.talk.counter, 1)
		if err != nil {
			c.counts[1].Add(1)
			return err
		}
		c.counts[0].Add(1)
		if _, twice := c.counted.LoadOrStore(n, true); twice {
			return fmt.Errorf("%s was counted to %d twice", c.talk.counter, n)
		}
		return nil
	})
}

// native reads without a context.
func (c *talker) native(context.Context) error {
	keys := c.keys(20)
	items, err := c.db.Client().GetMulti(names(keys))
	if err != nil {
		return err
	}
	for _, k := range keys {
		it, err := items[k.key], kv.ErrNotFound
		if it != nil {
			err = c.holds(k, it.Value, nil)
		} else {
			err = c.holds(k, nil, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
