package pool

import (
	"context"
	"crypto/tls"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// Session tickets that a TLS server sent unasked are no sign of a stale socket;
// a reply that nobody waits for, or the end, is.
func TestTicketsAreNoStaleness(t *testing.T) {
	t.Parallel()
	server, config := memcachedtest.StartTLS(t)
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1) // or no tickets are sent
	p := open(t, func(cfg *Config) {
		cfg.Servers = entries(server.Addr())
		cfg.TLS = config
	})
	connect := func() *socket {
		sock, err := p.List().Servers[0].connect(context.Background())
		require.NoError(t, err)
		t.Cleanup(sock.close)
		memcachedtest.Eventually(t, func() bool { return sock.peeker.peek() == readable }, "the tickets are there")
		time.Sleep(2 * checkAfter)
		return sock
	}
	sock := connect()
	assert.True(t, sock.good(sinceStart()))
	assert.Equal(t, quiet, sock.peeker.peek(), "the tickets are read")
	assert.True(t, sock.good(sinceStart()))
	_, err := sock.Write([]byte("version\r\n"))
	require.NoError(t, err)
	memcachedtest.Eventually(t, func() bool { return !sock.good(sinceStart()) }, "a reply that nobody waits for is stale")

	sock = connect()
	server.Kill()
	memcachedtest.Eventually(t, func() bool { return !sock.good(sinceStart()) }, "a socket that ended is stale")
}

// A socket whose server did not answer the question for meta is used for a while
// only, so that the next one asks again.
func TestUnaskedSocketsAreRetired(t *testing.T) {
	t.Parallel()
	fake := memcachedtest.StartFake(t, memcachedtest.Script{"mn": memcachedtest.HangUp})
	p := open(t, func(cfg *Config) { cfg.Servers = entries(fake.Addr()) })
	meta := func() (meta bool) {
		require.NoError(t, p.Do(context.Background(), func(l *Lane) error {
			c := l.Conn(p.List().Servers[0])
			err := c.Begin()
			meta = c.Meta()
			return err
		}))
		return meta
	}
	require.False(t, meta())
	fake.SetScript(nil) // upgraded, but the socket does not know
	require.False(t, meta())
	require.EqualValues(t, 3, p.List().Servers[0].Stats().Dials)

	idle := p.List().Servers[0].idle
	require.Len(t, idle, 1)
	require.WithinDuration(t, time.Now().Add(metaAgain), idle[0].askAgain, metaAgain/2)
	idle[0].askAgain = time.Now()
	p.List().Servers[0].askAgain.Store(time.Now().UnixNano())
	require.True(t, meta())
	require.EqualValues(t, 4, p.List().Servers[0].Stats().Dials)
	require.EqualValues(t, 1, p.List().Servers[0].Stats().Stale)
	require.True(t, meta())
	require.EqualValues(t, 4, p.List().Servers[0].Stats().Dials)
}
