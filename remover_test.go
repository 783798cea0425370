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
