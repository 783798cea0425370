package pool_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// swallow is a handler that answers nothing, and goes on.
func swallow(*memcachedtest.FakeConn, memcachedtest.Command) {}

func sayAndHangUp(text string) memcachedtest.Handler {
	return func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
		c.Say(text)
		c.Close()
	}
}

// metaCommands counts those that came in, the question for meta aside.
func metaCommands(f *memcachedtest.Fake) int {
	return f.Count("mg") + f.Count("ms") + f.Count("md") + f.Count("ma") + f.Count("me")
}

// What cannot take the question may serve all else.
func TestMetaIsUsedWhereTheServerSpeaksIt(t *testing.T) {
	t.Parallel()
	say := memcachedtest.Say
	for name, c := range map[string]struct {
		script memcachedtest.Script
		meta   bool
		dials  int // for one connection
	}{
		"memcached 1.6":                 {nil, true, 1},
		"memcached 1.5":                 {memcachedtest.Script{"version": say("VERSION 1.5.22\r\n"), "mn": say("ERROR\r\n")}, false, 1},
		"another dialect":               {memcachedtest.Script{"version": say("VERSION 1.6.9\r\n")}, false, 1},
		"the first of ours":             {memcachedtest.Script{"version": say("VERSION 1.6.10\r\n")}, true, 1},
		"a proxy without a version":     {memcachedtest.Script{"version": say("ERROR\r\n")}, false, 2},
		"a proxy without a server":      {memcachedtest.Script{"version": say("SERVER_ERROR Connection refused\r\n")}, false, 2},
		"a proxy that explains itself":  {memcachedtest.Script{"mn": say("CLIENT_ERROR unknown command\r\n")}, false, 2},
		"one that then hangs up":        {memcachedtest.Script{"mn": sayAndHangUp("CLIENT_ERROR malformed request\r\n")}, false, 2}, // as mcrouter
		"a proxy that hangs up":         {memcachedtest.Script{"mn": memcachedtest.HangUp}, false, 3},                               // as twemproxy
		"a proxy that swallows it":      {memcachedtest.Script{"mn": swallow}, false, 2},
		"a proxy that swallows both":    {memcachedtest.Script{"version": swallow, "mn": swallow}, false, 2},
		"a proxy that hangs up at once": {memcachedtest.Script{"version": memcachedtest.HangUp}, false, 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := memcachedtest.StartFake(t, c.script)
			db := drivertest.Open(t, f.Addr(), memcacheddriver.WithTTLQuery(), memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
			for range 2 {
				_, err := db.Exists(t.Context(), "a", "b")
				require.NoError(t, err)
			}
			assert.Equal(t, c.meta, f.Count("mg") > 0)
			assert.LessOrEqual(t, f.Count("mn"), 2, "asked again")
			assert.Equal(t, []memcacheddriver.ServerStats{{
				Addr: f.Addr(), State: memcacheddriver.ServerUp, Idle: 1, Dials: uint64(c.dials),
			}}, drivertest.ConnStats(db), "no answer is no failure")

			for _, call := range drivertest.Calls {
				if call.Name == "Ping" {
					continue // asks for the version, which not all of them tell
				}
				err := call.Run(t.Context(), db, "k")
				if call.Name == "TTL" && !c.meta {
					assert.ErrorIs(t, err, kv.ErrNotSupported)
				} else {
					assert.NoError(t, err, call.Name)
				}
			}
			assert.Equal(t, c.meta, metaCommands(f) > 0)
		})
	}
}

// Calls that are the first together must not take a proxy for a server that is
// down, because each of them sees it close a connection.
func TestMetaIsAskedForByManyCallsTogether(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"mn": memcachedtest.HangUp})
	db := drivertest.Open(t, f.Addr(), memcacheddriver.WithServerFailureLimit(1, drivertest.Never))
	start := make(chan struct{})
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			<-start
			_, err := db.Exists(t.Context(), "a", "b")
			assert.NoError(t, err)
		})
	}
	close(start)
	all.Wait()
	assert.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
	assert.Zero(t, metaCommands(f))
}

