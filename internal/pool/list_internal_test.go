package pool

import (
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/require"
)

func TestChecksumIsCRC32(t *testing.T) {
	keys := []string{"", "a", "key", "\x00\xff", "ключ"}
	for range 2000 {
		b := make([]byte, rand.IntN(260))
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
		keys = append(keys, string(b))
	}
	for _, key := range keys {
		require.Equal(t, crc32.ChecksumIEEE([]byte(key)), checksum(key), "%q", key)
	}
	key := keys[100]
	require.Zero(t, testing.AllocsPerRun(100, func() { checksum(key) }))
}

// The mapping is gomemcache's, a server that is listed twice included.
func TestPickIsGomemcaches(t *testing.T) {
	for _, addrs := range [][]string{
		{"127.0.0.1:1"},
		{"127.0.0.1:1", "127.0.0.1:2"},
		{"127.0.0.1:3", "127.0.0.1:1", "127.0.0.1:3", "/run/m.sock", "127.0.0.1:2"},
	} {
		var list memcache.ServerList
		require.NoError(t, list.SetServers(addrs...))
		p := open(t, func(cfg *Config) { cfg.Servers = entries(addrs...) })
		for range 500 {
			key := string(rune('a'+rand.IntN(26))) + string(rune('a'+rand.IntN(26))) + string(rune('0'+rand.IntN(10)))
			want, err := list.PickServer(key)
			require.NoError(t, err)
			require.Equal(t, want.String(), p.List().Servers[p.List().Pick(key)].Address, key)
		}
	}
}
