package remover

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
)

// heap is how much is in use.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func (r *Remover) written(due time.Time, key string, cas uint64) {
	r.Add(time.Now(), due, pipeline.KeyCAS{Key: key, CAS: cas})
}

// forgets waits until nothing is remembered.
func (r *Remover) forgets(t *testing.T) {
	t.Helper()
	memcachedtest.Eventually(t, func() bool { return r.size.Load() == 0 }, "what was removed is forgotten")
	r.pending.Range(func(key, _ any) bool { t.Errorf("%v is remembered", key); return true })
}

// removal is one that waits for the test to say how it ended.
type removal struct {
	values []pipeline.KeyCAS
	end    chan error
}

func removals(t *testing.T) (*Remover, chan removal) {
	begun := make(chan removal)
	r := New(func(values []pipeline.KeyCAS) error {
		end := make(chan error)
		begun <- removal{values, end}
		return <-end
	})
	t.Cleanup(func() { r.Stop(); r.Wait() })
	return r, begun
}

// Keys cost what maxPending's comment says, no more are kept, and nothing when
// they are gone.
func TestRemoverIsBounded(t *testing.T) {
	const limit = maxPending / 8 // a million takes its time under the race detector
	keys := make([]string, limit+1000)
	for i := range keys {
		keys[i] = fmt.Sprint("key-", i)
	}
	r := New(func([]pipeline.KeyCAS) error { return nil })
	assert.Equal(t, maxPending, r.limit)
	r.limit = limit
	defer r.Stop()
	before := heap()
	due := time.Now().Add(time.Hour)
	for i, key := range keys {
		r.written(due, key, uint64(i+1))
	}
	b := (heap() - before) / limit
	t.Log(b, "bytes a key")
	assert.Less(t, b, int64(200), "bytes a key")
	assert.EqualValues(t, limit, r.size.Load())
	assert.Len(t, r.slots, 1, "each slot has a timer")
	_, ok := r.Due(keys[len(keys)-1], uint64(len(keys)))
	assert.False(t, ok, "one too many")

	for _, key := range keys {
		r.Hold(key)
	}
	for i, key := range keys {
		r.written(time.Now(), key, uint64(i+1))
	}
	r.forgets(t)
	r.mu.Lock()
	clear(r.slots) // of the hour
	r.mu.Unlock()
	assert.Less(t, heap()-before, int64(limit), "what is left of a burst")
	runtime.KeepAlive(keys)
}

// Asking costs no lock and no memory, whatever else is remembered.
func TestRemoverAnswersWithoutALock(t *testing.T) {
	r := New(nil)
	defer r.Stop()
	r.written(time.Now().Add(time.Hour), "k", 1)
	r.written(time.Now(), "over", 2)
	r.mu.Lock()
	defer r.mu.Unlock()
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		assert.Empty(t, r.Over("k"))
		assert.Empty(t, r.Over("another"))
	}))
	assert.Equal(t, []pipeline.KeyCAS{{Key: "over", CAS: 2}}, r.Over("k", "over", "another"))
	_, ok := r.Due("k", 1)
	assert.True(t, ok)
	_, ok = r.Due("k", 2)
	assert.False(t, ok, "another value")
}

// Two writes at once may be remembered in the other order; but the numbers begin
// again when the server is restarted.
func TestRemoverKeepsTheLaterWrite(t *testing.T) {
	due := time.Now().Add(time.Hour)
	r := New(nil)
	defer r.Stop()
	began := time.Now()
	remembered := func(cas uint64) bool { _, ok := r.Due("k", cas); return ok }
	r.Add(began, due, pipeline.KeyCAS{Key: "k", CAS: 6})
	r.Add(began, due, pipeline.KeyCAS{Key: "k", CAS: 5})
	assert.True(t, remembered(6))
	r.Add(began, due, pipeline.KeyCAS{Key: "k", CAS: 7})
	assert.True(t, remembered(7))
	r.written(due, "k", 1)
	assert.True(t, remembered(1), "a write that began after the other had ended")
	assert.EqualValues(t, 1, r.size.Load())
	r.written(due, "without", 0)
	assert.EqualValues(t, 1, r.size.Load(), "without CAS numbers nothing is removed")
}