// What no server says in its right mind, or says in place of an answer, fails the
// dial and is no verdict: the next connection asks anew.
func TestMetaAnswersThatAreNone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script memcachedtest.Script
		is     error
		says   string
	}{
		"Redis":            {memcachedtest.Script{"*": memcachedtest.Say("-ERR unknown command\r\n")}, memcacheddriver.ErrProtocol, "is this a memcached?"},
		"HTTP":             {memcachedtest.Script{"*": memcachedtest.Say("HTTP/1.1 400 Bad Request\r\n")}, memcacheddriver.ErrProtocol, "is this a memcached?"},
		"a server is full": {memcachedtest.Script{"version": sayAndHangUp("ERROR Too many open connections\r\n")}, memcacheddriver.ErrTooManyConns, "Too many open connections"},
		"a line too many":  {memcachedtest.Script{"mn": memcachedtest.Say("MN\r\nMN\r\n")}, memcacheddriver.ErrProtocol, "is this a memcached?"},
		"dead":             {memcachedtest.Script{"*": memcachedtest.HangUp}, io.ErrUnexpectedEOF, "closed the connection"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := memcachedtest.StartFake(t, c.script)
			db := drivertest.Open(t, f.Addr(), memcacheddriver.WithTTLQuery(), memcacheddriver.WithServerFailureLimit(0, 0))
			_, err := db.Exists(t.Context(), "k")
			require.ErrorContains(t, err, c.says)
			require.ErrorIs(t, err, c.is)
			assert.Equal(t, f.Addr(), drivertest.RequireOpError(t, err).Server)
			drivertest.RequireIdle(t, db)
			assert.Zero(t, drivertest.Stat(t, db).Idle)

			f.SetScript(nil)
			memcachedtest.Eventually(t, func() bool { // a full server is not tried again at once
				_, err = db.TTL(t.Context(), "k")
				return !errors.Is(err, memcacheddriver.ErrTooManyConns)
			}, "%s: the server is tried again", name)
			require.Equal(t, kv.ErrNotFound, err, "the server is well, and speaks meta")
		})
	}
}

// A server that dies at the question is asked once more.
func TestMetaIsAskedForOnceMoreWhereTheServerDies(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"mn": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		if c.N == 1 {
			c.Close()
			return
		}
		c.Default(cmd)
	}})
	db := drivertest.Open(t, f.Addr(), memcacheddriver.WithTTLQuery())
	_, err := db.TTL(t.Context(), "k")
	require.Equal(t, kv.ErrNotFound, err)
	require.EqualValues(t, 2, drivertest.Dials(db))
}

// The question leaves half of the dial timeout to connect anew.
func TestMetaQuestionLeavesTimeToConnectAnew(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"mn": swallow})
	db := drivertest.Open(t, f.Addr(), driver.WithDialTimeout(2*time.Second), driver.WithReadTimeout(drivertest.Never))
	require.NoError(t, db.Set(t.Context(), "k", nil, 0))
	require.EqualValues(t, 2, drivertest.Dials(db))
}

// A server that answered before and is silent is frozen, or another one has taken
// its place: the first dial fails, and those that follow do without the question.
func TestMetaSilenceOfAServerThatAnsweredFailsOneDial(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]driver.Option{
		"by the read timeout": {driver.WithReadTimeout(300 * time.Millisecond)},
		"by the dial timeout": {driver.WithDialTimeout(time.Second), driver.WithReadTimeout(drivertest.Never)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := memcachedtest.StartFake(t, nil)
			db := drivertest.Open(t, f.Addr(), append(opts, memcacheddriver.WithServerFailureLimit(0, 0))...)
			memcachedtest.Eventually(t, func() bool { return db.Ping(t.Context()) == nil }, "the server answers")
			f.Close()
			memcachedtest.StartFakeOn(t, f.Addr(), memcachedtest.Script{"mn": swallow})
			time.Sleep(rest)
			before := drivertest.Stat(t, db).DialErrors
			err := db.Set(t.Context(), "k", nil, 0)
			require.ErrorContains(t, err, name[len("by the "):]+" of")
			require.Equal(t, before+1, drivertest.Stat(t, db).DialErrors)
			memcachedtest.Eventually(t, func() bool { return db.Set(t.Context(), "k", nil, 0) == nil }, "a call is served")
		})
	}
}

