package memcacheddriver_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
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

// TestBatchOf100000 keys in one call.
func TestBatchOf100000(t *testing.T) {
	const n, valueSize = 100_000, 20
	// What a batch may need beside its results: some words for each key, and for
	// each server a buffer.
	const perKey, perServer = 160, 1 << 20
	for _, servers := range []int{1, 3} {
		t.Run(fmt.Sprint(servers, " servers"), func(t *testing.T) {
			var addrs []string
			for range servers {
				addrs = append(addrs, memcachedtest.Start(t, "-m", "512").Addr())
			}
			db := batchDB(t, strings.Join(addrs, ","))
			ctx := t.Context()
			keys := batchKeys("k", n)
			pairs := make(map[string][]byte, n)
			for i, key := range keys {
				pairs[key] = fmt.Appendf(nil, "%0*d", valueSize, i)
			}
			const room = n * perKey

			noDeadlock("MSet", func() {
				assert.Less(t, allocatedBy(func() { require.NoError(t, db.MSet(ctx, pairs, time.Hour)) }),
					room+servers*perServer)
			})
			noDeadlock("MGet", func() {
				var values [][]byte
				var err error
				assert.Less(t, allocatedBy(func() { values, err = db.MGet(ctx, keys) }),
					n*valueSize+room+servers*perServer)
				require.NoError(t, err)
				require.Len(t, values, n)
				for i, v := range values {
					if !bytes.Equal(v, pairs[keys[i]]) {
						t.Fatalf("%s is %q, want %q", keys[i], v, pairs[keys[i]])
					}
				}
			})
			noDeadlock("Exists", func() {
				var count int64
				var err error
				assert.Less(t, allocatedBy(func() { count, err = db.Exists(ctx, keys...) }), room+servers*perServer)
				require.NoError(t, err)
				assert.EqualValues(t, n, count)
			})
			noDeadlock("Delete", func() {
				var deleted int64
				var err error
				assert.Less(t, allocatedBy(func() { deleted, err = db.Delete(ctx, keys[:n-1]...) }), room+servers*perServer)
				require.NoError(t, err)
				assert.EqualValues(t, n-1, deleted)
			})
			values, err := db.MGet(ctx, keys)
			require.NoError(t, err)
			for i, v := range values[:n-1] {
				if v != nil {
					t.Fatalf("%s is there", keys[i])
				}
			}
			assert.Equal(t, pairs[keys[n-1]], values[n-1])
			count, err := db.Exists(ctx, keys...)
			require.NoError(t, err)
			assert.EqualValues(t, 1, count)
			assert.EqualValues(t, servers, batchDials(db), "a connection was not used again")
		})
	}
}

