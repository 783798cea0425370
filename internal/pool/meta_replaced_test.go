package pool_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// replaced is a memcached 1.6 that a 1.4 replaces on the same address. Both hold
// every key.
type replaced struct {
	addr string
	what string // is tested

	// at is the command at which it is replaced, counted from 1 over all
	// connections, and last whether that one is still answered.
	at   int
	last bool

	mu      sync.Mutex
	count   int
	classic bool
	conns   map[*memcachedtest.FakeConn]*replacedConn
	sent    map[string]int // meta commands, by name
	wrong   []string       // what must not have come
}

type replacedConn struct {
	classic bool // to the new server
	meta    bool // the old one has shown that it speaks it
}

func startReplaced(t *testing.T, at int, last bool) *replaced {
	t.Helper()
	r := &replaced{at: at, last: last, conns: make(map[*memcachedtest.FakeConn]*replacedConn), sent: make(map[string]int)}
	r.addr = memcachedtest.StartFake(t, memcachedtest.Script{"*": r.handle}).Addr()
	return r
}

func (r *replaced) handle(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
	r.mu.Lock()
	defer r.mu.Unlock()
	conn := r.conns[c]
	if conn == nil {
		conn = &replacedConn{classic: r.classic}
		r.conns[c] = conn
	}
	if r.classic && !conn.classic {
		return // it is closed
	}
	r.count++
	r.inspect(conn, cmd)
	if r.classic || r.count != r.at {
		c.Say(conn.reply(cmd))
		return
	}
	if r.last {
		c.Say(conn.reply(cmd))
	}
	r.replace()
}

// replace needs mu.
func (r *replaced) replace() {
	r.classic = true
	for c, conn := range r.conns {
		if !conn.classic {
			c.Close()
		}
	}
}

func (r *replaced) inspect(conn *replacedConn, cmd memcachedtest.Command) {
	switch cmd.Name {
	case "mg", "ms", "md", "ma", "me":
		r.sent[cmd.Name]++
		if !conn.meta {
			r.wrong = append(r.wrong, "not known to be understood: "+cmd.Line)
		}
		if conn.classic && cmd.Data != nil {
			for _, line := range strings.Split(string(cmd.Data), "\r\n") {
				r.wrong = append(r.wrong, "a value that is run: "+line)
			}
		}
	case "flush_all":
		r.wrong = append(r.wrong, cmd.Line)
	case "delete":
		if cmd.Args[0] == "victim" {
			r.wrong = append(r.wrong, cmd.Line)
		}
	}
}

// reply says that every key is there, with the value 1.
func (conn *replacedConn) reply(cmd memcachedtest.Command) (reply string) {
	switch cmd.Name {
	case "version":
		if conn.classic {
			return "VERSION 1.4.39\r\n"
		}
		return "VERSION 1.6.18\r\n"
	case "get", "gets":
		for _, key := range cmd.Keys() {
			reply += "VALUE " + key + " 0 1 7\r\n1\r\n"
		}
		return reply + "END\r\n"
	case "set", "add", "replace", "cas":
		return "STORED\r\n"
	case "delete":
		return "DELETED\r\n"
	case "touch":
		return "TOUCHED\r\n"
	case "incr":
		return "2\r\n"
	case "stats":
		return fmt.Sprintf("STAT time %d\r\nEND\r\n", time.Now().Unix())
	}
	if conn.classic {
		return "ERROR\r\n"
	}
	flag := func(f string) bool { return strings.Contains(cmd.Line+" ", " "+f+" ") }
	switch {
	case cmd.Name == "mn":
		conn.meta = true
		return "MN\r\n"
	case cmd.Name == "mg" && flag("v"):
		return "VA 1 t2 c9 f0\r\n1\r\n"
	case cmd.Name == "mg":
		return "HD t2 c9\r\n"
	case flag("q"):
		return ""
	}
	return "HD c9\r\n"
}

