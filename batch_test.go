package memcacheddriver_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// oneAndThreeServers runs a test of a batch that is all one server's, and of one
// that is split.
func oneAndThreeServers(t *testing.T, test func(t *testing.T, db *memcacheddriver.MemcachedDB)) {
	t.Run("one server", func(t *testing.T) {
		t.Parallel()
		test(t, drivertest.OpenShared(t))
	})
	t.Run("three servers", func(t *testing.T) {
		t.Parallel()
		_, addrs := drivertest.StartServers(t, 3)
		test(t, drivertest.Open(t, strings.Join(addrs, ",")))
	})
}

// overwrite changes each value, and checks that the others stay as they are.
func overwrite(t *testing.T, values [][]byte) {
	t.Helper()
	for i := range values {
		others := fmt.Sprintf("%s", values[i+1:])
		for j := range values[i] {
			values[i][j] = '!'
		}
		assert.Equal(t, others, fmt.Sprintf("%s", values[i+1:]), "two results share their memory")
	}
}

func TestBatchesAnswerInTheOrderOfTheirKeys(t *testing.T) {
	t.Parallel()
	oneAndThreeServers(t, func(t *testing.T, db *memcacheddriver.MemcachedDB) {
		ctx := t.Context()
		k := drivertest.Keys(5)
		a, b, c, empty, absent := k[0], k[1], k[2], k[3], k[4]
		pairs := map[string][]byte{a: []byte("a"), b: []byte("b"), c: []byte("c"), empty: nil}
		require.NoError(t, db.MSet(ctx, pairs, 0))
		pairs[empty] = []byte{}
		for _, keys := range [][]string{
			{a, b, c}, {c, b, a}, {b}, {absent}, {empty},
			{absent, a}, {a, absent}, {absent, absent}, {a, a}, {empty, empty},
			{absent, a, empty, absent, b, a, c, empty, a, absent},
			{c, absent, c, absent, c},
			{a, b, a, b, b, a},
		} {
			got, err := db.MGet(ctx, keys)
			require.NoError(t, err)
			want := make([][]byte, len(keys))
			there := 0
			for i, key := range keys {
				if want[i] = pairs[key]; want[i] != nil {
					there++
				}
			}
			assert.Equal(t, want, got, "%v", keys) // tells nil from empty
			overwrite(t, got)
			count, err := db.Exists(ctx, keys...)
			require.NoError(t, err)
			assert.EqualValues(t, there, count, "a key counts as often as it is named: %v", keys)
		}
		deleted, err := db.Delete(ctx, a, a, absent, empty, a)
		require.NoError(t, err)
		assert.EqualValues(t, 2, deleted, "a key is deleted once")
	})
}

// A proxy may answer in any order, and once for a key that is named twice.
func TestMGetFillsInTheKeysThatAProxyAnswersOnce(t *testing.T) {
	t.Parallel()
	get := func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		slices.Sort(cmd.Args)
		keys := slices.Compact(cmd.Args)
		slices.Reverse(keys)
		for _, key := range keys {
			if key != "absent" {
				c.Say(memcachedtest.Value(key, string(drivertest.Value(key))))
			}
		}
		c.Say("END\r\n")
	}
	db := drivertest.Open(t, memcachedtest.StartFake(t, memcachedtest.Script{
		"get": get, "mn": memcachedtest.Say("ERROR\r\n"),
	}).Addr())
	for _, asked := range []string{"a a", "a b a", "b a b a", "c a b c b a", "a b c", "a absent c a b c absent a"} {
		keys := strings.Fields(asked)
		values, err := db.MGet(t.Context(), keys)
		require.NoError(t, err)
		drivertest.AssertValues(t, keys, values)
		there := 0
		for i, key := range keys {
			assert.Equal(t, key == "absent", values[i] == nil, "%s: %s", asked, key)
			if key != "absent" {
				there++
			}
		}
		overwrite(t, values)
		count, err := db.Exists(t.Context(), keys...)
		require.NoError(t, err)
		assert.EqualValues(t, there, count, asked)
	}
}

func TestBatchesOfNothingAskNobody(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := drivertest.Open(t, "127.0.0.1:1")
	for _, keys := range [][]string{nil, {}} {
		values, err := db.MGet(ctx, keys)
		assert.NoError(t, err)
		assert.Empty(t, values)
		n, err := db.Delete(ctx, keys...)
		assert.NoError(t, err)
		assert.Zero(t, n)
		n, err = db.Exists(ctx, keys...)
		assert.NoError(t, err)
		assert.Zero(t, n)
	}
	assert.NoError(t, db.MSet(ctx, nil, 0))
	assert.NoError(t, db.MSet(ctx, map[string][]byte{}, 0))
	assert.Zero(t, drivertest.Dials(db))
}