// An Expire may come before the answer to the write of the value that it touches.
func TestRemoverKeepsTheLaterLife(t *testing.T) {
	r := New(nil)
	defer r.Stop()
	k, began := pipeline.KeyCAS{Key: "k", CAS: 5}, time.Now()
	requireDue := func(want time.Time) {
		t.Helper()
		due, ok := r.Due("k", 5)
		assert.True(t, ok)
		assert.WithinDuration(t, want, due, 0)
	}
	touched, later := began.Add(time.Hour), began.Add(2*time.Hour)
	r.Touch(began, touched, k)
	r.Add(began, began.Add(time.Minute), k)
	requireDue(touched)
	r.Touch(began, later, k)
	requireDue(later)
	r.Touch(began, touched, pipeline.KeyCAS{Key: "k", CAS: 4})
	requireDue(later)
}

// A key that stands in two slots is removed once, from the one that counts.
func TestRemoverRemovesOnce(t *testing.T) {
	r, begun := removals(t)
	now := time.Now()
	r.written(now.Add(40*time.Millisecond), "k", 1)
	r.written(now.Add(20*time.Millisecond), "k", 2)
	b := <-begun
	time.Sleep(50 * time.Millisecond) // both slots end
	b.end <- nil
	r.forgets(t)
	select {
	case b := <-begun:
		t.Errorf("%v is removed again", b.values)
		b.end <- nil
	case <-time.After(20 * time.Millisecond):
	}
}

func TestRemoverTakesNothingAfterStop(t *testing.T) {
	r := New(nil)
	r.written(time.Now().Add(time.Hour), "k", 1)
	h := r.Hold("k")
	r.Stop()
	r.Release(h)
	r.written(time.Now(), "k", 1)
	assert.Zero(t, r.size.Load())
	r.Wait()
}

// A key that is written again and again is remembered once.
func TestRemoverIsBoundedByKeys(t *testing.T) {
	r := New(nil)
	defer r.Stop()
	for i := range 100_000 {
		r.written(time.Now().Add(time.Hour+time.Duration(i%10)*time.Minute), "k", uint64(i+1))
	}
	slots := 0
	for _, keys := range r.slots {
		slots += len(keys)
	}
	assert.LessOrEqual(t, slots, 2)
	assert.EqualValues(t, 1, r.size.Load())
}

// A value whose time was moved is removed at the new time, not at the old one.
func TestRemoverFollowsAMovedTime(t *testing.T) {
	r, begun := removals(t)
	start := time.Now()
	r.written(start.Add(time.Second), "later", 1)
	r.written(start.Add(time.Hour), "sooner", 1)
	r.written(start.Add(2*time.Second), "later", 1)
	r.written(start.Add(1500*time.Millisecond), "sooner", 1)
	for _, key := range []string{"sooner", "later"} {
		b := <-begun
		assert.Equal(t, []pipeline.KeyCAS{{Key: key, CAS: 1}}, b.values)
		b.end <- nil
	}
	assert.GreaterOrEqual(t, time.Since(start), 2*time.Second)
	r.forgets(t)
}

// A value that replaces one that is just being removed is removed as well, though
// it has the same time.
func TestRemoverSeesWhatIsWrittenMeanwhile(t *testing.T) {
	r, begun := removals(t)
	due := time.Now().Add(time.Millisecond)
	r.written(due, "k", 1)
	b := <-begun
	r.written(due, "k", 2)
	b.end <- nil
	b = <-begun
	assert.Equal(t, []pipeline.KeyCAS{{Key: "k", CAS: 2}}, b.values)
	b.end <- nil
	r.forgets(t)
}