// TestBatchOf700KB: 300 values in one call, each way.
func TestBatchOf700KB(t *testing.T) {
	const n, size = 300, 700 << 10
	const constant = 2 << 20
	db := batchDB(t, memcachedtest.Start(t, "-m", "512").Addr())
	ctx := t.Context()
	// Each value is another view of the same bytes, so that the test itself needs
	// next to no memory.
	text := make([]byte, n+size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(text)
	keys := batchKeys("large", n)
	pairs := make(map[string][]byte, n)
	for i, key := range keys {
		pairs[key] = text[i : i+size]
	}
	noDeadlock("MSet", func() {
		assert.Less(t, allocatedBy(func() { require.NoError(t, db.MSet(ctx, pairs, 0)) }), constant, "values were copied")
	})
	noDeadlock("MGet", func() {
		var values [][]byte
		var err error
		// The allocator rounds up to whole pages, a hundredth.
		assert.Less(t, allocatedBy(func() { values, err = db.MGet(ctx, keys) }), n*size+n*size/100+constant)
		require.NoError(t, err)
		for i, v := range values {
			if !bytes.Equal(v, pairs[keys[i]]) {
				t.Fatalf("%s: another value, of %d bytes", keys[i], len(v))
			}
		}
	})
	noDeadlock("Exists", func() {
		assert.Less(t, allocatedBy(func() {
			count, err := db.Exists(ctx, keys...)
			require.NoError(t, err)
			assert.EqualValues(t, n, count)
		}), constant)
	})
	assert.EqualValues(t, 1, batchDials(db))
}

// TestExistsFetchesNothing: what the server sends does not depend on the values.
func TestExistsFetchesNothing(t *testing.T) {
	t.Parallel()
	const n, size = 100, 500 << 10
	server := memcachedtest.Start(t, "-m", "128")
	db := batchDB(t, server.Addr())
	value := make([]byte, size)
	keys := batchKeys("k", n)
	pairs := make(map[string][]byte, n)
	for _, key := range keys {
		pairs[key] = value
	}
	require.NoError(t, db.MSet(t.Context(), pairs, 0))
	written := func() int {
		n, err := strconv.Atoi(server.Stats(t)["bytes_written"])
		require.NoError(t, err)
		return n
	}
	before := written()
	for _, many := range [][]string{keys, keys[:2], keys[:1]} {
		count, err := db.Exists(t.Context(), slices.Concat(many, []string{"absent"})...)
		require.NoError(t, err)
		assert.EqualValues(t, len(many), count)
	}
	count, err := db.Exists(t.Context(), keys[0])
	require.NoError(t, err)
	assert.EqualValues(t, 1, count)
	assert.Less(t, written()-before, 50_000, "bytes from the server, whose values are %d", n*size)
}

// TestRefusedValue spoils its own key, not the batch and not the connection.
func TestRefusedValue(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	db := batchDB(t, server.Addr())
	ctx := t.Context()
	keys := batchKeys("k", 100)
	pairs := make(map[string][]byte)
	for _, key := range keys {
		pairs[key] = []byte("old")
	}
	require.NoError(t, db.MSet(ctx, pairs, 0))
	before := batchDials(db)

	tooLarge := []string{keys[0], keys[50], keys[99]}
	pairs = batchPairs(keys)
	for _, key := range tooLarge {
		pairs[key] = make([]byte, 2<<20)
	}
	for range 3 {
		err := db.MSet(ctx, pairs, 0)
		require.ErrorIs(t, err, memcacheddriver.ErrValueTooLarge)
		var op *memcacheddriver.OpError
		require.ErrorAs(t, err, &op)
		slices.Sort(op.Keys)
		assert.Equal(t, tooLarge, op.Keys)
		assert.Equal(t, server.Addr(), op.Server)
		assert.Equal(t, "mset", op.Op)

		values, err := db.MGet(ctx, keys)
		require.NoError(t, err)
		assert.Equal(t, len(keys)-len(tooLarge), checkBatchValues(t, keys, values))
		for i, key := range keys {
			assert.Equal(t, slices.Contains(tooLarge, key), values[i] == nil, key)
		}
	}
	assert.Equal(t, before, batchDials(db), "a refused value cost the connection")
}

// TestDeadServerOfThree spoils its own keys only, and the error says which.
func TestDeadServerOfThree(t *testing.T) {
	t.Parallel()
	var servers []*memcachedtest.Server
	var addrs []string
	for range 3 {
		server := memcachedtest.Start(t)
		servers = append(servers, server)
		addrs = append(addrs, server.Addr())
	}
	db := batchDB(t, strings.Join(addrs, ","), memcacheddriver.WithServerFailureLimit(0, 0))
	ctx := t.Context()
	keys := batchKeys("k", 60)
	pairs := batchPairs(keys)
	require.NoError(t, db.MSet(ctx, pairs, 0))

	servers[1].Kill()
	values, err := db.MGet(ctx, keys)
	alive := checkBatchValues(t, keys, values)
	var dead []string
	for i, key := range keys {
		if values[i] == nil {
			dead = append(dead, key)
		}
	}
	require.NotEmpty(t, dead)
	require.NotZero(t, alive)
	blames := func(op string, err error) {
		t.Helper()
		var e *memcacheddriver.OpError
		if !assert.ErrorAs(t, err, &e) {
			return
		}
		assert.Equal(t, op, e.Op)
		assert.Equal(t, addrs[1], e.Server)
		slices.Sort(e.Keys)
		assert.Equal(t, dead, e.Keys)
		assert.Contains(t, err.Error(), addrs[1])
		assert.NotContains(t, err.Error(), addrs[0])
		assert.NotContains(t, err.Error(), addrs[2])
	}
	blames("mget", err)
	count, err := db.Exists(ctx, keys...)
	blames("exists", err)
	assert.EqualValues(t, alive, count)
	for _, key := range keys {
		pairs[key] = []byte("second")
	}
	blames("mset", db.MSet(ctx, pairs, 0))
	values, err = db.MGet(ctx, keys)
	blames("mget", err)
	for i, key := range keys {
		if !slices.Contains(dead, key) {
			assert.Equal(t, "second", string(values[i]))
		}
	}
	deleted, err := db.Delete(ctx, keys...)
	blames("delete", err)
	assert.EqualValues(t, alive, deleted)

	servers[1].Restart()
	require.NoError(t, db.MSet(ctx, pairs, 0), "after the restart")
	count, err = db.Exists(ctx, keys...)
	require.NoError(t, err)
	assert.EqualValues(t, len(keys), count)
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

// acceptAll hands each connection to serve, and ends with the test.
func acceptAll(t *testing.T, serve func(c net.Conn, stop chan struct{})) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	stop := make(chan struct{})
	var mu sync.Mutex
	var open []net.Conn
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			all.Go(func() {
				defer c.Close()
				serve(c, stop)
			})
		}
	})
	t.Cleanup(func() {
		close(stop)
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return l.Addr().String()
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

// TestFaultyReplies in the middle of a batch: what was answered before stands,
// no value is ever another key's, and nothing of it reaches a later call.
func TestFaultyReplies(t *testing.T) {
	t.Parallel()
	const n, after = 40, 17
	keys := batchKeys("k", n)
	pairs := batchPairs(keys)
	faults := map[string]fault{
		"SERVER_ERROR":             {say: "SERVER_ERROR out of memory\r\n"},
		"SERVER_ERROR and closes":  {say: "SERVER_ERROR shutting down\r\n", closes: true},
		"CLIENT_ERROR":             {say: "CLIENT_ERROR bad command line format\r\n"},
		"ERROR":                    {say: "ERROR\r\n"},
		"garbage":                  {say: "\x00\xff secret\r\n"},
		"garbage without end":      {say: strings.Repeat("x", 10_000)},
		"empty line":               {say: "\r\n"},
		"value of another key":     {say: "VALUE k-999999 0 6\r\nsecret\r\n"},
		"endless value":            {say: "VALUE k-000017 0 99999999999\r\nsecret\r\n"},
		"value longer than said":   {say: "VALUE k-000017 0 5\r\nvalue of k-000017\r\n"},
		"value shorter than said":  {say: "VALUE k-000017 0 30\r\nvalue of k-000017\r\n"},
		"closes":                   {closes: true},
		"closes in a line":         {say: "STO", closes: true},
		"closes behind VALUE":      {say: "VALUE k-000017 0 17\r\n", closes: true},
		"closes in a value":        {say: "VALUE k-000017 0 17\r\nvalue of", closes: true},
		"closes behind a value":    {say: "VALUE k-000017 0 17\r\nvalue of k-000017", closes: true},
		"says nothing":             {hangs: true},
		"stops in a value":         {say: "VALUE k-000017 0 17\r\nvalue of", hangs: true},
		"stops in a line":          {say: "D", hangs: true},
		"reply of another command": {say: "VERSION 1.6.18\r\n"},
	}
	type call struct {
		name string
		// run checks all but the error.
		run func(t *testing.T, db *memcacheddriver.MemcachedDB, refused bool) error
	}
	exists := func(t *testing.T, db *memcacheddriver.MemcachedDB, _ bool) error {
		count, err := db.Exists(t.Context(), keys...)
		assert.Zero(t, count, "the count is of the servers that answered")
		return err
	}
	calls := []call{
		{"MGet", func(t *testing.T, db *memcacheddriver.MemcachedDB, _ bool) error {
			values, err := db.MGet(t.Context(), keys)
			assert.Equal(t, after, checkBatchValues(t, keys, values), "values from before the fault")
			return err
		}},
		{"MSet", func(t *testing.T, db *memcacheddriver.MemcachedDB, _ bool) error {
			return db.MSet(t.Context(), pairs, 0)
		}},
		{"Delete", func(t *testing.T, db *memcacheddriver.MemcachedDB, refused bool) error {
			deleted, err := db.Delete(t.Context(), keys...)
			if refused {
				assert.EqualValues(t, n-1, deleted)
			} else {
				assert.EqualValues(t, after, deleted)
			}
			return err
		}},
		{"Exists", exists},
		{"Exists without meta", exists},
	}
	for _, call := range calls {
		for name, f := range faults {
			t.Run(call.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				server := (&batchServer{speaksMeta: call.name != "Exists without meta" && call.name != "MSet"}).start(t)
				db := batchDB(t, server.addr, driver.WithReadTimeout(500*time.Millisecond))
				f.after = after
				server.fault.Store(&f)
				// A command that is refused is one of many; a get is one command.
				isRefusal := strings.HasPrefix(f.say, "SERVER_ERROR") && (call.name == "MSet" || call.name == "Delete")

				err := call.run(t, db, isRefusal && !f.closes)
				require.Error(t, err)
				assert.NotContains(t, err.Error(), "secret", "a value in an error text")
				assert.NotContains(t, err.Error(), "value of", "a value in an error text")
				var op *memcacheddriver.OpError
				require.ErrorAs(t, err, &op)
				assert.Equal(t, server.addr, op.Server)
				switch {
				case isRefusal:
					assert.Len(t, op.Keys, 1)
				case strings.HasPrefix(call.name, "Exists"):
					assert.Len(t, op.Keys, n)
				default:
					assert.Len(t, op.Keys, n-after)
				}

				ctx := t.Context()
				for range 3 {
					values, err := db.MGet(ctx, keys)
					require.NoError(t, err)
					assert.Equal(t, n, checkBatchValues(t, keys, values))
					value, err := db.Get(ctx, keys[3])
					require.NoError(t, err)
					assert.Equal(t, string(batchValue(keys[3])), string(value))
					require.NoError(t, db.MSet(ctx, pairs, 0))
					deleted, err := db.Delete(ctx, keys...)
					require.NoError(t, err)
					assert.EqualValues(t, n, deleted)
					count, err := db.Exists(ctx, keys...)
					require.NoError(t, err)
					assert.EqualValues(t, n, count)
				}
				for _, s := range db.Stats() {
					assert.Zero(t, s.InUse)
					assert.Equal(t, 1, s.Idle)
				}
			})
		}
	}
}

// TestBatchLeavesOthersAlone: while one batch waits in the middle of its reply,
// other calls go on.
func TestBatchLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	server := (&batchServer{gate: make(chan struct{}), waiting: make(chan struct{}, 1), speaksMeta: true}).start(t)
	db := batchDB(t, server.addr)
	ctx := t.Context()
	keys := batchKeys("k", 10)
	done := make(chan error, 1)
	var values [][]byte
	go func() {
		var err error
		values, err = db.MGet(ctx, keys)
		done <- err
	}()
	<-server.waiting
	value, err := db.Get(ctx, "other")
	require.NoError(t, err)
	assert.Equal(t, string(batchValue("other")), string(value))
	require.NoError(t, db.MSet(ctx, batchPairs(keys), 0))
	count, err := db.Exists(ctx, keys...)
	require.NoError(t, err)
	assert.EqualValues(t, len(keys), count)
	select {
	case err := <-done:
		t.Errorf("the batch did not wait: %v", err)
		done <- err
	default:
	}
	close(server.gate)
	require.NoError(t, <-done)
	assert.Equal(t, len(keys), checkBatchValues(t, keys, values))
}

