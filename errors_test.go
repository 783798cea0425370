package memcacheddriver_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

func TestOpErrorText(t *testing.T) {
	for want, e := range map[string]*memcacheddriver.OpError{
		`memcacheddriver: open: it broke`:                                {Op: "open"},
		`memcacheddriver: get "k" on mc1:11211: it broke`:                {Op: "get", Server: "mc1:11211", Keys: []string{"k"}},
		`memcacheddriver: ping on mc1:11211: it broke`:                   {Op: "ping", Server: "mc1:11211"},
		`memcacheddriver: set "k": it broke`:                             {Op: "set", Keys: []string{"k"}},
		`memcacheddriver: mget "a", "b", "c" on mc1:1: it broke`:         {Op: "mget", Server: "mc1:1", Keys: []string{"a", "b", "c"}},
		`memcacheddriver: mget "a", "b", "c" and 2 more: it broke`:       {Op: "mget", Keys: []string{"a", "b", "c", "d", "e"}},
		`memcacheddriver: get "a\r\nflush_all\x00\"" on mc1:1: it broke`: {Op: "get", Server: "mc1:1", Keys: []string{"a\r\nflush_all\x00\""}},
	} {
		e.Err = errors.New("it broke")
		assert.Equal(t, want, e.Error())
		assert.ErrorIs(t, e, e.Err)
	}
}

func TestErrorsAreTold(t *testing.T) {
	assert.ErrorIs(t, memcacheddriver.ErrInvalidKey, memcache.ErrMalformedKey)
	all := []error{
		memcacheddriver.ErrNotOpen, memcacheddriver.ErrAlreadyOpen, memcacheddriver.ErrInvalidDSN, memcacheddriver.ErrInvalidOption,
		memcacheddriver.ErrInvalidKey, memcacheddriver.ErrValueTooLarge, memcacheddriver.ErrServerDown, memcacheddriver.ErrAuth,
		memcacheddriver.ErrProtocol, kv.ErrNotFound, kv.ErrConflict, kv.ErrKeyEmpty, kv.ErrNotSupported,
	}
	for i, a := range all {
		for j, b := range all {
			assert.Equal(t, i == j, errors.Is(fmt.Errorf("in a chain: %w", a), b), "%v, %v", a, b)
		}
	}
}

// replies are what no memcached says to a call, with what the call makes of it.
var replies = []struct {
	name, reply string
	want        error
}{
	{"nothing", "", io.ErrUnexpectedEOF},
	{"an empty line", "\r\n", memcacheddriver.ErrProtocol},
	{"garbage", "secret-value\r\n", memcacheddriver.ErrProtocol},
	{"a bare line feed", "secret-value\n", memcacheddriver.ErrProtocol},
	{"HTTP", "HTTP/1.1 400 Bad Request\r\nServer: secret-value\r\n\r\n", memcacheddriver.ErrProtocol},
	{"Redis", "-ERR unknown command secret-value\r\n", memcacheddriver.ErrProtocol},
	{"an endless line", strings.Repeat("secret-value", 100_000), memcacheddriver.ErrProtocol},
	{"binary", "\x81\x00\x00\x00secret-value\x00\x00\r\n", memcacheddriver.ErrProtocol},
	{"a word like another", "STOREDsecret-value\r\n", memcacheddriver.ErrProtocol},
	{"a word in small letters", "stored\r\n", memcacheddriver.ErrProtocol},
}

// garbled opens a driver on a server that answers everything but a version with
// reply; "" closes the connection.
func garbled(t *testing.T, reply string) *memcacheddriver.MemcachedDB {
	return openDB(t, startScripted(t, func(c net.Conn) {
		answer(c, func(line string) string {
			switch {
			case line == "version":
				return "VERSION 1.6.18\r\n"
			case line == "mn":
				return "MN\r\n"
			}
			return reply
		})
	}), memcacheddriver.WithServerFailureLimit(0, 0), memcacheddriver.WithTTLQuery(), memcacheddriver.WithTimeout(20*time.Second))
}

func TestGarbage(t *testing.T) {
	t.Parallel()
	for _, c := range replies {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for by, call := range calls {
				db := garbled(t, c.reply)
				err := call(t.Context(), db, "key")
				require.ErrorIs(t, err, c.want, by)
				for _, op := range opErrors(err) {
					assert.Equal(t, db.Stats()[0].Addr, op.Server, by)
				}
				require.NotEmpty(t, opErrors(err), by)
				assert.NotContains(t, err.Error(), "secret-value", "%s quotes what came", by)
				assert.Less(t, len(err.Error()), 300, by)
				assert.NotContains(t, err.Error(), "\n", by)
				assert.NotErrorIs(t, err, kv.ErrNotFound, by)
				assert.Zero(t, db.Stats()[0].Idle, "%s: the connection is used on", by)
			}
		})
	}
}

