package memcacheddriver_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// hostile starts a server that answers each line that reply has an answer to, of
// a memcached with the meta protocol where it has none; "close" closes.
func hostile(t *testing.T, reply func(command string) string) string {
	return startScripted(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			answer := reply(strings.TrimSpace(line))
			if answer == "" {
				answer = map[string]string{"version": "VERSION 1.6.18\r\n", "mn": "MN\r\n"}[strings.TrimSpace(line)]
			}
			if answer == "close" {
				return
			}
			if _, err := io.WriteString(c, answer); err != nil {
				return
			}
		}
	})
}

// What a proxy did not store must not pass for stored.
func TestNotStoredIsNoSuccess(t *testing.T) {
	t.Parallel()
	db := openDB(t, hostile(t, func(command string) string {
		switch strings.Fields(command + " ")[0] {
		case "ms":
			return "NS\r\n"
		case "set":
			return "NOT_STORED\r\n"
		}
		return ""
	}))
	ctx, pairs := t.Context(), map[string][]byte{"a": []byte("v"), "b": []byte("w")}
	for _, ttl := range []time.Duration{0, 500 * time.Millisecond} {
		assert.Error(t, db.Set(ctx, "k", []byte("v"), ttl), "Set, %v", ttl)
		assert.Error(t, db.MSet(ctx, pairs, ttl), "MSet, %v", ttl)
	}
}

// A value must not be run as a command, by a server without the meta protocol
// that has taken the place of one with it.
func TestValuesAreNoCommands(t *testing.T) {
	t.Parallel()
	var replaced, meta atomic.Bool
	db := openDB(t, hostile(t, func(command string) string {
		switch {
		case replaced.Load() && strings.HasPrefix(command, "ms "):
			meta.Store(true) // its value would be the next command
			return "ERROR\r\n"
		case replaced.Load() && command == "version":
			return "VERSION 1.4.39\r\n"
		case replaced.Load() && strings.HasPrefix(command, "set"):
			return "STORED\r\n"
		case replaced.Load():
			return "ERROR\r\n"
		case strings.HasPrefix(command, "mg"):
			replaced.Store(true)
			return "close"
		}
		return ""
	}))
	_, err := db.Exists(t.Context(), "k")
	assert.Error(t, err)
	_ = db.Set(t.Context(), "k", []byte("flush_all"), 500*time.Millisecond)
	_ = db.MSet(t.Context(), map[string][]byte{"a": []byte("flush_all"), "b": []byte("flush_all")}, 0)
	assert.False(t, meta.Load(), "a value was sent as the data of a command that the server does not know")
}

// A server that is full refuses connections with an error line. That says nothing
// about its protocol.
func TestFullServerIsNoVerdict(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t, "-c", "100")
	db := openDB(t, server.Addr(), memcacheddriver.WithTTLQuery())
	ctx := t.Context()
	var all []net.Conn
	for range 200 {
		c, err := net.Dial("tcp", server.Addr())
		require.NoError(t, err)
		all = append(all, c)
	}
	assert.Eventually(t, func() bool {
		_, err := db.Exists(ctx, "k")
		return err != nil
	}, 5*time.Second, 10*time.Millisecond)
	for _, c := range all {
		c.Close()
	}
	assert.Eventually(t, func() bool { return db.Set(ctx, "k", []byte("v"), time.Minute) == nil }, 10*time.Second, 10*time.Millisecond)
	require.NoError(t, db.CompareAndSwap(ctx, "k", func([]byte) ([]byte, error) { return []byte("w"), nil }))
	ttl, err := db.TTL(ctx, "k")
	require.NoError(t, err)
	assert.Greater(t, ttl, 30*time.Second)
}

// The cause of a cancellation may be the failure of another call. It is not what
// this one failed of.
func TestCauseIsNoFailureOfTheCall(t *testing.T) {
	t.Parallel()
	dead := openDB(t, startScripted(t, func(net.Conn) {}))
	hangs := openDB(t, startScripted(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }))
	cause := dead.Do(t.Context(), func(c *memcache.Client) error { _, err := c.Get("k"); return err })
	require.Error(t, cause)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	_, err := hangs.Get(ctx, "k")
	assert.ErrorIs(t, err, context.Canceled)
	assert.ErrorIs(t, err, cause)
	_, err = hangs.MGet(ctx, []string{"k", "j"})
	assert.ErrorIs(t, err, context.Canceled)
	var op *memcacheddriver.OpError
	require.ErrorAs(t, err, &op)
	assert.Empty(t, op.Server, "no server is to blame")
}

// A batch that probes a server brings it back with its first reply, not its last.
func TestProbeByABatch(t *testing.T) {
	t.Parallel()
	var alive atomic.Bool
	deletes := make(chan struct{}, 3)
	slow := make(chan struct{})
	db := openDB(t, hostile(t, func(command string) string {
		switch {
		case !alive.Load():
			return "close"
		case strings.HasPrefix(command, "delete"):
			deletes <- struct{}{}
			if len(deletes) == 2 {
				<-slow
			}
			return "DELETED\r\n"
		}
		return "END\r\n"
	}), memcacheddriver.WithServerFailureLimit(1, time.Millisecond))
	_, err := db.Get(t.Context(), "k")
	require.Error(t, err)
	alive.Store(true)
	time.Sleep(10 * time.Millisecond)
	done := make(chan error, 1)
	go func() {
		_, err := db.Delete(context.Background(), "a", "b", "c")
		done <- err
	}()
	assert.Eventually(t, func() bool { return len(deletes) >= 2 }, 5*time.Second, time.Millisecond)
	assert.Eventually(t, func() bool {
		_, err := db.Get(t.Context(), "k")
		return err == kv.ErrNotFound
	}, 5*time.Second, time.Millisecond, "down until the batch ends")
	close(slow)
	assert.NoError(t, <-done)
}
