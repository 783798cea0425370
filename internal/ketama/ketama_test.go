package ketama_test

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/ketama"
)

// TestPick compares with what testdata/generate.c has of libmemcached: 200 lists of
// up to 100 servers, of equal and of different weights, and 1,000 keys for each.
func TestPick(t *testing.T) {
	f, err := os.Open("testdata/picks.json.gz")
	require.NoError(t, err)
	defer f.Close()
	unzipped, err := gzip.NewReader(f)
	require.NoError(t, err)
	lists := 0
	for d := json.NewDecoder(unzipped); ; lists++ {
		var list struct {
			Servers []ketama.Server
			Picks   []int
		}
		err := d.Decode(&list)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		require.Len(t, list.Picks, 1000)
		r := ketama.New(list.Servers)
		wrong := 0
		for i, pick := range list.Picks {
			if r.Pick(fmt.Sprintf("%0*d", 1+i%250, len(list.Servers)*1000+i)) != pick {
				wrong++
			}
		}
		assert.Zero(t, wrong, "keys are elsewhere on the %d servers of line %d", len(list.Servers), lists+1)
	}
	require.Equal(t, 200, lists)
}

// TestPickLightServer has a server with a share of 1/81 of 80 digests, and with one
// of 2/82.
func TestPickLightServer(t *testing.T) {
	without := ketama.New([]ketama.Server{{"heavy", 11211, 80}, {"light", 11211, 1}})
	with := ketama.New([]ketama.Server{{"heavy", 11211, 80}, {"light", 11211, 2}})
	picked := 0
	for i := range 10_000 {
		require.Zero(t, without.Pick(fmt.Sprint(i)))
		picked += with.Pick(fmt.Sprint(i))
	}
	require.NotZero(t, picked)
}

func TestPickAllocatesNothing(t *testing.T) {
	r := ketama.New(caches(100))
	key := strings.Repeat("k", 250)
	require.Zero(t, testing.AllocsPerRun(100, func() { r.Pick(key) }))
}

// TestKeysThatMove counts the keys that another server joining a list takes to
// another server, by ketama and by gomemcache's CRC-32 modulo the list. With -v it
// prints them.
func TestKeysThatMove(t *testing.T) {
	const keys = 20_000
	t.Log("servers    ketama    modulo")
	for n := 1; n <= 20; n++ {
		before, after := ketama.New(caches(n)), ketama.New(caches(n+1))
		var byKetama, byModulo float64
		for i := range keys {
			key := fmt.Sprintf("user:%d:profile", i)
			if before.Pick(key) != after.Pick(key) {
				byKetama++
			}
			if sum := int(crc32.ChecksumIEEE([]byte(key))); sum%n != sum%(n+1) {
				byModulo++
			}
		}
		byKetama /= keys
		byModulo /= keys
		t.Logf("%2d to %2d  %5.1f %%   %5.1f %%", n, n+1, 100*byKetama, 100*byModulo)
		joined := float64(n + 1)
		assert.InDelta(t, 1/joined, byKetama, 0.05, "%d servers and one more", n)
		assert.InDelta(t, 1-1/joined, byModulo, 0.02, "%d servers and one more", n)
	}
}

func FuzzPick(f *testing.F) {
	f.Add("key", []byte{0})
	f.Add("", []byte{0, 0, 31})
	f.Add(strings.Repeat("k", 251), []byte{33, 33, 33, 33})
	f.Fuzz(func(t *testing.T, key string, weights []byte) {
		if len(weights) == 0 || len(weights) > 200 {
			return
		}
		servers := caches(len(weights))
		for i, w := range weights {
			servers[i].Weight = uint32(uint64(1) << (w % 33) >> 1) // 0, 1, 2, 4 …
		}
		place := ketama.New(servers).Pick(key)
		require.GreaterOrEqual(t, place, 0)
		require.Less(t, place, len(servers))
		for _, s := range servers {
			require.GreaterOrEqual(t, servers[place].Weight, s.Weight/uint32(41*len(servers)), "too light for a point")
		}
	})
}

func BenchmarkPick(b *testing.B) {
	r := ketama.New(caches(100))
	var keys []string // more than one, or the processor learns the way
	for i := range 1 << 14 {
		keys = append(keys, fmt.Sprintf("user:%d:profile", i))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		r.Pick(keys[i%len(keys)])
	}
}

func caches(n int) (servers []ketama.Server) {
	for i := range n {
		servers = append(servers, ketama.Server{Host: fmt.Sprintf("cache%d", i+1), Port: 11211})
	}
	return servers
}
