package pipeline_test

import (
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// What the server sends does not depend on the values.
func TestExistsFetchesNoValues(t *testing.T) {
	t.Parallel()
	const n, size = 100, 500 << 10
	server := memcachedtest.Start(t, "-m", "128")
	db := drivertest.OpenAsked(t, server.Addr())
	value := make([]byte, size)
	keys := drivertest.Keys(n)
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
	for _, asked := range [][]string{keys, keys[:2], keys[:1], nil} {
		count, err := db.Exists(t.Context(), slices.Concat(asked, []string{"absent"})...)
		require.NoError(t, err)
		assert.EqualValues(t, len(asked), count)
	}
	count, err := db.Exists(t.Context(), keys[0])
	require.NoError(t, err)
	assert.EqualValues(t, 1, count)
	assert.Less(t, written()-before, 50_000, "bytes from the server, whose values are %d", n*size)
}

func TestExistsWithoutMetaGetsTheValues(t *testing.T) {
	t.Parallel()
	server := memcachedtest.StartFake(t, classic(hits(func(c *memcachedtest.FakeConn, reply string) { c.Say(reply) })))
	db := drivertest.OpenAsked(t, server.Addr())
	keys := drivertest.Keys(10)
	for range 5 {
		count, err := db.Exists(t.Context(), slices.Concat(keys, keys[:2])...)
		require.NoError(t, err)
		assert.EqualValues(t, len(keys)+2, count, "a key counts as often as it is named")
	}
	assert.Zero(t, server.Count("mg"))
	assert.Equal(t, 5, server.Count("get"))
	assert.Equal(t, 1, server.Count("mn"), "asked again")
	assert.Equal(t, 1, server.Accepted())
}