// TestBatchCancelled stops promptly, in whatever it waits for, and nothing of it
// reaches a later call.
func TestBatchCancelled(t *testing.T) {
	t.Parallel()
	const n = 1000
	server := memcachedtest.Start(t, "-m", "128")
	// Only the context can end these calls soon.
	db := batchDB(t, server.Addr(), memcacheddriver.WithTimeout(5*time.Minute))
	keys := batchKeys("k", n)
	pairs := make(map[string][]byte, n)
	for _, key := range keys {
		pairs[key] = bytes.Repeat([]byte(key), 2000) // more in all than the socket buffers take
	}
	require.NoError(t, db.MSet(t.Context(), pairs, 0))
	_, err := db.Exists(t.Context(), keys[0]) // the server is asked once for its protocol
	require.NoError(t, err)

	for name, call := range map[string]func(context.Context) error{
		"MGet":   func(ctx context.Context) error { _, err := db.MGet(ctx, keys); return err },
		"MSet":   func(ctx context.Context) error { return db.MSet(ctx, pairs, 0) },
		"Exists": func(ctx context.Context) error { _, err := db.Exists(ctx, keys...); return err },
		"Delete": func(ctx context.Context) error { _, err := db.Delete(ctx, batchKeys("absent", n)...); return err },
	} {
		server.Stop()
		ctx, cancel := context.WithCancel(t.Context())
		cancelled := make(chan time.Time, 1)
		time.AfterFunc(50*time.Millisecond, func() {
			cancelled <- time.Now()
			cancel()
		})
		err := call(ctx)
		require.ErrorIs(t, err, context.Canceled, name)
		assert.Less(t, time.Since(<-cancelled), 10*time.Second, "%s: not promptly", name)
		for _, s := range db.Stats() {
			assert.Zero(t, s.Idle+s.InUse, "%s: the connection was kept", name)
		}
		server.Cont()
	}

	// A write that was cut off may have stored some, the same values again.
	values, err := db.MGet(t.Context(), keys)
	require.NoError(t, err)
	for i, key := range keys {
		if !bytes.Equal(values[i], pairs[key]) {
			t.Fatalf("%s is %.40q… of %d bytes", key, values[i], len(values[i]))
		}
	}
}

