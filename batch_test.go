package memcacheddriver_test

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

func TestMGetAnswersInTheOrderOfItsKeys(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, three := startServers(t, 3)
	for name, dsn := range map[string]string{"one server": sharedAddr(t), "three servers": strings.Join(three, ",")} {
		db := openDB(t, dsn)
		a, b, c, empty, absent := newKey(), newKey(), newKey(), newKey(), newKey()
		require.NoError(t, db.MSet(ctx, map[string][]byte{a: []byte("a"), b: []byte("b"), c: []byte("c"), empty: {}}, 0))
		value := map[string][]byte{a: []byte("a"), b: []byte("b"), c: []byte("c"), empty: {}, absent: nil}
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
			for i, key := range keys {
				want[i] = value[key]
			}
			assert.Equal(t, want, got, "%s: %v", name, keys) // tells nil from empty
		}
	}
}

// A proxy may answer in any order, and once for a key that is named twice.
func TestMGetThroughAProxy(t *testing.T) {
	t.Parallel()
	addr := startScripted(t, func(c net.Conn) {
		answer(c, func(line string) string {
			keys := strings.Fields(line)[1:]
			slices.Sort(keys)
			keys = slices.Compact(keys)
			slices.Reverse(keys)
			var reply strings.Builder
			for _, key := range keys {
				if key != "absent" {
					fmt.Fprintf(&reply, "VALUE %s 0 %d\r\n%s\r\n", key, len(key), key)
				}
			}
			return reply.String() + "END\r\n"
		})
	})
	db := openDB(t, addr)
	keys := []string{"a", "absent", "c", "a", "b", "c", "absent", "a"}
	got, err := db.MGet(t.Context(), keys)
	require.NoError(t, err)
	for i, key := range keys {
		if key == "absent" {
			assert.Nil(t, got[i])
		} else {
			assert.Equal(t, key, string(got[i]))
		}
	}
	copy(got[0], "x")
	assert.Equal(t, "a", string(got[3]), "two results share their bytes")
}

func TestBatchesOfNothing(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	db := openShared(t)
	for _, keys := range [][]string{nil, {}} {
		got, err := db.MGet(ctx, keys)
		require.NoError(t, err)
		assert.Empty(t, got)
		n, err := db.Delete(ctx, keys...)
		require.NoError(t, err)
		assert.Zero(t, n)
		n, err = db.Exists(ctx, keys...)
		require.NoError(t, err)
		assert.Zero(t, n)
	}
	require.NoError(t, db.MSet(ctx, nil, 0))
	require.NoError(t, db.MSet(ctx, map[string][]byte{}, 0))
	assert.Zero(t, db.Stats()[0].Dials, "nothing to ask for")
}