// What could not be removed is over all the same, and tried again.
func TestRemoverTriesAgain(t *testing.T) {
	r, begun := removals(t)
	r.written(time.Now(), "k", 1)
	k := []pipeline.KeyCAS{{Key: "k", CAS: 1}}
	for range 2 {
		b := <-begun
		assert.Equal(t, k, b.values)
		b.end <- errors.New("no connection")
		assert.Equal(t, k, r.Over("k"))
	}
	b := <-begun
	b.end <- nil
	r.forgets(t)
	assert.Empty(t, r.Over("k"))
}

func TestRemoverGivesUp(t *testing.T) {
	r := New(func([]pipeline.KeyCAS) error { return errors.New("no connection") })
	defer r.Stop()
	r.written(time.Now().Add(-giveUpAfter-time.Second), "k", 1)
	r.forgets(t)
	r.written(time.Now().Add(-giveUpAfter+time.Second), "k", 1)
	time.Sleep(2 * retryAfter)
	assert.NotEmpty(t, r.Over("k"))
	r.forgets(t)
}

// What a call has removed before the remover came to it is not removed again.
func TestRemoverIsToldOfRemovals(t *testing.T) {
	r := New(func(values []pipeline.KeyCAS) error { t.Errorf("%v are removed", values); return nil })
	r.written(time.Now().Add(20*time.Millisecond), "k", 1)
	r.Removed([]pipeline.KeyCAS{{Key: "k", CAS: 1}})
	assert.EqualValues(t, 1, r.size.Load(), "it is not over yet: it may be of another life")
	var over []pipeline.KeyCAS
	r.mu.Lock() // the remover cannot begin
	memcachedtest.Eventually(t, func() bool { over = r.Over("k"); return over != nil }, "k is over")
	r.removed([]pipeline.KeyCAS{{Key: "k", CAS: 2}})
	assert.NotEmpty(t, r.Over("k"), "another value")
	r.removed(over)
	r.mu.Unlock()
	r.forgets(t)
	time.Sleep(10 * time.Millisecond)
	r.Stop()
	r.Wait()
}

// A key that gets another life is left alone, unless that fails.
func TestRemoverHolds(t *testing.T) {
	r, begun := removals(t)
	due := time.Now().Add(20 * time.Millisecond)
	r.written(due, "k", 1)
	held := r.Hold("k")
	assert.Empty(t, held.Over())
	r.forgets(t)
	select {
	case <-begun:
		t.Error("a value that is held is removed")
	case <-time.After(50 * time.Millisecond):
	}
	r.Release(held)
	b := <-begun
	assert.Equal(t, []pipeline.KeyCAS{{Key: "k", CAS: 1}}, b.values)
	held = r.Hold("k")
	assert.Equal(t, b.values, held.Over(), "it is over already")
	r.written(due.Add(time.Hour), "k", 2)
	r.Release(held)
	_, ok := r.Due("k", 2)
	assert.True(t, ok, "what was written since counts")
	b.end <- nil
	r.Release(r.Hold("absent"))
	assert.EqualValues(t, 1, r.size.Load())
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
		r.written(due.Add(time.Duration(i)*time.Microsecond), fmt.Sprint(i), 1)
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

// Everything at once, for the race detector.
func TestRemoverIsSafe(t *testing.T) {
	var fails atomic.Int32
	r := New(func([]pipeline.KeyCAS) error {
		if fails.Add(1)%3 == 0 {
			return errors.New("no connection")
		}
		return nil
	})
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for i := range 2000 {
				key := fmt.Sprint(i % 50)
				r.written(time.Now().Add(time.Duration(i%5)*time.Millisecond), key, uint64(i*8+g+1))
				r.Removed(r.Over(key, "0"))
				if i%7 == 0 {
					r.Release(r.Hold(key))
				}
				r.Due(key, 1)
			}
		})
	}
	all.Wait()
	r.forgets(t)
	r.Stop()
	r.Wait()
}
