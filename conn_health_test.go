package memcacheddriver_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// connMoody is a server that answers, hangs or closes the connection.
type connMoody struct {
	*connServer
	mood     atomic.Int32
	requests atomic.Int32 // commands that came in
	conns    atomic.Int32
	deaf     atomic.Int32 // the first so many connections hang, whatever the mood
}

const (
	moodAnswers int32 = iota
	moodHangs
	moodHangsUp // closes the connection
)

func connServeMoody(t testing.TB) *connMoody {
	m := &connMoody{}
	m.connServer = connServe(t, func(c net.Conn, r *bufio.Reader) {
		n := m.conns.Add(1)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			m.requests.Add(1)
			mood := m.mood.Load()
			if n <= m.deaf.Load() {
				mood = moodHangs
			}
			switch mood {
			case moodAnswers:
				fmt.Fprint(c, connMissReply(line))
			case moodHangs:
				connHang(c, r)
				return
			case moodHangsUp:
				return
			}
		}
	})
	return m
}

// connDown makes calls fail until the driver's only server is down.
func connDown(t testing.TB, db *memcacheddriver.MemcachedDB, limit int) {
	t.Helper()
	for range limit {
		_, err := db.Get(context.Background(), "k")
		require.Error(t, err)
		require.NotErrorIs(t, err, memcacheddriver.ErrServerDown)
	}
	require.Equal(t, memcacheddriver.ServerDown, connStats(t, db).State)
}

func TestHealthDownAndUpAgain(t *testing.T) {
	t.Parallel()
	for _, byDSN := range []bool{false, true} {
		t.Run(fmt.Sprintf("by DSN %v", byDSN), func(t *testing.T) {
			t.Parallel()
			server := memcachedtest.Start(t)
			logger := newConnLog()
			opts := []driver.Option{driver.WithLogger(logger), memcacheddriver.WithTTLQuery()}
			dsn := server.Addr()
			if byDSN {
				dsn += "?server_failure_limit=4&server_retry_timeout=1s"
			} else {
				opts = append(opts, memcacheddriver.WithServerFailureLimit(4, time.Second))
			}
			db := connOpen(t, dsn, opts...)
			require.NoError(t, db.Ping(context.Background()))
			server.Kill()
			time.Sleep(connRest)
			for range 4 {
				_, err := db.Get(context.Background(), "k")
				require.ErrorIs(t, err, syscall.ECONNREFUSED)
				require.NotErrorIs(t, err, memcacheddriver.ErrServerDown)
			}
			downSince := time.Now()

			before := connStats(t, db)
			require.Equal(t, memcacheddriver.ServerDown, before.State)
			require.Equal(t, uint64(4), before.DialErrors)
			for _, call := range connCalls() {
				err := call.run(context.Background(), db)
				if time.Since(downSince) > 900*time.Millisecond {
					break // a machine so slow that a probe is due
				}
				require.ErrorIs(t, err, memcacheddriver.ErrServerDown, call.name)
				require.ErrorIs(t, err, syscall.ECONNREFUSED, call.name)
				require.ErrorContains(t, err, server.Addr(), call.name)
				require.Equal(t, before.Dials, connStats(t, db).Dials, "%s dialled", call.name)
			}
			_, err := db.Client().Get("k")
			require.Error(t, err)

			server.Restart()
			connPoll(t, "a probe brings it back", func() bool {
				_, err := db.Get(context.Background(), "k")
				if err != kv.ErrNotFound {
					require.ErrorIs(t, err, memcacheddriver.ErrServerDown)
				}
				return err == kv.ErrNotFound
			})
			require.GreaterOrEqual(t, time.Since(downSince), 990*time.Millisecond, "it was probed too early")
			require.Equal(t, memcacheddriver.ServerUp, connStats(t, db).State)
			for _, call := range connCalls() {
				if err := call.run(context.Background(), db); err != kv.ErrNotFound {
					require.NoError(t, err, call.name)
				}
			}
			require.Len(t, logger.with("is down", server.Addr()), 1)
			require.Len(t, logger.with("is up again", server.Addr()), 1)
			require.Len(t, logger.with(""), 2, "nothing else is logged")
			connRequireIdle(t, db)
		})
	}
}