// The server's own words are worth telling.
func TestServerErrors(t *testing.T) {
	t.Parallel()
	for _, line := range []string{
		"SERVER_ERROR out of memory storing object",
		"SERVER_ERROR temporary failure",
		"CLIENT_ERROR bad command line format",
		"ERROR",
	} {
		for by, call := range calls {
			db := garbled(t, line+"\r\n")
			err := call(t.Context(), db, "key")
			require.Error(t, err, by)
			assert.Contains(t, err.Error(), line, by)
			assert.NotErrorIs(t, err, memcacheddriver.ErrValueTooLarge, by)
			assert.Equal(t, db.Stats()[0].Addr, requireOpError(t, err).Server, by)
			if !strings.HasPrefix(line, "SERVER_ERROR") {
				assert.Zero(t, db.Stats()[0].Idle, "%s: the connection is used on after %s", by, line)
			}
		}
	}
}

// Half a value is none.
func TestHalfReplies(t *testing.T) {
	t.Parallel()
	for name, reply := range map[string]string{
		"half a line":               "VALUE key",
		"no value":                  "VALUE key 0 5 1\r\n",
		"half a value":              "VALUE key 0 5 1\r\nhal",
		"no line end":               "VALUE key 0 5 1\r\nhalf!",
		"no END":                    "VALUE key 0 5 1\r\nhalf!\r\n",
		"half an END":               "VALUE key 0 5 1\r\nhalf!\r\nEN",
		"a size that is too large":  "VALUE key 0 500 1\r\nhalf!\r\nEND\r\n",
		"a size that is too small":  "VALUE key 0 3 1\r\nhalf!\r\nEND\r\n",
		"a size that is negative":   "VALUE key 0 -1 1\r\nhalf!\r\nEND\r\n",
		"a size that is no number":  "VALUE key 0 x 1\r\nhalf!\r\nEND\r\n",
		"a size beyond all reason":  "VALUE key 0 99999999999 1\r\nhalf!\r\nEND\r\n",
		"a size that wraps to 5":    "VALUE key 0 18446744073709551621 1\r\nhalf!\r\nEND\r\n",
		"garbage behind the value":  "VALUE key 0 5 1\r\nhalf!\r\nhalf!\r\n",
		"an error behind the value": "VALUE key 0 5 1\r\nhalf!\r\nSERVER_ERROR half!\r\n",
	} {
		for by, get := range map[string]func(db *memcacheddriver.MemcachedDB) ([]byte, error){
			"Get": func(db *memcacheddriver.MemcachedDB) ([]byte, error) { return db.Get(t.Context(), "key") },
			"MGet": func(db *memcacheddriver.MemcachedDB) ([]byte, error) {
				all, err := db.MGet(t.Context(), []string{"other", "key"})
				if strings.Contains(name, "behind the value") || strings.Contains(name, "END") {
					return nil, err // a value that was complete may be told
				}
				return all[1], err
			},
		} {
			db := openDB(t, startScripted(t, func(c net.Conn) {
				buf := make([]byte, 1024)
				if _, err := c.Read(buf); err == nil {
					_, _ = io.WriteString(c, reply)
				}
			}))
			value, err := get(db)
			require.Error(t, err, "%s: %s", by, name)
			assert.Nil(t, value, "%s: %s", by, name)
			assert.NotErrorIs(t, err, kv.ErrNotFound, "%s: %s", by, name)
			assert.NotContains(t, strings.ReplaceAll(err.Error(), "SERVER_ERROR half!", ""), "half!", "%s: %s", by, name)
			assert.Zero(t, db.Stats()[0].Idle, "%s: %s: the connection is used on", by, name)
		}
	}
}

// After garbage the next call gets a connection of its own, and its own reply.
func TestTheNextCallAfterGarbage(t *testing.T) {
	t.Parallel()
	first := make(chan struct{}, 1)
	first <- struct{}{}
	db := openDB(t, startScripted(t, func(c net.Conn) {
		answer(c, func(line string) string {
			select {
			case <-first:
				return "garbage\r\nVALUE key 0 5 1\r\nlate!\r\nEND\r\n"
			default:
				return "VALUE key 0 5 1\r\nright\r\nEND\r\n"
			}
		})
	}))
	_, err := db.Get(t.Context(), "key")
	require.ErrorIs(t, err, memcacheddriver.ErrProtocol)
	for range 3 {
		got, err := db.Get(t.Context(), "key")
		require.NoError(t, err)
		assert.Equal(t, "right", string(got))
	}
	assert.EqualValues(t, 2, db.Stats()[0].Dials)
}