// Up to some sizes that take several commands to each server.
func TestBatchesOfEverySize(t *testing.T) {
	t.Parallel()
	oneAndThreeServers(t, func(t *testing.T, db *memcacheddriver.MemcachedDB) {
		ctx := t.Context()
		for _, n := range []int{1, 2, 3, 10, 100, 1023, 1024, 1025, 3000} {
			keys := drivertest.Keys(n)
			pairs := drivertest.Pairs(keys)
			for i := 6; i < n; i += 7 {
				delete(pairs, keys[i])
			}
			require.NoError(t, db.MSet(ctx, pairs, 0))
			values, err := db.MGet(ctx, keys)
			require.NoError(t, err)
			for i, key := range keys {
				if !bytes.Equal(pairs[key], values[i]) || (values[i] == nil) != (i%7 == 6) {
					t.Fatalf("of %d keys, number %d is %q", n, i, values[i])
				}
			}
			count, err := db.Exists(ctx, keys...)
			require.NoError(t, err)
			assert.EqualValues(t, len(pairs), count)
			count, err = db.Delete(ctx, keys...)
			require.NoError(t, err)
			assert.EqualValues(t, len(pairs), count)
			count, err = db.Exists(ctx, keys...)
			require.NoError(t, err)
			assert.Zero(t, count)
		}
	})
}

// A refused value spoils its own key, not the batch and not the connection.
func TestMSetNamesTheKeysOfRefusedValues(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, addrs := drivertest.StartServers(t, 3)
	db := drivertest.OpenAsked(t, strings.Join(addrs, ","))
	keys := drivertest.KeysOf(t, addrs, 20)
	all := slices.Concat(keys...)
	old := make(map[string][]byte)
	for _, key := range all {
		old[key] = []byte("old")
	}
	require.NoError(t, db.MSet(ctx, old, 0))
	pairs := drivertest.Pairs(all)
	refused := map[string][]string{addrs[0]: {keys[0][3], keys[0][17]}, addrs[2]: {keys[2][0]}}
	tooLarge := slices.Concat(refused[addrs[0]], refused[addrs[2]])
	for _, key := range tooLarge {
		pairs[key] = bytes.Repeat([]byte("secret-value-"), 100_000)
	}
	for range 3 {
		err := db.MSet(ctx, pairs, 0)
		require.ErrorIs(t, err, memcacheddriver.ErrValueTooLarge)
		assert.NotContains(t, err.Error(), "secret-value")
		ops := drivertest.OpErrors(err)
		assert.Len(t, ops, len(refused), "one error for each kind of refusal at a server: %v", err)
		for _, e := range ops {
			assert.Equal(t, "mset", e.Op)
			assert.ElementsMatch(t, refused[e.Server], e.Keys, e.Server)
		}
		values, err := db.MGet(ctx, all)
		require.NoError(t, err)
		drivertest.AssertValues(t, all, values)
		for i, key := range all {
			assert.Equal(t, slices.Contains(tooLarge, key), values[i] == nil, key)
		}
	}
	assert.EqualValues(t, len(addrs), drivertest.Dials(db), "a refusal cost a connection")
}

// requireDead requires an error that blames one server, for those keys.
func requireDead(t *testing.T, err error, op, server string, keys []string) {
	t.Helper()
	require.Error(t, err)
	e := drivertest.RequireOpError(t, err)
	assert.Equal(t, op, e.Op)
	assert.Equal(t, server, e.Server)
	assert.ElementsMatch(t, keys, e.Keys)
	assert.Contains(t, err.Error(), server)
	assert.NotErrorIs(t, err, kv.ErrNotFound, "a server that is down is no miss")
}

func TestBatchesWithOneServerDownServeTheOthers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ keys, failureLimit int }{{1, 3}, {5, 3}, {20, 0}} {
		t.Run(fmt.Sprintf("%d keys each, failure limit %d", c.keys, c.failureLimit), func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			servers, addrs := drivertest.StartServers(t, 3)
			db := drivertest.Open(t, strings.Join(addrs, ","), memcacheddriver.WithServerFailureLimit(c.failureLimit, drivertest.Never))
			keys := drivertest.KeysOf(t, addrs, c.keys)
			all, alive := slices.Concat(keys...), slices.Concat(keys[0], keys[2])
			require.NoError(t, db.MSet(ctx, drivertest.Pairs(all), 0))
			servers[1].Kill()
			failed := 0
			requireDead := func(err error, op string) {
				t.Helper()
				down := c.failureLimit > 0 && failed >= c.failureLimit
				assert.Equal(t, down, errors.Is(err, memcacheddriver.ErrServerDown), "after %d failures: %v", failed, err)
				failed++
				requireDead(t, err, op, addrs[1], keys[1])
				assert.NotContains(t, err.Error(), addrs[0])
				assert.NotContains(t, err.Error(), addrs[2])
			}

			values, err := db.MGet(ctx, all)
			requireDead(err, "mget")
			assert.Equal(t, len(alive), drivertest.AssertValues(t, all, values), "what the other servers hold")
			count, err := db.Exists(ctx, all...)
			requireDead(err, "exists")
			assert.EqualValues(t, len(alive), count)

			pairs := make(map[string][]byte)
			for _, key := range all {
				pairs[key] = []byte("new")
			}
			requireDead(db.MSet(ctx, pairs, 0), "mset")
			values, err = db.MGet(ctx, alive)
			require.NoError(t, err)
			for i := range values {
				assert.Equal(t, "new", string(values[i]), "MSet did not try every server")
			}

			deleted, err := db.Delete(ctx, all...)
			requireDead(err, "delete")
			assert.EqualValues(t, len(alive), deleted, "Delete did not try every server")
			count, err = db.Exists(ctx, alive...)
			require.NoError(t, err)
			assert.Zero(t, count)

			_, err = db.MGet(ctx, all)
			requireDead(err, "mget")

			if c.failureLimit == 0 {
				servers[1].Restart()
				require.NoError(t, db.MSet(ctx, pairs, 0), "after the restart")
				count, err = db.Exists(ctx, all...)
				require.NoError(t, err)
				assert.EqualValues(t, len(all), count)
			}
		})
	}
}

