package remover

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
)

// Keys cost what maxPending's comment says, and no more are kept.
func TestRemoverIsBounded(t *testing.T) {
	const limit = maxPending / 8 // a million takes its time under the race detector
	keys := make([]string, limit+1000)
	for i := range keys {
		keys[i] = fmt.Sprint("key-", i)
	}
	due := time.Now().Add(time.Hour)
	r := New(nil)
	assert.Equal(t, maxPending, r.limit)
	r.limit = limit
	defer r.Stop()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i, key := range keys {
		r.Add(due, pipeline.KeyCAS{Key: key, CAS: uint64(i + 1)})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	assert.Len(t, r.pending, limit)
	assert.Len(t, r.slots, 1, "each slot has a timer")
	assert.Less(t, (after.HeapAlloc-before.HeapAlloc)/limit, uint64(150), "bytes a key")
	_, ok := r.Due(keys[len(keys)-1], uint64(len(keys)))
	assert.False(t, ok, "one too many")
	runtime.KeepAlive(keys)
}

// Two writes at once may be remembered in the other order.
func TestRemoverKeepsTheLaterWrite(t *testing.T) {
	due := time.Now().Add(time.Hour)
	r := New(nil)
	defer r.Stop()
	r.Add(due, pipeline.KeyCAS{Key: "k", CAS: 6})
	r.Add(due, pipeline.KeyCAS{Key: "k", CAS: 5})
	_, ok := r.Due("k", 6)
	assert.True(t, ok)
	assert.Len(t, r.pending, 1)
	assert.False(t, r.Over("k", 6))
	r.Add(due, pipeline.KeyCAS{Key: "k", CAS: 7})
	r.pending["k"] = value{cas: 7, due: time.Since(r.start)} // before the timer knows
	assert.True(t, r.Over("k", 7), "what is due is over, removed or not")
	assert.False(t, r.Over("k", 8), "another's value")
	r.Forget("k")
	assert.False(t, r.Over("k", 7))
}

// A key that is written again and again is remembered once.
func TestRemoverIsBoundedByKeys(t *testing.T) {
	r := New(nil)
	defer r.Stop()
	for i := range 100_000 {
		ttl := time.Hour + time.Duration(i%10)*time.Minute
		r.Add(time.Now().Add(ttl), pipeline.KeyCAS{Key: "k", CAS: uint64(i + 1)})
	}
	slots := 0
	for _, keys := range r.slots {
		slots += len(keys)
	}
	assert.LessOrEqual(t, slots, 2)
}

// A value whose time was moved is removed at the new time, not at the old one.
func TestRemoverFollowsAMovedTime(t *testing.T) {
	removed := make(chan pipeline.KeyCAS, 10)
	r := New(func(values []pipeline.KeyCAS) error {
		for _, v := range values {
			removed <- v
		}
		return errors.New("which changes nothing")
	})
	later, sooner := pipeline.KeyCAS{Key: "later", CAS: 1}, pipeline.KeyCAS{Key: "sooner", CAS: 1}
	start := time.Now()
	r.Add(start.Add(time.Second), later)
	r.Add(start.Add(time.Hour), sooner)
	r.Add(start.Add(2*time.Second), later)
	r.Add(start.Add(1500*time.Millisecond), sooner)
	assert.Equal(t, sooner, <-removed)
	assert.Equal(t, later, <-removed)
	assert.GreaterOrEqual(t, time.Since(start), 2*time.Second)
	memcachedtest.Eventually(t, func() bool { return r.size.Load() == 0 }, "what was removed is remembered")
	r.Stop()
	r.Wait()
	assert.Empty(t, removed)
}

// A value that replaces one that is just being removed is removed as well, though
// it has the same time.
func TestRemoverSeesWhatIsWrittenMeanwhile(t *testing.T) {
	removed, proceed := make(chan pipeline.KeyCAS), make(chan struct{})
	r := New(func(values []pipeline.KeyCAS) error {
		for _, v := range values {
			removed <- v
		}
		<-proceed
		return nil
	})
	due := time.Now().Add(time.Millisecond)
	r.Add(due, pipeline.KeyCAS{Key: "k", CAS: 1})
	assert.Equal(t, pipeline.KeyCAS{Key: "k", CAS: 1}, <-removed)
	r.Add(due, pipeline.KeyCAS{Key: "k", CAS: 2})
	proceed <- struct{}{}
	assert.Equal(t, pipeline.KeyCAS{Key: "k", CAS: 2}, <-removed)
	proceed <- struct{}{}
	memcachedtest.Eventually(t, func() bool { return r.size.Load() == 0 }, "what was removed is forgotten")
	r.Stop()
	r.Wait()
}

// An Expire while the removal is under way, which then fails: the value has the
// same CAS number, and the time that Expire gave it.
func TestRemoverKeepsANewTimeWhereTheRemovalFails(t *testing.T) {
	removed, proceed := make(chan pipeline.KeyCAS), make(chan struct{})
	r := New(func(values []pipeline.KeyCAS) error {
		removed <- values[0]
		<-proceed
		return errors.New("no connection")
	})
	k := pipeline.KeyCAS{Key: "k", CAS: 1}
	r.Add(time.Now().Add(time.Millisecond), k)
	assert.Equal(t, k, <-removed)
	later := time.Now().Add(50 * time.Millisecond)
	r.Add(later, k)
	proceed <- struct{}{}
	assert.Equal(t, k, <-removed)
	assert.False(t, time.Now().Before(later))
	proceed <- struct{}{}
	memcachedtest.Eventually(t, func() bool { return r.size.Load() == 0 }, "what was removed is forgotten")
	r.Stop()
	r.Wait()
}

// Many values that end together are removed by one goroutine, in batches.
func TestRemoverBatches(t *testing.T) {
	const n = 3*batchSize + 1
	sizes := make(chan int, n)
	var running atomic.Int32
	r := New(func(values []pipeline.KeyCAS) error {
		assert.EqualValues(t, 1, running.Add(1), "removals at the same time")
		time.Sleep(time.Millisecond) // while the others end
		running.Add(-1)
		sizes <- len(values)
		return nil
	})
	due := time.Now().Add(10 * time.Millisecond)
	for i := range n {
		r.Add(due.Add(time.Duration(i)*time.Microsecond), pipeline.KeyCAS{Key: fmt.Sprint(i), CAS: 1})
	}
	batches, total := 0, 0
	for total < n {
		size := <-sizes
		assert.LessOrEqual(t, size, batchSize)
		total += size
		batches++
	}
	assert.Equal(t, n, total)
	assert.Less(t, batches, n/10)
	r.Stop()
	r.Wait()
}
