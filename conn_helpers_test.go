package memcacheddriver_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/require"
	"github.com/xraph/go-utils/log"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

// What the tests of the connection layer (conn_*_test.go) share.

// never is a timeout that a test cannot wait for: what ends sooner was ended by
// something else.
const never = time.Minute

func connOpen(t testing.TB, dsn string, opts ...driver.Option) *memcacheddriver.MemcachedDB {
	t.Helper()
	db := memcacheddriver.New()
	require.NoError(t, db.Open(context.Background(), dsn, opts...))
	t.Cleanup(func() { db.Close() })
	return db
}

// connPoll waits until ok.
func connPoll(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// connRest is longer than the moment within which a connection is used again
// without a look at it.
const connRest = 10 * time.Millisecond

// connStats returns the statistics of a driver's only server.
func connStats(t testing.TB, db *memcacheddriver.MemcachedDB) memcacheddriver.ServerStats {
	t.Helper()
	stats := db.Stats()
	require.Len(t, stats, 1)
	return stats[0]
}

// connRequireIdle fails if a socket is lost: every one must be back in the pool.
func connRequireIdle(t testing.TB, db *memcacheddriver.MemcachedDB) {
	t.Helper()
	for _, s := range db.Stats() {
		require.Zero(t, s.InUse, "sockets of %s that no call uses are counted as used: %+v", s.Addr, s)
	}
}

// connFill leaves n idle connections on the driver's only server.
func connFill(t testing.TB, db *memcacheddriver.MemcachedDB, n int) {
	t.Helper()
	var all, calls sync.WaitGroup
	all.Add(n)
	for range n {
		calls.Go(func() {
			err := db.Do(context.Background(), func(c *memcache.Client) error {
				_, err := c.Get("fill")
				all.Done()
				all.Wait() // hold the socket until all have one
				return err
			})
			if err != memcache.ErrCacheMiss {
				t.Errorf("fill: %v", err)
			}
		})
	}
	calls.Wait()
	require.Equal(t, n, connStats(t, db).Idle)
}

// connCall is a call of the driver's API.
type connCall struct {
	name string
	run  func(ctx context.Context, db *memcacheddriver.MemcachedDB) error
}

// connCalls are calls of every kind that talks to a server; the driver must be
// opened with WithTTLQuery. A miss is no error here.
func connCalls() []connCall {
	value := []byte("value")
	return []connCall{
		{"Get", func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.Get(ctx, "k")
			return err
		}},
		{"Set", func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			return db.Set(ctx, "k", value, 0)
		}},
		{"SetNX", func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.SetNX(ctx, "k", value, 0)
			return err
		}},
		{"SetXX", func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.SetXX(ctx, "k", value, 0)
			return err
		}},
		{"Delete of one", func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.Delete(ctx, "other")
			return err
		}},
		{"Delete of two", func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.Delete(ctx, "other", "another")
			return err
		}},
		{"Exists", func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.Exists(ctx, "k")
			return err
		}},
		{"MGet of one", func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.MGet(ctx, []string{"k"})
			return err
		}},
		{"MGet of two", func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.MGet(ctx, []string{"k", "l"})
			return err
		}},
		{"MSet of one", func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			return db.MSet(ctx, map[string][]byte{"k": value}, 0)
		}},
		{"MSet of two", func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			return db.MSet(ctx, map[string][]byte{"k": value, "l": value}, 0)
		}},
		{"Expire", func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			return db.Expire(ctx, "k", time.Hour)
		}},
		{"TTL", func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.TTL(ctx, "k")
			return err
		}},
		{"CompareAndSwap", func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			return db.CompareAndSwap(ctx, "k", func([]byte) ([]byte, error) { return value, nil })
		}},
		{"Ping", func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			return db.Ping(ctx)
		}},
		{"Do", func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			return db.Do(ctx, func(c *memcache.Client) error {
				_, err := c.Increment("n", 1)
				if err == memcache.ErrCacheMiss {
					return nil
				}
				return err
			})
		}},
	}
}

// connServer is a server that does what a test says.
type connServer struct {
	net.Listener
	mu       sync.Mutex
	conns    map[net.Conn]struct{}
	accepted int
	received strings.Builder
	running  sync.WaitGroup
}

// connServe starts a server on a port of its own that runs serve for each
// connection, which it closes behind it.
func connServe(t testing.TB, serve func(c net.Conn, r *bufio.Reader)) *connServer {
	t.Helper()
	return connServeOn(t, "127.0.0.1:0", serve)
}

func connServeOn(t testing.TB, addr string, serve func(c net.Conn, r *bufio.Reader)) *connServer {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	s := &connServer{Listener: ln, conns: make(map[net.Conn]struct{})}
	s.running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.accepted++
			s.conns[c] = struct{}{}
			s.mu.Unlock()
			s.running.Go(func() {
				defer c.Close()
				serve(c, bufio.NewReader(connTap{c, s}))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		s.mu.Lock()
		for c := range s.conns {
			c.Close()
		}
		s.mu.Unlock()
		s.running.Wait()
	})
	return s
}

// connTap records what the server reads.
type connTap struct {
	net.Conn
	s *connServer
}

func (t connTap) Read(p []byte) (int, error) {
	n, err := t.Conn.Read(p)
	t.s.mu.Lock()
	t.s.received.Write(p[:n])
	t.s.mu.Unlock()
	return n, err
}

func (s *connServer) addr() string { return s.Addr().String() }

// got returns how many connections there were and all that came in on them.
func (s *connServer) got() (accepted int, received string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted, s.received.String()
}

// connHang reads all that comes and answers nothing.
func connHang(_ net.Conn, r *bufio.Reader) {
	for {
		if _, err := r.ReadByte(); err != nil {
			return
		}
	}
}

// connMiss answers every command of one line with what an empty server does.
func connMiss(c net.Conn, r *bufio.Reader) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		fmt.Fprint(c, connMissReply(line))
	}
}

func connMissReply(line string) string {
	switch command, _, _ := strings.Cut(strings.TrimSpace(line), " "); command {
	case "get", "gets", "gat":
		return "END\r\n"
	case "mg":
		return "EN\r\n"
	case "mn":
		return "MN\r\n"
	case "version":
		return "VERSION 1.6.18\r\n"
	case "incr", "decr", "delete", "touch":
		return "NOT_FOUND\r\n"
	}
	return "ERROR\r\n"
}

// connBlackHole returns an address on which connecting neither succeeds nor
// fails: a listener whose queue is full.
func connBlackHole(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	raw, err := ln.(*net.TCPListener).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) { err = syscall.Listen(int(fd), 0) }))
	require.NoError(t, err)
	for range 100 {
		c, err := net.DialTimeout("tcp", ln.Addr().String(), 200*time.Millisecond)
		if err != nil {
			return ln.Addr().String()
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the queue of a listener does not fill up")
	return ""
}

// connLog records what is logged.
type connLog struct {
	log.Logger
	mu    sync.Mutex
	lines []string
}

func newConnLog() *connLog { return &connLog{Logger: log.NewNoopLogger()} }

func (l *connLog) Infof(format string, args ...any) { l.add("info", format, args) }
func (l *connLog) Warnf(format string, args ...any) { l.add("warn", format, args) }

func (l *connLog) add(level, format string, args []any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, level+": "+fmt.Sprintf(format, args...))
}

// with returns the lines that have all of parts in them.
func (l *connLog) with(parts ...string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		all := true
		for _, p := range parts {
			all = all && strings.Contains(line, p)
		}
		if all {
			found = append(found, line)
		}
	}
	return found
}
