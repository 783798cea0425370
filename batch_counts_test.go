package memcacheddriver_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
)

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
