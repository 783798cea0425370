package memcacheddriver_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

// batchDB opens a driver that is closed when the test ends.
func batchDB(t testing.TB, dsn string, opts ...driver.Option) *memcacheddriver.MemcachedDB {
	t.Helper()
	db := memcacheddriver.New()
	require.NoError(t, db.Open(context.Background(), dsn, opts...))
	t.Cleanup(func() { assert.NoError(t, db.Close()) })
	return db
}

// batchKeys returns n keys, the same for the same prefix.
func batchKeys(prefix string, n int) []string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf("%s-%06d", prefix, i)
	}
	return keys
}

// batchValue is what the batches of these tests store under a key.
func batchValue(key string) []byte { return []byte("value of " + key) }

func batchPairs(keys []string) map[string][]byte {
	pairs := make(map[string][]byte, len(keys))
	for _, key := range keys {
		pairs[key] = batchValue(key)
	}
	return pairs
}

// checkBatchValues checks that values are their own keys' or missing, and
// returns how many are there.
func checkBatchValues(t testing.TB, keys []string, values [][]byte) (found int) {
	t.Helper()
	assert.Len(t, values, len(keys))
	for i, v := range values {
		if v != nil {
			found++
			assert.Equal(t, string(batchValue(keys[i])), string(v))
		}
	}
	return found
}

// batchDials counts the connections that a driver has made.
func batchDials(db *memcacheddriver.MemcachedDB) (n uint64) {
	for _, s := range db.Stats() {
		n += s.Dials
	}
	return n
}

// allocatedBy returns how many bytes fn allocates in all, which is never less
// than what the heap grows by meanwhile. No other test may run beside it.
func allocatedBy(fn func()) int {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	return int(after.TotalAlloc - before.TotalAlloc)
}

// noDeadlock ends the test binary, with all stacks, if fn takes longer than
// anybody would wait.
func noDeadlock(what string, fn func()) {
	const limit = 2 * time.Minute
	defer time.AfterFunc(limit, func() {
		stacks := make([]byte, 1<<20)
		panic(fmt.Sprintf("%s: not done after %v\n%s", what, limit, stacks[:runtime.Stack(stacks, true)]))
	}).Stop()
	fn()
}

// fault is what a batchServer does to one reply.
type fault struct {
	after  int    // how many replies are right before it, each value of a get being one
	say    string // instead of it
	closes bool   // the connection then
	hangs  bool   // or says nothing more on it
}

// batchServer answers every get with the key's batchValue, finds every key,
// stores and deletes everything, and may do harm to its replies.
type batchServer struct {
	speaksMeta bool
	fault      atomic.Pointer[fault] // taken by the next batch
	once       bool                  // a key that a get names twice is answered once, as by some proxies
	slow       time.Duration         // before each reply
	gate       chan struct{}         // not nil: a get of several keys waits for it behind its first value
	waiting    chan struct{}         // and tells so here

	addr   string
	conns  atomic.Int32
	probes atomic.Int32 // mn
}

// acceptAll is startScripted for a serve that waits: stop is closed when the test
// ends.
func acceptAll(t *testing.T, serve func(c net.Conn, stop chan struct{})) (addr string) {
	t.Helper()
	stop := make(chan struct{})
	addr = startScripted(t, func(c net.Conn) { serve(c, stop) })
	t.Cleanup(func() { close(stop) }) // before startScripted's, which waits for serve
	return addr
}

func (s *batchServer) start(t *testing.T) *batchServer {
	t.Helper()
	s.addr = acceptAll(t, func(c net.Conn, stop chan struct{}) {
		s.conns.Add(1)
		s.serve(c, stop)
	})
	return s
}

func (s *batchServer) serve(c net.Conn, stop chan struct{}) {
	r := bufio.NewReader(c)
	var mine *fault
	replies := 0
	// reply sends a reply, right or not.
	reply := func(text string) bool {
		if s.slow > 0 {
			select {
			case <-time.After(s.slow):
			case <-stop:
				return false
			}
		}
		if mine == nil {
			mine = s.fault.Swap(nil)
		}
		hit := mine != nil && replies == mine.after
		if hit {
			text = mine.say
		}
		replies++
		_, err := io.WriteString(c, text)
		if hit && mine.hangs {
			_, _ = io.Copy(io.Discard, r)
		}
		return err == nil && !(hit && (mine.hangs || mine.closes))
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		f := strings.Fields(line)
		whole := true
		switch f[0] {
		case "get", "gets":
			keys := f[1:]
			if s.once {
				slices.Sort(keys)
				keys = slices.Compact(keys)
			}
			for i, key := range keys {
				v := batchValue(key)
				if whole = reply(fmt.Sprintf("VALUE %s 0 %d 1\r\n%s\r\n", key, len(v), v)); !whole {
					break
				}
				if i == 0 && s.gate != nil && len(f) > 2 {
					s.waiting <- struct{}{}
					select {
					case <-s.gate:
					case <-stop:
						return
					}
				}
			}
			if whole {
				_, err = io.WriteString(c, "END\r\n")
			}
		case "set":
			size, _ := strconv.Atoi(f[4])
			if _, err = r.Discard(size + len("\r\n")); err == nil {
				whole = reply("STORED\r\n")
			}
		case "ms": // quietly
			size, _ := strconv.Atoi(f[2])
			_, err = r.Discard(size + len("\r\n"))
		case "delete":
			whole = reply("DELETED\r\n")
		case "mg":
			whole = reply("HD\r\n")
		case "mn":
			s.probes.Add(1)
			if s.speaksMeta {
				_, err = io.WriteString(c, "MN\r\n")
			} else {
				_, err = io.WriteString(c, "ERROR\r\n")
			}
		case "version":
			_, err = io.WriteString(c, "VERSION 1.6.18\r\n")
		default:
			_, err = io.WriteString(c, "ERROR\r\n")
		}
		if !whole || err != nil {
			return
		}
	}
}
