package pipeline

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// open returns a pool for one server, which is closed when the test ends.
func open(t testing.TB, addr string) *pool.Pool {
	t.Helper()
	p := pool.New(pool.Config{
		Servers:      []pool.Entry{{Addr: pool.Addr{Net: "tcp", Address: addr}, Weight: 1}},
		DialTimeout:  10 * time.Second,
		WriteTimeout: 10 * time.Second,
		ReadTimeout:  10 * time.Second,
		MaxOpen:      64,
		MaxIdle:      4,
		FailureLimit: 3,
		RetryAfter:   time.Minute,
		Infof:        func(string, ...any) {},
		Warnf:        func(string, ...any) {},
	})
	t.Cleanup(p.Close)
	return p
}

// fake returns a pool for a scripted server.
func fake(t testing.TB, script memcachedtest.Script) *pool.Pool {
	t.Helper()
	return open(t, memcachedtest.StartFake(t, script).Addr())
}

// classic makes script that of a server without the meta protocol.
func classic(script memcachedtest.Script) memcachedtest.Script {
	script["version"] = memcachedtest.Say("VERSION 1.5.22\r\n")
	script["mn"] = memcachedtest.Say("ERROR\r\n")
	return script
}

// ends answers the first command that is not the question for meta with reply,
// and then ends what it sends.
func ends(reply string) memcachedtest.Script {
	return memcachedtest.Script{
		"version": (*memcachedtest.FakeConn).Default,
		"mn":      (*memcachedtest.FakeConn).Default,
		"*": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
			c.Say(reply)
			c.Conn.(*net.TCPConn).CloseWrite()
			c.Hang()
		},
	}
}

// use runs fn on a connection.
func use(t testing.TB, p *pool.Pool, fn func(*pool.Conn) error) error {
	t.Helper()
	return p.Do(context.Background(), func(l *pool.Lane) error { return fn(l.Conn(p.List().Servers[0])) })
}

func idle(p *pool.Pool) int { return p.List().Servers[0].Stats().Idle }

func dials(p *pool.Pool) int { return int(p.List().Servers[0].Stats().Dials) }