// Callers who cannot wait for an answer that never comes are served all the same.
func TestMetaIsNotAskedForByImpatientCallersForEver(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"mn": swallow})
	db := drivertest.Open(t, f.Addr())
	memcachedtest.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		return db.Set(ctx, "k", nil, 0) == nil
	}, "a call is served")
}

// An upgrade is noticed with the next connection.
func TestMetaIsUsedAfterAnUpgrade(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{
		"version": memcachedtest.Say("VERSION 1.5.22\r\n"), "mn": memcachedtest.Say("ERROR\r\n"),
	})
	db := drivertest.Open(t, f.Addr(), memcacheddriver.WithTTLQuery())
	_, err := db.TTL(t.Context(), "k")
	require.ErrorIs(t, err, kv.ErrNotSupported)
	f.Close()
	memcachedtest.StartFakeOn(t, f.Addr(), nil)
	time.Sleep(rest)
	_, err = db.TTL(t.Context(), "k")
	require.Equal(t, kv.ErrNotFound, err)
}

// A silent server costs each call the driver's timeouts, which are not the
// caller's deadline.
func TestMetaQuestionToASilentServerTimesOut(t *testing.T) {
	t.Parallel()
	const timeout = 20 * time.Millisecond
	f := memcachedtest.StartFake(t, memcachedtest.Script{"*": memcachedtest.Hang})
	db := drivertest.Open(t, f.Addr(), memcacheddriver.WithTimeout(timeout), memcacheddriver.WithTTLQuery(), memcacheddriver.WithServerFailureLimit(0, 0))
	for _, call := range drivertest.Calls {
		if call.Name == "TTL" {
			continue // sends nothing on a connection that was not asked
		}
		start := time.Now()
		err := call.Run(t.Context(), db, "k")
		require.ErrorContains(t, err, "read timeout of "+timeout.String(), call.Name)
		assert.GreaterOrEqual(t, time.Since(start), 2*timeout, "%s: one for the question, one for the call", call.Name)
		assert.NotErrorIs(t, err, context.DeadlineExceeded, call.Name)
		var timedOut net.Error
		assert.True(t, errors.As(err, &timedOut) && timedOut.Timeout(), call.Name)
		if call.Name != "Do" {
			assert.Equal(t, f.Addr(), drivertest.RequireOpError(t, err).Server, call.Name)
		}
	}
	s := drivertest.Stat(t, db)
	assert.Zero(t, s.DialErrors, "only a server that has answered before fails the dial by silence")
	assert.EqualValues(t, len(drivertest.Calls)-1, s.Timeouts)
	assert.Equal(t, 2*s.Timeouts, s.Dials)
}

// A full server refuses connections with an error line, which is no answer to
// the question.
func TestAFullServerSpeaksMetaWhenThereIsRoomAgain(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t, "-c", "100")
	db := drivertest.Open(t, server.Addr(), memcacheddriver.WithTTLQuery(), memcacheddriver.WithServerFailureLimit(0, 0))
	ctx := t.Context()
	var others []net.Conn
	for range 200 {
		c, err := net.Dial("tcp", server.Addr())
		require.NoError(t, err)
		others = append(others, c)
	}
	memcachedtest.Eventually(t, func() bool {
		_, err := db.Exists(ctx, "k")
		return err != nil
	}, "the server refuses connections")
	for _, c := range others {
		c.Close()
	}
	memcachedtest.Eventually(t, func() bool { return db.Set(ctx, "k", []byte("v"), time.Minute) == nil }, "there is room")
	require.NoError(t, db.CompareAndSwap(ctx, "k", func([]byte) ([]byte, error) { return []byte("w"), nil }))
	ttl, err := db.TTL(ctx, "k")
	require.NoError(t, err)
	assert.Greater(t, ttl, 30*time.Second)
}