// By default it takes three failures, and a success between them starts anew.
func TestHealthCountsFailuresInARow(t *testing.T) {
	t.Parallel()
	server := connServeMoody(t)
	db := connOpen(t, server.addr())
	get := func() error { _, err := db.Get(context.Background(), "k"); return err }
	for range 3 {
		server.mood.Store(moodHangsUp)
		for range 2 {
			require.ErrorIs(t, get(), io.ErrUnexpectedEOF)
		}
		require.Equal(t, memcacheddriver.ServerUp, connStats(t, db).State)
		server.mood.Store(moodAnswers)
		require.Equal(t, kv.ErrNotFound, get())
	}
	server.mood.Store(moodHangsUp)
	connDown(t, db, 3)
	require.ErrorIs(t, get(), memcacheddriver.ErrServerDown)
	require.ErrorIs(t, get(), io.ErrUnexpectedEOF)
}

// A timeout counts, of a call and of a native one.
func TestHealthCountsTimeouts(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	db := connOpen(t, server.Addr(), memcacheddriver.WithTimeout(20*time.Millisecond), memcacheddriver.WithServerFailureLimit(2, never))
	server.Stop()
	_, err := db.Get(context.Background(), "k")
	require.Error(t, err)
	_, err = db.Client().Get("k")
	require.Error(t, err)
	s := connStats(t, db)
	require.Equal(t, memcacheddriver.ServerDown, s.State)
	require.Equal(t, uint64(2), s.Timeouts)
	require.Zero(t, s.DialErrors)
	require.Zero(t, s.Cancelled)
	connRequireIdle(t, db)
}

func TestHealthCallersDeadlinesDoNotCount(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	db := connOpen(t, server.Addr(), memcacheddriver.WithServerFailureLimit(1, never), memcacheddriver.WithTimeout(never), memcacheddriver.WithTTLQuery())
	_, err := db.Exists(context.Background(), "k")
	require.NoError(t, err)
	server.Stop()
	n := 0
	for range 5 {
		for i, call := range connCalls() {
			end := connEnds[i%len(connEnds)]
			ctx, stop := end.make(time.Millisecond)
			require.ErrorIs(t, call.run(ctx, db), end.err, call.name)
			stop()
			n++
		}
	}
	s := connStats(t, db)
	require.Equal(t, memcacheddriver.ServerUp, s.State)
	require.Zero(t, s.Timeouts)
	require.Zero(t, s.DialErrors)
	require.LessOrEqual(t, s.Cancelled, uint64(n))
	require.GreaterOrEqual(t, s.Cancelled, uint64(n/2)) // some end before they reach it
	server.Cont()
	require.NoError(t, db.Ping(context.Background()))
}

func TestHealthLimit0IsOff(t *testing.T) {
	t.Parallel()
	for _, open := range []func(addr string) *memcacheddriver.MemcachedDB{
		func(addr string) *memcacheddriver.MemcachedDB {
			return connOpen(t, addr, memcacheddriver.WithServerFailureLimit(0, 0))
		},
		func(addr string) *memcacheddriver.MemcachedDB { return connOpen(t, addr+"?server_failure_limit=0") },
	} {
		server := memcachedtest.Start(t)
		db := open(server.Addr())
		server.Kill()
		time.Sleep(connRest)
		for range 10 {
			_, err := db.Get(context.Background(), "k")
			require.ErrorIs(t, err, syscall.ECONNREFUSED)
			require.NotErrorIs(t, err, memcacheddriver.ErrServerDown)
		}
		require.Equal(t, uint64(10), connStats(t, db).DialErrors)
		server.Restart()
		require.NoError(t, db.Ping(context.Background()))
	}
}

// Asking for the meta protocol makes some proxies close the connection, which is
// no failure of theirs.
func TestHealthAskingForMetaIsNoFailure(t *testing.T) {
	t.Parallel()
	server := connServe(t, func(c net.Conn, r *bufio.Reader) {
		for {
			line, err := r.ReadString('\n')
			if err != nil || strings.HasPrefix(line, "m") {
				return
			}
			fmt.Fprint(c, connMissReply(line))
		}
	})
	db := connOpen(t, server.addr())
	var calls sync.WaitGroup
	for range 16 {
		calls.Go(func() {
			if _, err := db.Exists(context.Background(), "k"); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	require.Equal(t, memcacheddriver.ServerUp, connStats(t, db).State)
}
