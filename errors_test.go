package memcacheddriver_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestOpErrorNamesTheCallItsKeysAndTheServer(t *testing.T) {
	t.Parallel()
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

func TestEveryErrorIsToldFromTheOthers(t *testing.T) {
	t.Parallel()
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

// openAnswered opens a driver on a server that has one answer to all.
func openAnswered(t *testing.T, answer memcachedtest.Handler) *memcacheddriver.MemcachedDB {
	t.Helper()
	f := memcachedtest.StartFake(t, memcachedtest.AfterDial(answer))
	return drivertest.Open(t, f.Addr(), memcacheddriver.WithServerFailureLimit(0, 0), memcacheddriver.WithTTLQuery(),
		memcacheddriver.WithTimeout(drivertest.Never))
}

func TestGarbageIsAnErrorThatDoesNotQuoteIt(t *testing.T) {
	t.Parallel()
	say := memcachedtest.Say
	for name, c := range map[string]struct {
		answer memcachedtest.Handler
		want   error
	}{
		"nothing":                 {memcachedtest.HangUp, io.ErrUnexpectedEOF},
		"an empty line":           {say("\r\n"), memcacheddriver.ErrProtocol},
		"garbage":                 {say("secret-value\r\n"), memcacheddriver.ErrProtocol},
		"a bare line feed":        {say("secret-value\n"), memcacheddriver.ErrProtocol},
		"HTTP":                    {say("HTTP/1.1 400 Bad Request\r\nServer: secret-value\r\n\r\n"), memcacheddriver.ErrProtocol},
		"Redis":                   {say("-ERR unknown command secret-value\r\n"), memcacheddriver.ErrProtocol},
		"an endless line":         {say(strings.Repeat("secret-value", 100_000)), memcacheddriver.ErrProtocol},
		"binary":                  {say("\x81\x00\x00\x00secret-value\x00\x00\r\n"), memcacheddriver.ErrProtocol},
		"a word like another":     {say("STOREDsecret-value\r\n"), memcacheddriver.ErrProtocol},
		"a word in small letters": {say("stored\r\n"), memcacheddriver.ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := openAnswered(t, c.answer)
			for _, call := range drivertest.Calls {
				if call.Keys == 0 {
					continue // Ping's command is answered; errors inside of Do are gomemcache's
				}
				err := call.Run(t.Context(), db, "key")
				require.ErrorIs(t, err, c.want, call.Name)
				assert.NotErrorIs(t, err, kv.ErrNotFound, call.Name)
				ops := drivertest.OpErrors(err)
				require.NotEmpty(t, ops, call.Name)
				for _, op := range ops {
					assert.Equal(t, drivertest.Stat(t, db).Addr, op.Server, call.Name)
				}
				assert.NotContains(t, err.Error(), "secret-value", call.Name)
				assert.NotContains(t, err.Error(), "\n", call.Name)
				assert.Less(t, len(err.Error()), 300, call.Name)
				assert.Zero(t, drivertest.Stat(t, db).Idle, "%s: the connection is used on", call.Name)
			}
		})
	}
}

// What another command would be answered: a proxy has mixed up its replies, and
// nobody knows what was done.
func TestTheReplyToAnotherCommandIsNoAnswer(t *testing.T) {
	t.Parallel()
	answers := map[string][]string{
		"Get":                           {"END"},
		"Set":                           {"STORED"},
		"Set under a second":            {"HD"},
		"SetNX":                         {"STORED", "NOT_STORED"},
		"SetNX under a second":          {"HD", "NS"},
		"SetXX":                         {"STORED", "NOT_STORED"},
		"SetXX under a second":          {"HD", "NS"},
		"Delete":                        {"DELETED", "NOT_FOUND", "OK"}, // gomemcache takes an OK for DELETED
		"Delete of two":                 {"DELETED", "NOT_FOUND"},
		"Exists":                        {"HD", "EN"},
		"Exists of two":                 {"HD", "EN"},
		"MGet of one":                   {"END"},
		"MGet":                          {"END"},
		"MSet of one":                   {"STORED"},
		"MSet":                          {"MN"}, // to small values, which are stored in silence
		"MSet under a second":           {"HD"},
		"Expire":                        {"HD", "EN"},
		"Expire under a second":         {"HD", "EN"},
		"TTL":                           {"HD", "EN"},
		"CompareAndSwap":                {"STORED", "NOT_STORED", "EXISTS", "NOT_FOUND"},
		"CompareAndSwap under a second": {"HD", "NS", "EX", "NF"},
	}
	for _, reply := range []string{
		"STORED", "NOT_STORED", "EXISTS", "NOT_FOUND", "DELETED", "TOUCHED", "END", "OK", "1", "VERSION 1.6.18",
		"HD", "NS", "EX", "NF", "EN", "MN",
	} {
		var swaps atomic.Bool
		db := openAnswered(t, func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			switch {
			case strings.HasSuffix(cmd.Line, " t c f v"): // what a swap reads
				c.Say("VA 1 t-1 c7 f0\r\n1\r\n")
			case swaps.Load() && strings.HasSuffix(cmd.Line, " t u"): // and asks before it writes
				c.Say("HD t-1\r\n")
			default:
				c.Say(reply + "\r\n")
			}
		})
		for _, call := range drivertest.Calls {
			if call.Keys == 0 {
				continue
			}
			swaps.Store(call.Name == "CompareAndSwap")
			err := call.Run(t.Context(), db, "key")
			switch {
			case !slices.Contains(answers[call.Name], reply):
				require.ErrorIs(t, err, memcacheddriver.ErrProtocol, "%s: %s", call.Name, reply)
				assert.Equal(t, drivertest.Stat(t, db).Addr, drivertest.RequireOpError(t, err).Server, call.Name)
				assert.Zero(t, drivertest.Stat(t, db).Idle, "%s: the connection is used on after %s", call.Name, reply)
			case reply == "EXISTS", reply == "EX":
				assert.ErrorIs(t, err, kv.ErrConflict, call.Name)
			default:
				assert.NoError(t, err, "%s: %s", call.Name, reply)
			}
		}
	}
}