// Batches of every size up to some that take several commands, over one server
// and over three.
func TestBatchSizes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, three := startServers(t, 3)
	for _, dsn := range []string{sharedAddr(t), strings.Join(three, ",")} {
		db := openDB(t, dsn)
		for _, n := range []int{1, 2, 3, 10, 100, 1023, 1024, 1025, 3000} {
			keys := newKeys(n)
			pairs := make(map[string][]byte)
			for i, key := range keys {
				if i%7 != 6 {
					pairs[key] = []byte(key)
				}
			}
			require.NoError(t, db.MSet(ctx, pairs, 0))
			got, err := db.MGet(ctx, keys)
			require.NoError(t, err)
			for i, key := range keys {
				if !bytes.Equal(pairs[key], got[i]) || (got[i] == nil) != (i%7 == 6) {
					t.Fatalf("of %d keys, number %d is %q", n, i, got[i])
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
	}
}

// One refused value of a batch is told by name, and the others are stored.
func TestMSetWithRefusedValues(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, addrs := startServers(t, 3)
	db := openDB(t, strings.Join(addrs, ","))
	keys := keysOf(t, addrs, 20)
	large := bytes.Repeat([]byte("secret-value-"), 100_000)
	pairs := make(map[string][]byte)
	for _, key := range concat(keys) {
		pairs[key] = []byte(key)
	}
	pairs[keys[0][3]] = large
	pairs[keys[0][17]] = large
	pairs[keys[2][0]] = large
	err := db.MSet(ctx, pairs, 0)
	require.ErrorIs(t, err, memcacheddriver.ErrValueTooLarge)
	assert.NotContains(t, err.Error(), "secret-value")
	refused := make(map[string][]string)
	for _, e := range opErrors(err) {
		assert.Equal(t, "mset", e.Op)
		refused[e.Server] = append(refused[e.Server], e.Keys...)
	}
	slices.Sort(refused[addrs[0]])
	want := []string{keys[0][3], keys[0][17]}
	slices.Sort(want)
	assert.Equal(t, map[string][]string{addrs[0]: want, addrs[2]: {keys[2][0]}}, refused)
	assert.Len(t, opErrors(err), 2, "one error for each kind of refusal at a server: %v", err)

	got, err := db.MGet(ctx, concat(keys))
	require.NoError(t, err)
	for i, key := range concat(keys) {
		if len(pairs[key]) == len(large) {
			assert.Nil(t, got[i])
		} else {
			assert.Equal(t, key, string(got[i]), "a value behind a refused one")
		}
	}
	for i := range addrs {
		assert.EqualValues(t, 1, db.Stats()[i].Dials, "a refusal leaves the connection in step")
	}
}

// threeWithOneDead opens a driver on three servers, kills the one in the
// middle, and returns n keys of each.
func threeWithOneDead(t *testing.T, n int) (db *memcacheddriver.MemcachedDB, keys [][]string, dead string) {
	servers, addrs := startServers(t, 3)
	db = openDB(t, strings.Join(addrs, ","))
	keys = keysOf(t, addrs, n)
	pairs := make(map[string][]byte)
	for _, key := range concat(keys) {
		pairs[key] = []byte(key)
	}
	require.NoError(t, db.MSet(t.Context(), pairs, 0))
	servers[1].Kill()
	return db, keys, addrs[1]
}

func requireDead(t *testing.T, err error, op, server string, keys []string) {
	t.Helper()
	require.Error(t, err)
	e := requireOpError(t, err)
	assert.Equal(t, op, e.Op)
	assert.Equal(t, server, e.Server)
	assert.ElementsMatch(t, keys, e.Keys)
	assert.Contains(t, err.Error(), server)
	assert.NotErrorIs(t, err, kv.ErrNotFound, "a server that is down is no miss")
}

func TestBatchesWithOneServerDown(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, n := range []int{1, 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			db, keys, dead := threeWithOneDead(t, n)
			all := concat(keys)

			got, err := db.MGet(ctx, all)
			requireDead(t, err, "mget", dead, keys[1])
			require.Len(t, got, len(all))
			for i, key := range all {
				if slices.Contains(keys[1], key) {
					assert.Nil(t, got[i])
				} else {
					assert.Equal(t, key, string(got[i]), "what the other servers hold")
				}
			}

			count, err := db.Exists(ctx, all...)
			requireDead(t, err, "exists", dead, keys[1])
			assert.EqualValues(t, 2*n, count)

			pairs := make(map[string][]byte)
			for _, key := range all {
				pairs[key] = []byte("new")
			}
			requireDead(t, db.MSet(ctx, pairs, 0), "mset", dead, keys[1])
			alive := append(slices.Clone(keys[0]), keys[2]...)
			got, err = db.MGet(ctx, alive)
			require.NoError(t, err)
			for i := range got {
				assert.Equal(t, "new", string(got[i]), "MSet did not try every server")
			}

			count, err = db.Delete(ctx, all...)
			requireDead(t, err, "delete", dead, keys[1])
			assert.EqualValues(t, 2*n, count, "Delete did not try every server")
			count, err = db.Exists(ctx, alive...)
			require.NoError(t, err)
			assert.Zero(t, count)

			// By now it is known to be down, and says so.
			_, err = db.MGet(ctx, all)
			requireDead(t, err, "mget", dead, keys[1])
			assert.ErrorIs(t, err, memcacheddriver.ErrServerDown)
		})
	}
}

func TestBatchesWithAllServersDown(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	servers, addrs := startServers(t, 3)
	db := openDB(t, strings.Join(addrs, ","))
	keys := keysOf(t, addrs, 2)
	pairs := make(map[string][]byte)
	for _, key := range concat(keys) {
		pairs[key] = nil
	}
	for _, s := range servers {
		s.Kill()
	}
	for name, call := range map[string]func() error{
		"mget":   func() error { _, err := db.MGet(ctx, concat(keys)); return err },
		"mset":   func() error { return db.MSet(ctx, pairs, 0) },
		"delete": func() error { _, err := db.Delete(ctx, concat(keys)...); return err },
		"exists": func() error { _, err := db.Exists(ctx, concat(keys)...); return err },
	} {
		err := call()
		all := opErrors(err)
		require.Len(t, all, 3, "%s: %v", name, err)
		for i, addr := range addrs {
			at := slices.IndexFunc(all, func(e *memcacheddriver.OpError) bool { return e.Server == addr })
			require.GreaterOrEqual(t, at, 0, "%s: nothing is said of %s: %v", name, addr, err)
			assert.Equal(t, name, all[at].Op)
			assert.ElementsMatch(t, keys[i], all[at].Keys)
		}
		var op *memcacheddriver.OpError
		assert.ErrorAs(t, err, &op)
		assert.NotContains(t, err.Error(), "\n")
	}
}

// kv.Batch, which stands on the driver's batches.
func TestGroveBatch(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, addrs := startServers(t, 3)
	store := openStore(t, strings.Join(addrs, ","))
	k := newKeys(4)
	result, err := kv.NewBatch(store).Set(k[0], "zero").Set(k[1], 1).Exec(ctx)
	require.NoError(t, err)
	assert.EqualValues(t, 2, result.Written)
	result, err = kv.NewBatch(store).Get(k...).Delete(k[0], k[2]).Exec(ctx)
	require.NoError(t, err)
	assert.Equal(t, map[string][]byte{k[0]: []byte(`"zero"`), k[1]: []byte("1")}, result.Values)
	assert.EqualValues(t, 1, result.Deleted)
}
