package memcacheddriver

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// A million keys cost what maxPending's comment says, and no more are kept.
func TestRemoverIsBounded(t *testing.T) {
	keys := make([]string, maxPending+1000)
	for i := range keys {
		keys[i] = fmt.Sprint("key-", i)
	}
	due := time.Now().Add(time.Hour)
	r := &remover{byKey: make(map[string]*pending)}
	defer r.stop()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i, key := range keys {
		r.add(key, uint64(i), due)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	assert.Len(t, r.queue, maxPending)
	assert.Len(t, r.byKey, maxPending)
	assert.Less(t, (after.HeapAlloc-before.HeapAlloc)/maxPending, uint64(160), "bytes a key")
	runtime.KeepAlive(keys)
}

// Two writes at once may be remembered in the other order.
func TestRemoverKeepsTheLaterWrite(t *testing.T) {
	due := time.Now().Add(time.Hour)
	r := &remover{byKey: make(map[string]*pending)}
	defer r.stop()
	r.add("k", 6, due)
	r.add("k", 5, due)
	_, ok := r.due("k", 6)
	assert.True(t, ok)
	assert.Len(t, r.queue, 1)
	assert.False(t, r.expired("k", 6))
	r.add("k", 7, due)
	r.byKey["k"].due = time.Now() // before the timer knows
	assert.True(t, r.expired("k", 7), "what is due is over, removed or not")
	assert.False(t, r.expired("k", 8), "another's value")
}