func TestBatchesWithAllServersDownNameEach(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	servers, addrs := drivertest.StartServers(t, 3)
	db := drivertest.Open(t, strings.Join(addrs, ","))
	keys := drivertest.KeysOf(t, addrs, 2)
	all := slices.Concat(keys...)
	for _, s := range servers {
		s.Kill()
	}
	for name, call := range map[string]func() error{
		"mget":   func() error { _, err := db.MGet(ctx, all); return err },
		"mset":   func() error { return db.MSet(ctx, drivertest.Pairs(all), 0) },
		"delete": func() error { _, err := db.Delete(ctx, all...); return err },
		"exists": func() error { _, err := db.Exists(ctx, all...); return err },
	} {
		err := call()
		ops := drivertest.OpErrors(err)
		require.Len(t, ops, 3, "%s: %v", name, err)
		for i, addr := range addrs {
			at := slices.IndexFunc(ops, func(e *memcacheddriver.OpError) bool { return e.Server == addr })
			require.GreaterOrEqual(t, at, 0, "%s: nothing is said of %s: %v", name, addr, err)
			assert.Equal(t, name, ops[at].Op)
			assert.ElementsMatch(t, keys[i], ops[at].Keys)
		}
		var op *memcacheddriver.OpError
		assert.ErrorAs(t, err, &op)
		assert.NotContains(t, err.Error(), "\n")
	}
}

// A batch of Grove's stands on the driver's.
func TestGroveBatch(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, addrs := drivertest.StartServers(t, 3)
	store := drivertest.OpenStore(t, strings.Join(addrs, ","))
	k := drivertest.Keys(4)
	result, err := kv.NewBatch(store).Set(k[0], "zero").Set(k[1], 1).Exec(ctx)
	require.NoError(t, err)
	assert.EqualValues(t, 2, result.Written)
	result, err = kv.NewBatch(store).Get(k...).Delete(k[0], k[2]).Exec(ctx)
	require.NoError(t, err)
	assert.Equal(t, map[string][]byte{k[0]: []byte(`"zero"`), k[1]: []byte("1")}, result.Values)
	assert.EqualValues(t, 1, result.Deleted)
}

func TestDeleteCountsWhatItRemoved(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := drivertest.OpenShared(t)
	k := drivertest.Keys(4)
	for _, c := range []struct {
		keys []string
		want int64
	}{
		{nil, 0},
		{[]string{k[0]}, 1},
		{[]string{k[3]}, 0},
		{[]string{k[0], k[1], k[2], k[3]}, 3},
		{[]string{k[0], k[0]}, 1},
		{[]string{k[3], k[3]}, 0},
	} {
		require.NoError(t, db.MSet(ctx, map[string][]byte{k[0]: []byte("0"), k[1]: []byte("1"), k[2]: {}}, 0))
		n, err := db.Delete(ctx, c.keys...)
		require.NoError(t, err)
		assert.Equal(t, c.want, n, "%v", c.keys)
		n, err = db.Exists(ctx, k...)
		require.NoError(t, err)
		assert.Equal(t, 3-c.want, n, "%v", c.keys)
	}
}

func TestExistsCountsAKeyAsOftenAsItIsNamed(t *testing.T) {
	t.Parallel()
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		ctx := t.Context()
		db := drivertest.Open(t, addr)
		a, empty, absent := drivertest.Key(), drivertest.Key(), drivertest.Key()
		require.NoError(t, db.MSet(ctx, map[string][]byte{a: []byte("a"), empty: {}}, 0))
		for _, c := range []struct {
			keys []string
			want int64
		}{
			{nil, 0},
			{[]string{a}, 1},
			{[]string{absent}, 0},
			{[]string{empty}, 1},
			{[]string{absent, a, empty}, 2},
			{[]string{a, a}, 2}, // as Redis counts
			{[]string{a, absent, a, absent, empty, a}, 4},
		} {
			n, err := db.Exists(ctx, c.keys...)
			require.NoError(t, err)
			assert.Equal(t, c.want, n, "%v", c.keys)
		}
	})
}