// TestBatchesCutAnywhere: batches whose contexts end at any moment, beside others
// on the same driver. A value is its own key's or none.
func TestBatchesCutAnywhere(t *testing.T) {
	t.Parallel()
	const workers, rounds, n = 4, 50, 200
	server := memcachedtest.Start(t)
	db := batchDB(t, server.Addr())
	var cut, whole atomic.Int32
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			keys := batchKeys(fmt.Sprint("worker", w), n)
			pairs := make(map[string][]byte, n)
			for _, key := range keys {
				pairs[key] = bytes.Repeat([]byte(key), 1+rand.IntN(100))
			}
			start := time.Now()
			if err := db.MSet(t.Context(), pairs, 0); err != nil {
				t.Error(err)
				return
			}
			took := time.Since(start)
			check := func(values [][]byte, err error) bool {
				for i, v := range values {
					if v == nil && err == nil || v != nil && !bytes.Equal(v, pairs[keys[i]]) {
						t.Errorf("%s is %.60q, %v", keys[i], v, err)
						return false
					}
				}
				return true
			}
			for range rounds {
				start = time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.Int64N(int64(4*took))))
				values, err := db.MGet(ctx, keys)
				setErr := db.MSet(ctx, pairs, 0)
				cancel()
				if err == nil && setErr == nil {
					whole.Add(1)
					took = time.Since(start)
				} else {
					cut.Add(1)
				}
				for _, err := range []error{err, setErr} {
					if err != nil && !errors.Is(err, context.DeadlineExceeded) {
						t.Error(err)
					}
				}
				if !check(values, err) {
					return
				}
				values, err = db.MGet(t.Context(), keys[:5])
				if err != nil {
					t.Error(err)
				}
				if !check(values, err) {
					return
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d rounds were cut, %d were not", cut.Load(), whole.Load())
	assert.NotZero(t, cut.Load())
	assert.NotZero(t, whole.Load())
}

