package link_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/link"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// links are n links to the only server of a pool.
type links struct {
	*link.Links
	pool   *pool.Pool
	server *pool.Server
}

func (l *links) close() {
	l.pool.Close()
	l.Close()
}

// open returns n links that take every call, and that the end of the test closes. Their
// timeouts are such as no test waits for unless edit sets others.
func open(t testing.TB, n int, addr string, edit ...func(*pool.Config)) *links {
	t.Helper()
	network := "tcp"
	if strings.HasPrefix(addr, "/") {
		network = "unix"
	}
	c := pool.Config{
		Servers:      []pool.Entry{{Addr: pool.Addr{Net: network, Address: addr}, Weight: 1}},
		DialTimeout:  drivertest.Never,
		WriteTimeout: drivertest.Never,
		ReadTimeout:  drivertest.Never,
		MaxOpen:      64,
		MaxIdle:      4,
		FailureLimit: 2,
		RetryAfter:   drivertest.Never,
		Infof:        func(string, ...any) {},
		Warnf:        func(string, ...any) {},
	}
	for _, e := range edit {
		e(&c)
	}
	p := pool.New(c)
	l := &links{link.New(p.List().Servers[0], n, 0), p, p.List().Servers[0]}
	t.Cleanup(l.close)
	return l
}

// impatient gives up a silent server soon.
func impatient(c *pool.Config) {
	c.WriteTimeout, c.ReadTimeout = 200*time.Millisecond, 200*time.Millisecond
}

// classic makes script that of a server without the meta protocol.
func classic(script memcachedtest.Script) memcachedtest.Script {
	script["version"] = memcachedtest.Say("VERSION 1.5.22\r\n")
	script["mn"] = memcachedtest.Say("ERROR\r\n")
	return script
}

// slow answers the question for meta as the default does, but not before ready is
// closed: what is asked for until then waits in the queue.
func slow(ready <-chan struct{}, script memcachedtest.Script) memcachedtest.Script {
	question := script["version"]
	if question == nil {
		question = (*memcachedtest.FakeConn).Default
	}
	script["version"] = func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		if c.Wait(ready) {
			question(c, cmd)
		}
	}
	return script
}

// token returns the flag of a meta command by which its reply is known.
func token(cmd memcachedtest.Command) string {
	for _, arg := range cmd.Args {
		if arg[0] == 'O' {
			return arg
		}
	}
	return ""
}

// answer is a handler that finds every key of an mg, whose value is value of it.
func answer(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
	v := drivertest.Value(cmd.Args[0])
	c.Say(fmt.Sprintf("VA %d %s\r\n%s\r\n", len(v), token(cmd), v))
}

// each runs fn at the same time for n numbers, and returns when all have ended.
func each(n int, fn func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { fn(i) })
	}
	all.Wait()
}

// awaitCalls waits until n calls have been handed over in all.
func (l *links) awaitCalls(t testing.TB, n int) {
	t.Helper()
	memcachedtest.Eventually(t, func() bool { calls, _ := l.Stats(); return int(calls) == n }, "%d calls are on their way", n)
}

func (l *links) set(ctx context.Context, key string, value []byte) error {
	_, err := l.Set(ctx, &pipeline.Set{Item: pipeline.Item{Key: key, Value: value}}, false)
	return err
}

func (l *links) mustGet(t testing.TB, key string) string {
	t.Helper()
	value, ok, err := l.Get(t.Context(), key)
	require.NoError(t, err)
	require.True(t, ok, "%s is not there", key)
	return string(value)
}

// within is more than a call takes on a busy machine, and less than any timeout.
const within = 15 * time.Second