func (r *replaced) requireNothingWrong(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	require.Empty(t, r.wrong, r.what)
}

// metaCalls are all calls, and those that store what an old server would run.
func metaCalls(r *replaced) []drivertest.Call {
	evil := []byte("delete victim\r\nflush_all")
	const ttl = 300 * time.Millisecond
	swap := func(name string, opts ...memcacheddriver.CASOption) drivertest.Call {
		return drivertest.Call{Name: name, Run: func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
			return db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { return evil, nil }, opts...)
		}}
	}
	return append([]drivertest.Call{
		{Name: "commands by Set under a second", Run: func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
			return db.Set(ctx, key, evil, ttl)
		}},
		{Name: "commands by SetNX under a second", Run: func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
			_, err := db.SetNX(ctx, key, evil, ttl)
			return err
		}},
		{Name: "commands by SetXX under a second", Run: func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
			_, err := db.SetXX(ctx, key, evil, ttl)
			return err
		}},
		{Name: "commands by MSet", Run: func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
			return db.MSet(ctx, map[string][]byte{key: evil, "b": evil, "c": evil}, 0)
		}},
		{Name: "commands by MSet under a second", Run: func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
			return db.MSet(ctx, map[string][]byte{key: evil, "b": evil}, ttl)
		}},
		swap("commands by CompareAndSwap"),
		swap("commands by CompareAndSwap under a second", memcacheddriver.CASTTL(ttl)),
		{Name: "commands by CompareAndSwap under a second, replaced in between", Run: func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
			return db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.replace()
				time.Sleep(rest) // so that it is noticed
				return evil, nil
			}, memcacheddriver.CASTTL(ttl))
		}},
		{Name: "a swap of what lives under a second", Run: func(ctx context.Context, db *memcacheddriver.MemcachedDB, key string) error {
			if err := db.Set(ctx, key, evil, ttl); err != nil {
				return err
			}
			return db.CompareAndSwap(ctx, key, func([]byte) ([]byte, error) { return evil, nil })
		}},
	}, drivertest.Calls...)
}

// Whenever a server is replaced by one without the meta protocol, nothing of that
// protocol is sent to the new one but the question for it: the value of a meta set
// would run there as commands.
func TestMetaIsNotSentToTheServerThatReplacesOne(t *testing.T) {
	t.Parallel()
	var all []*replaced
	for i, call := range metaCalls(nil) {
		run := func(at int, last bool) (steps int) {
			r := startReplaced(t, at, last)
			r.what = fmt.Sprintf("%s, replaced at command %d, which was answered: %v", call.Name, at, last)
			all = append(all, r)
			db := drivertest.Open(t, r.addr, memcacheddriver.WithTTLQuery(), memcacheddriver.WithServerFailureLimit(0, 0))
			do := func() error { return metaCalls(r)[i].Run(t.Context(), db, "k") }
			err := do()
			if at == 0 {
				require.NoError(t, err, call.Name)
			}
			r.mu.Lock()
			steps = r.count
			r.mu.Unlock()
			memcachedtest.Eventually(t, func() bool {
				err := do()
				r.requireNothingWrong(t)
				return err == nil || call.Name == "TTL" && errors.Is(err, kv.ErrNotSupported)
			}, "%s: the new server serves", r.what)
			if !strings.Contains(call.Name, "under a second") {
				require.NoError(t, db.Close()) // else what was stored is still to be removed
			}
			return steps
		}
		for at := run(0, false); at > 0; at-- {
			run(at, false)
			run(at, true)
		}
	}
	time.Sleep(600 * time.Millisecond) // until all is removed
	sent := make(map[string]int)
	for _, r := range all {
		r.requireNothingWrong(t)
		r.mu.Lock()
		for name, n := range r.sent {
			sent[name] += n
		}
		r.mu.Unlock()
	}
	for _, name := range []string{"mg", "ms", "md"} {
		assert.Positive(t, sent[name], "no %s was sent: nothing was tested", name)
	}
}