// TestBatchTimeouts are for each reply, not for the batch: one that moves along
// takes as long as it takes.
func TestBatchTimeouts(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	keys := batchKeys("k", 16)
	for name, call := range map[string]func(context.Context, *memcacheddriver.MemcachedDB) error{
		"MGet": func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.MGet(ctx, keys)
			return err
		},
		"MSet": func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			return db.MSet(ctx, batchPairs(keys), 0)
		},
		"Delete": func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.Delete(ctx, keys...)
			return err
		},
		"Exists": func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.Exists(ctx, keys...)
			return err
		},
	} {
		t.Run("moves along/"+name, func(t *testing.T) {
			t.Parallel()
			server := (&batchServer{slow: timeout / 8, speaksMeta: name != "MSet"}).start(t)
			db := batchDB(t, server.addr, memcacheddriver.WithTimeout(timeout))
			start := time.Now()
			require.NoError(t, call(t.Context(), db))
			assert.Greater(t, time.Since(start), 3*timeout/2, "the test is too quick to tell")
		})
	}

	for name, begin := range map[string]string{
		"a value": "VALUE k-000000 0 1000000\r\n",
		"a line":  "VALUE k-0",
	} {
		t.Run("drips/"+name, func(t *testing.T) {
			t.Parallel()
			addr := acceptAll(t, func(c net.Conn, stop chan struct{}) {
				if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
					return
				}
				_, err := io.WriteString(c, begin)
				for err == nil {
					select {
					case <-stop:
						return
					case <-time.After(timeout / 20):
						_, err = io.WriteString(c, "x")
					}
				}
			})
			db := batchDB(t, addr, memcacheddriver.WithTimeout(timeout))
			ctx, cancel := context.WithTimeout(t.Context(), 10*timeout)
			defer cancel()
			start := time.Now()
			_, err := db.MGet(ctx, keys)
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			require.NotErrorIs(t, err, context.DeadlineExceeded, "only the context ended it")
			assert.GreaterOrEqual(t, time.Since(start), timeout)
			assert.EqualValues(t, 1, db.Stats()[0].Timeouts)
		})
	}

	// A server that takes what is written so slowly that all of it would not be
	// soon enough, but each value is.
	t.Run("moves along/MSet of large values", func(t *testing.T) {
		t.Parallel()
		server := memcachedtest.Start(t, "-m", "128")
		addr := acceptAll(t, func(c net.Conn, stop chan struct{}) {
			s, err := net.Dial("tcp", server.Addr())
			if err != nil {
				t.Error(err)
				return
			}
			var back sync.WaitGroup
			defer back.Wait()
			defer s.Close()
			back.Go(func() { _, _ = io.Copy(c, s) })
			for chunk := make([]byte, 1<<20); err == nil; {
				select {
				case <-stop:
					return
				case <-time.After(timeout / 20):
				}
				var n int
				if n, err = c.Read(chunk); err == nil {
					_, err = s.Write(chunk[:n])
				}
			}
		})
		db := batchDB(t, addr, memcacheddriver.WithTimeout(timeout))
		large := make(map[string][]byte)
		for _, key := range batchKeys("large", 40) {
			large[key] = make([]byte, 1000<<10)
		}
		start := time.Now()
		require.NoError(t, db.MSet(t.Context(), large, 0))
		assert.Greater(t, time.Since(start), 3*timeout/2, "the test is too quick to tell")
	})
}

