package pipeline_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// fault is what a server does in place of one reply. If it neither closes the
// connection nor hangs after it, the next replies are right.
type fault struct {
	say           string
	closes, hangs bool
}

// faultAfter scripts a server whose replies are right, but for the one after the
// first good ones.
func faultAfter(good int32, f fault) memcachedtest.Script {
	var replies atomic.Int32
	return hits(func(c *memcachedtest.FakeConn, reply string) {
		if replies.Add(1) != good+1 {
			c.Say(reply)
			return
		}
		c.Say(f.say)
		switch {
		case f.closes:
			c.Close()
		case f.hangs:
			c.Hang()
		}
	})
}

// faultyCall is a batch of which some replies are right and one is faulty.
type faultyCall struct {
	name    string
	classic bool

	// refused is how many keys a refusal is blamed on; 0 where it ends the request.
	refused int

	// unanswered is how many keys have no answer where the request ends.
	unanswered int

	// run returns the error, after checking that all keys but unserved were served.
	run func(t *testing.T, db *memcacheddriver.MemcachedDB, unserved int) error
}

// blamed returns on how many keys each error is blamed.
func (c *faultyCall) blamed(f fault) (keys []int) {
	if !strings.HasPrefix(f.say, "SERVER_ERROR") || c.refused == 0 {
		return []int{c.unanswered}
	}
	keys = []int{c.refused}
	if f.closes {
		unanswered := c.unanswered
		if c.refused == 1 {
			unanswered-- // the refusal was an answer
		}
		keys = append(keys, unanswered)
	}
	return keys
}

// What was answered before a fault stands, no value is ever another key's, and
// nothing of it reaches a later call.
func TestAFaultyReplySpoilsNoOther(t *testing.T) {
	t.Parallel()
	const n, good = 40, 17
	keys := drivertest.Keys(n)
	pairs := drivertest.Pairs(keys)

	exists := func(t *testing.T, db *memcacheddriver.MemcachedDB, unserved int) error {
		count, err := db.Exists(t.Context(), keys...)
		assert.EqualValues(t, n-unserved, count, "the count is of the servers that answered")
		return err
	}
	mset := func(t *testing.T, db *memcacheddriver.MemcachedDB, _ int) error {
		return db.MSet(t.Context(), pairs, 0)
	}
	calls := []faultyCall{
		{name: "MGet", unanswered: n - good, run: func(t *testing.T, db *memcacheddriver.MemcachedDB, unserved int) error {
			values, err := db.MGet(t.Context(), keys)
			assert.Equal(t, n-unserved, drivertest.AssertValues(t, keys, values))
			return err
		}},
		// The server answers once for up to 64 small values.
		{name: "MSet", refused: n, unanswered: n, run: mset},
		{name: "MSet without meta", classic: true, refused: 1, unanswered: n - good, run: mset},
		{name: "Delete", refused: 1, unanswered: n - good, run: func(t *testing.T, db *memcacheddriver.MemcachedDB, unserved int) error {
			deleted, err := db.Delete(t.Context(), keys...)
			assert.EqualValues(t, n-unserved, deleted)
			return err
		}},
		{name: "Exists", unanswered: n, run: exists},
		{name: "Exists without meta", classic: true, unanswered: n, run: exists},
	}

	value := string(drivertest.Value(keys[good]))
	head := func(size int) string { return fmt.Sprintf("VALUE %s 0 %d\r\n", keys[good], size) }
	for name, f := range map[string]fault{
		"SERVER_ERROR":             {say: "SERVER_ERROR out of memory\r\n"},
		"SERVER_ERROR and closes":  {say: "SERVER_ERROR shutting down\r\n", closes: true},
		"CLIENT_ERROR":             {say: "CLIENT_ERROR bad command line format\r\n"},
		"ERROR":                    {say: "ERROR\r\n"},
		"garbage":                  {say: "\x00\xff secret\r\n"},
		"garbage without end":      {say: strings.Repeat("x", 10_000)},
		"empty line":               {say: "\r\n"},
		"value of another key":     {say: "VALUE another 0 6\r\nsecret\r\n"},
		"endless value":            {say: head(99999999999) + "secret\r\n"},
		"value longer than said":   {say: head(5) + value + "\r\n"},
		"value shorter than said":  {say: head(len(value)+13) + value + "\r\n"},
		"closes":                   {closes: true},
		"closes in a line":         {say: "STO", closes: true},
		"closes before a value":    {say: head(len(value)), closes: true},
		"closes in a value":        {say: head(len(value)) + value[:8], closes: true},
		"closes after a value":     {say: head(len(value)) + value, closes: true},
		"says nothing":             {hangs: true},
		"stops in a value":         {say: head(len(value)) + value[:8], hangs: true},
		"stops in a line":          {say: "D", hangs: true},
		"reply of another command": {say: "VERSION 1.6.18\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var all sync.WaitGroup // where it hangs, all wait for the timeout together
			for _, call := range calls {
				all.Go(func() {
					t.Run(call.name, func(t *testing.T) {
						script := faultAfter(good, f)
						if call.classic {
							script = classic(script)
						}
						server := memcachedtest.StartFake(t, script)
						db := drivertest.OpenAsked(t, server.Addr())
						blamed := call.blamed(f)
						unserved := 0
						for _, keys := range blamed {
							unserved += keys
						}

						err := call.run(t, db, unserved)
						require.Error(t, err)
						assert.NotContains(t, err.Error(), "secret", "a value in an error text")
						assert.NotContains(t, err.Error(), "value of", "a value in an error text")
						var got []int
						for _, op := range drivertest.OpErrors(err) {
							assert.Equal(t, server.Addr(), op.Server)
							got = append(got, len(op.Keys))
						}
						assert.Equal(t, blamed, got, "%v", err)

						for range 3 {
							requireInStep(t, db, keys)
						}
						drivertest.RequireIdle(t, db)
						assert.Equal(t, 1, drivertest.Stat(t, db).Idle)
					})
				})
			}
			all.Wait()
		})
	}
}

// requireInStep requires that a server that holds every key is understood.
func requireInStep(t *testing.T, db *memcacheddriver.MemcachedDB, keys []string) {
	t.Helper()
	ctx := t.Context()
	values, err := db.MGet(ctx, keys)
	require.NoError(t, err)
	assert.Equal(t, len(keys), drivertest.AssertValues(t, keys, values))
	value, err := db.Get(ctx, keys[0])
	require.NoError(t, err)
	assert.Equal(t, string(drivertest.Value(keys[0])), string(value))
	require.NoError(t, db.MSet(ctx, drivertest.Pairs(keys), 0))
	deleted, err := db.Delete(ctx, keys...)
	require.NoError(t, err)
	assert.EqualValues(t, len(keys), deleted)
	count, err := db.Exists(ctx, keys...)
	require.NoError(t, err)
	assert.EqualValues(t, len(keys), count)
}