// The server's own words are worth telling.
func TestErrorLinesAreQuoted(t *testing.T) {
	t.Parallel()
	for _, line := range []string{
		"SERVER_ERROR out of memory storing object",
		"SERVER_ERROR temporary failure",
		"CLIENT_ERROR bad command line format",
		"ERROR",
	} {
		db := openAnswered(t, memcachedtest.Say(line+"\r\n"))
		for _, call := range drivertest.Calls {
			if call.Keys == 0 {
				continue
			}
			err := call.Run(t.Context(), db, "key")
			require.ErrorContains(t, err, line, call.Name)
			assert.NotErrorIs(t, err, memcacheddriver.ErrValueTooLarge, call.Name)
			assert.Equal(t, drivertest.Stat(t, db).Addr, drivertest.RequireOpError(t, err).Server, call.Name)
		}
	}
}

func TestHalfAValueIsNone(t *testing.T) {
	t.Parallel()
	for name, reply := range map[string]string{
		"half a line":              "VALUE key",
		"no value":                 "VALUE key 0 5 1\r\n",
		"half a value":             "VALUE key 0 5 1\r\nhal",
		"no line end":              "VALUE key 0 5 1\r\nhalf!",
		"no END":                   "VALUE key 0 5 1\r\nhalf!\r\n",
		"half an END":              "VALUE key 0 5 1\r\nhalf!\r\nEN",
		"a size that is too large": "VALUE key 0 500 1\r\nhalf!\r\nEND\r\n",
		"a size that is too small": "VALUE key 0 3 1\r\nhalf!\r\nEND\r\n",
		"a size that is negative":  "VALUE key 0 -1 1\r\nhalf!\r\nEND\r\n",
		"a size that is no number": "VALUE key 0 x 1\r\nhalf!\r\nEND\r\n",
		"a size beyond all reason": "VALUE key 0 99999999999 1\r\nhalf!\r\nEND\r\n",
		"a size that wraps to 5":   "VALUE key 0 18446744073709551621 1\r\nhalf!\r\nEND\r\n",
		"garbage after the value":  "VALUE key 0 5 1\r\nhalf!\r\nhalf!\r\n",
		"an error after the value": "VALUE key 0 5 1\r\nhalf!\r\nSERVER_ERROR half!\r\n",
	} {
		for by, get := range map[string]func(db *memcacheddriver.MemcachedDB) ([]byte, error){
			"Get": func(db *memcacheddriver.MemcachedDB) ([]byte, error) { return db.Get(t.Context(), "key") },
			"MGet": func(db *memcacheddriver.MemcachedDB) ([]byte, error) {
				all, err := db.MGet(t.Context(), []string{"other", "key"})
				if strings.Contains(name, "after the value") || strings.Contains(name, "END") {
					return nil, err // a value that was complete may be told
				}
				return all[1], err
			},
		} {
			db := openAnswered(t, func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
				c.Say(reply)
				c.Close()
			})
			value, err := get(db)
			assert.Nil(t, value, "%s: %s", by, name)
			require.Error(t, err, "%s: %s", by, name)
			assert.NotErrorIs(t, err, kv.ErrNotFound, "%s: %s", by, name)
			if name != "an error after the value" {
				assert.True(t, errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, memcacheddriver.ErrProtocol), "%s: %s: %v", by, name, err)
			}
			assert.NotContains(t, strings.ReplaceAll(err.Error(), "SERVER_ERROR half!", ""), "half!", "%s: %s", by, name)
			assert.Zero(t, drivertest.Stat(t, db).Idle, "%s: %s: the connection is used on", by, name)
		}
	}
}