// TestExistsWithoutMeta falls back by itself, and asks once.
func TestExistsWithoutMeta(t *testing.T) {
	t.Parallel()
	server := (&batchServer{}).start(t)
	db := batchDB(t, server.addr)
	keys := batchKeys("k", 10)
	for range 5 {
		count, err := db.Exists(t.Context(), slices.Concat(keys, keys[:2])...)
		require.NoError(t, err)
		assert.EqualValues(t, len(keys)+2, count, "a key counts as often as it is named")
	}
	assert.EqualValues(t, 1, server.probes.Load(), "asked again")
	assert.LessOrEqual(t, server.conns.Load(), int32(2))
}

// TestMetaAskedOnce, whichever calls need it.
func TestMetaAskedOnce(t *testing.T) {
	t.Parallel()
	server := (&batchServer{speaksMeta: true}).start(t)
	db := batchDB(t, server.addr)
	for range 5 {
		count, err := db.Exists(t.Context(), "a", "b")
		require.NoError(t, err)
		assert.EqualValues(t, 2, count)
	}
	assert.EqualValues(t, 1, server.probes.Load(), "asked again")
	assert.EqualValues(t, 1, server.conns.Load())
}

// TestBatchDuplicates: a key that is named twice.
func TestBatchDuplicates(t *testing.T) {
	t.Parallel()
	var addrs []string
	for range 2 {
		addrs = append(addrs, memcachedtest.Start(t).Addr())
	}
	for _, dsn := range []string{addrs[0], strings.Join(addrs, ",")} {
		db := batchDB(t, dsn)
		ctx := t.Context()
		require.NoError(t, db.MSet(ctx, map[string][]byte{"a": []byte("1"), "b": nil, "c": []byte("3")}, 0))
		values, err := db.MGet(ctx, []string{"a", "x", "a", "b", "c", "b", "x", "a"})
		require.NoError(t, err)
		assert.Equal(t, [][]byte{[]byte("1"), nil, []byte("1"), {}, []byte("3"), {}, nil, []byte("1")}, values)
		values[0][0] = '!'
		assert.Equal(t, "1", string(values[2]), "two results share their memory")
		count, err := db.Exists(ctx, "a", "x", "a", "b", "x")
		require.NoError(t, err)
		assert.EqualValues(t, 3, count)
		deleted, err := db.Delete(ctx, "a", "a", "x", "b", "a")
		require.NoError(t, err)
		assert.EqualValues(t, 2, deleted)
	}
}

