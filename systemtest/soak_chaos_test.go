package systemtest

import (
	"maps"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// What is at a site.
const (
	isMeta    = "a memcached"
	isClassic = "a memcached without meta"
	isFake    = "a scripted fake"
	isDown    = "nothing"
)

// site is a place in a list of servers, and what is there now.
type site struct {
	cluster *cluster
	index   int // in the cluster
	gentle  bool
	server  *memcachedtest.Server

	state  atomic.Pointer[siteState] // another one, another process with other data
	faked  atomic.Int64              // the last epoch of a fake
	frozen atomic.Bool
	thawed atomic.Int64 // Unix nanoseconds: when it was last let run on
}

type siteState struct {
	epoch    int64 // grows
	kind     string
	timeouts [2]uint64 // of the two drivers, when it began
}

// thaw is for how long a server that was stopped may count its seconds wrong.
const thaw = 2 * time.Second

// calm reports whether a memcached with a right clock is at the site.
func (at *site) calm() bool {
	return at.state.Load().kind == isMeta && !at.frozen.Load() && time.Since(time.Unix(0, at.thawed.Load())) > thaw
}

// asked reports whether a driver has asked the site for meta on all connections
// since that state began: without a timeout it always does.
func (at *site) asked(st *siteState, db int) bool {
	return st.kind == isMeta && at.cluster.dbs[db].Stats()[at.index].Timeouts == st.timeouts[db]
}

// become says that something else is at the site from now on.
func (at *site) become(kind string) {
	next := &siteState{epoch: at.state.Load().epoch + 1, kind: kind}
	for i, db := range at.cluster.dbs {
		next.timeouts[i] = db.Stats()[at.index].Timeouts
	}
	if kind == isFake || at.state.Load().kind == isFake { // which ends a moment later
		at.faked.Store(next.epoch)
	}
	at.state.Store(next)
}

// chaos does to a site what happens to servers.
type chaos struct {
	*soak
	site        *site
	rnd         *rand.Rand
	smallChunks string
}

func (c *chaos) run() {
	defer c.restart()
	for c.over.Err() == nil {
		if c.site.gentle {
			c.pause(300*time.Millisecond, 3*time.Second)
			if c.rnd.IntN(4) > 0 {
				c.freeze(soakTimeout / 6)
			} else {
				c.kill(100 * time.Millisecond)
				c.restart(c.pick([]string{}, []string{"-I", "2m"}, []string{"-m", "128"})...)
			}
			continue
		}
		c.pause(100*time.Millisecond, 2*time.Second)
		switch c.rnd.IntN(5) {
		case 0:
			c.freeze(c.frost())
		case 1:
			c.kill(800 * time.Millisecond)
			c.restart()
		case 2:
			c.kill(20 * time.Millisecond)
			c.restart(c.pick([]string{"-I", "16k", "-o", c.smallChunks}, []string{"-I", "2m"}, []string{"-m", "128"})...)
		case 3:
			c.kill(20 * time.Millisecond)
			c.replace(isClassic, func(t testing.TB) {
				memcachedtest.StartClassicOn(t, c.site.server.Addr(), memcachedtest.Start(t).Addr())
				c.count("classic")
			})
			c.restart()
		case 4:
			c.kill(20 * time.Millisecond)
			c.replace(isFake, func(t testing.TB) {
				name := fakeNames()[c.nextFake.Add(1)%int64(len(fakes))]
				memcachedtest.StartFakeOn(t, c.site.server.Addr(), fakes[name])
				c.count(name)
			})
			c.restart()
		}
	}
}

// frost is for how long at most a server stands: mostly for a moment, and now and
// then for longer than any call may last.
func (c *chaos) frost() time.Duration {
	switch n := c.rnd.IntN(16); {
	case n < 10:
		return soakTimeout / 3
	case n < 15:
		return 2 * soakTimeout
	}
	c.count("long stop")
	return 3 * (soakDial + 2*soakTimeout + soakLate)
}

func (c *chaos) pick(lists ...[]string) []string { return lists[c.rnd.IntN(len(lists))] }

func (c *chaos) pause(from, to time.Duration) {
	select {
	case <-time.After(from + time.Duration(c.rnd.Int64N(int64(to-from)))):
	case <-c.over.Done():
	}
}

func (c *chaos) freeze(most time.Duration) {
	c.count("stop")
	c.site.frozen.Store(true)
	c.site.server.Stop()
	c.pause(most/2, most)
	c.site.server.Cont()
	c.site.thawed.Store(time.Now().UnixNano())
	c.site.frozen.Store(false)
}

// kill ends the server and leaves nothing there for a while.
func (c *chaos) kill(down time.Duration) {
	c.count("kill")
	c.site.become(isDown)
	c.site.server.Kill()
	c.pause(0, down)
}

func (c *chaos) restart(args ...string) {
	c.count("restart")
	c.site.become(isDown)
	c.site.server.RestartWith(args...)
	c.site.become(isMeta)
}

// replace puts another server at the site of one that was killed, for a while.
func (c *chaos) replace(kind string, start func(t testing.TB)) {
	t := &stint{TB: c.t}
	defer t.end()
	c.site.become(kind)
	start(t)
	c.pause(100*time.Millisecond, 1500*time.Millisecond)
	c.site.become(isDown)
}

// stint is a test that ends before the test does.
type stint struct {
	testing.TB
	cleanups []func()
}

func (s *stint) Cleanup(fn func()) { s.cleanups = append(s.cleanups, fn) }

func (s *stint) end() {
	for _, fn := range slices.Backward(s.cleanups) {
		fn()
	}
}

// fakes are what is no memcached, or one in a sorry state.
var fakes = map[string]memcachedtest.Script{
	"fake that keeps nothing":    nil,
	"fake that hangs":            memcachedtest.AfterDial(memcachedtest.Hang),
	"fake that says nothing":     {"*": memcachedtest.Hang},
	"fake that hangs up":         memcachedtest.AfterDial(memcachedtest.HangUp),
	"fake that hangs up at once": {"*": memcachedtest.HangUp},
	"fake that hangs up on mn":   {"mn": memcachedtest.HangUp},
	"fake without memory":        memcachedtest.AfterDial(memcachedtest.Say("SERVER_ERROR out of memory storing object\r\n")),
	"fake that talks rubbish":    memcachedtest.AfterDial(memcachedtest.Say("rubbish\r\n")),
	"fake that is a web server":  {"*": memcachedtest.Say("HTTP/1.1 400 Bad Request\r\n\r\n")},
	"fake with half a reply":     memcachedtest.AfterDial(func(c *memcachedtest.FakeConn, _ memcachedtest.Command) { c.Say("VALU"); c.Close() }),
	"fake with enough connections": {"*": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
		c.Say("ERROR Too many open connections\r\n")
		c.Close()
	}},
}

func fakeNames() []string { return slices.Sorted(maps.Keys(fakes)) }
