package memcacheddriver_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

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