// TestBatchDuplicatesAnsweredOnce: by a proxy that asks for each key once, and
// answers in an order of its own.
func TestBatchDuplicatesAnsweredOnce(t *testing.T) {
	t.Parallel()
	db := batchDB(t, (&batchServer{once: true}).start(t).addr)
	for _, asked := range []string{"a a", "a b a", "b a b a", "c a b c b a", "a b c"} {
		keys := strings.Fields(asked)
		values, err := db.MGet(t.Context(), keys)
		require.NoError(t, err)
		assert.Equal(t, len(keys), checkBatchValues(t, keys, values), asked)
		for i := range values {
			values[i][0] = '!'
			for j := i + 1; j < len(values); j++ {
				assert.Equal(t, string(batchValue(keys[j])), string(values[j]), "%s: two results share their memory", asked)
			}
		}
		count, err := db.Exists(t.Context(), keys...)
		require.NoError(t, err)
		assert.EqualValues(t, len(keys), count, asked)
	}
}

// TestEmptyBatches ask nobody.
func TestEmptyBatches(t *testing.T) {
	t.Parallel()
	db := batchDB(t, "127.0.0.1:1")
	ctx := t.Context()
	values, err := db.MGet(ctx, nil)
	assert.NoError(t, err)
	assert.Empty(t, values)
	assert.NoError(t, db.MSet(ctx, nil, 0))
	deleted, err := db.Delete(ctx)
	assert.NoError(t, err)
	assert.Zero(t, deleted)
	count, err := db.Exists(ctx)
	assert.NoError(t, err)
	assert.Zero(t, count)
	assert.Zero(t, batchDials(db))
}

// TestDeadlineWhileConnecting is the caller's, and no fault of the server's,
// whichever clock sees it first: the socket's or the context's.
func TestDeadlineWhileConnecting(t *testing.T) {
	t.Parallel()
	addr := memcachedtest.Start(t).Addr()
	cut := 0
	for i := range 1500 {
		db := memcacheddriver.New()
		require.NoError(t, db.Open(t.Context(), addr))
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(20+i%200)*time.Microsecond)
		_, err := db.MGet(ctx, []string{"a", "b"})
		stats := db.Stats()[0]
		cancel()
		require.NoError(t, db.Close())
		if err == nil {
			continue
		}
		cut++
		require.ErrorIs(t, err, context.DeadlineExceeded, "call %d", i)
		require.Zero(t, stats.DialErrors, "call %d: the server was blamed", i)
		require.Zero(t, stats.Timeouts, "call %d: the server was blamed", i)
	}
	t.Logf("%d calls were cut", cut)
	assert.NotZero(t, cut)
}
