package pipeline

import (
	"bufio"
	"context"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)


// listen hands each connection to serve, with its number, and returns its
// address and pool.
func listen(t *testing.T, serve func(n int, r *bufio.Reader, c net.Conn)) *pool.Pool {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var mu sync.Mutex
	var open []net.Conn
	var all sync.WaitGroup
	all.Go(func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			all.Go(func() {
				defer c.Close()
				serve(n, bufio.NewReader(c), c)
			})
		}
	})
	p := newPool(l.Addr().String(), 3)
	t.Cleanup(func() {
		p.Close()
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return p
}

// newPool makes a pool for a server that is down after limit failures in a row,
// and then for longer than any test.
func newPool(addr string, limit int) *pool.Pool {
	return pool.New(pool.Config{
		Addrs:        []pool.Addr{{Net: "tcp", Address: addr}},
		DialTimeout:  10 * time.Second,
		WriteTimeout: 10 * time.Second,
		ReadTimeout:  10 * time.Second,
		MaxIdle:      4,
		FailureLimit: limit,
		RetryAfter:   time.Minute,
		Infof:        func(string, ...any) {},
		Warnf:        func(string, ...any) {},
	})
}

// use runs fn on a connection.
func use(t *testing.T, p *pool.Pool, fn func(*pool.Conn) error) error {
	t.Helper()
	return p.Do(context.Background(), func(l *pool.Lane) error { return fn(l.Conn(p.Servers[0])) })
}

func idle(p *pool.Pool) int { return p.Servers[0].Stats().Idle }

// command is one that a client sent.
type command struct {
	fields []string
	data   []byte
}

// next reads a command and its data block.
func next(r *bufio.Reader) (cmd command, err error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return cmd, err
	}
	cmd.fields = strings.Fields(line)
	size := ""
	switch cmd.fields[0] {
	case "set":
		size = cmd.fields[4]
	case "ms":
		size = cmd.fields[2]
	default:
		return cmd, nil
	}
	n, err := strconv.Atoi(size)
	if err != nil {
		return cmd, err
	}
	cmd.data = make([]byte, n+len("\r\n"))
	_, err = io.ReadFull(r, cmd.data)
	cmd.data = cmd.data[:n]
	return cmd, err
}

// answers serves a connection with what reply says to each command; a closed
// connection ends it.
func answers(reply func(cmd command) string) func(int, *bufio.Reader, net.Conn) {
	return func(_ int, r *bufio.Reader, c net.Conn) {
		for {
			cmd, err := next(r)
			if err != nil {
				return
			}
			if _, err := io.WriteString(c, reply(cmd)); err != nil {
				return
			}
		}
	}
}

// says serves every connection with the same bytes behind its first command.
func says(reply string) func(int, *bufio.Reader, net.Conn) {
	return func(_ int, r *bufio.Reader, c net.Conn) {
		if _, err := next(r); err != nil {
			return
		}
		if _, err := io.WriteString(c, reply); err != nil {
			return
		}
		c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, r)
	}
}

func value(key, v string) string {
	return "VALUE " + key + " 0 " + strconv.Itoa(len(v)) + "\r\n" + v + "\r\n"
}