func TestTheCallAfterGarbageGetsItsOwnReply(t *testing.T) {
	t.Parallel()
	db := openAnswered(t, func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
		if c.N == 1 {
			c.Say("garbage\r\n" + memcachedtest.Value("key", "late!") + "END\r\n")
			return
		}
		c.Say("VALUE key 0 5 1\r\nright\r\nEND\r\n")
	})
	_, err := db.Get(t.Context(), "key")
	require.ErrorIs(t, err, memcacheddriver.ErrProtocol)
	for range 3 {
		got, err := db.Get(t.Context(), "key")
		require.NoError(t, err)
		assert.Equal(t, "right", string(got))
	}
	assert.EqualValues(t, 2, drivertest.Dials(db))
}

// The cause of a cancellation may be the failure of another call. It is not what
// this one failed of: the text alone tells it.
func TestTheCauseOfACancellationBlamesNoServer(t *testing.T) {
	t.Parallel()
	failure := openAnswered(t, memcachedtest.HangUp).Do(t.Context(), func(c *memcache.Client) error {
		_, err := c.Get("k")
		return err
	})
	require.Error(t, failure)
	for _, cause := range []error{failure, kv.ErrNotFound, kv.ErrConflict} {
		for _, when := range []string{"before the call", "in the call"} {
			asked := make(chan struct{}, 64)
			db := openAnswered(t, func(c *memcachedtest.FakeConn, _ memcachedtest.Command) { asked <- struct{}{}; c.Hang() })
			for _, call := range drivertest.Calls {
				if call.Name == "Ping" && when == "in the call" {
					continue // its command is answered
				}
				ctx, cancel := context.WithCancelCause(t.Context())
				if when == "before the call" {
					cancel(cause)
				} else {
					go func() { <-asked; cancel(cause) }()
				}
				err := call.Run(ctx, db, "k")
				cancel(nil)
				assert.ErrorIs(t, err, context.Canceled, "%s, %s", call.Name, when)
				assert.NotErrorIs(t, err, cause, "%s, %s", call.Name, when)
				assert.ErrorContains(t, err, cause.Error(), "%s, %s", call.Name, when)
				if call.Name != "Do" { // errors inside of it are as they are
					assert.Empty(t, drivertest.RequireOpError(t, err).Server, "%s, %s", call.Name, when)
				}
			}
		}
	}
}

// A call that could not begin served none of its keys.
func TestACallThatDoesNotBeginNamesItsKeys(t *testing.T) {
	t.Parallel()
	_, addrs := drivertest.StartServers(t, 2)
	db := drivertest.Open(t, strings.Join(addrs, ","), memcacheddriver.WithTTLQuery())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, call := range drivertest.Calls {
		want := []string{"k", drivertest.Other}[:call.Keys]
		err := call.Run(ctx, db, "k")
		require.ErrorIs(t, err, context.Canceled, call.Name)
		assert.ElementsMatch(t, want, drivertest.RequireOpError(t, err).Keys, call.Name)
	}
}
