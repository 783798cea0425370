package systemtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// The drivers' timeouts. A gentle site is never stopped for as long, and so always
// answers whether it speaks meta.
const (
	soakTimeout = time.Second
	soakDial    = 2500 * time.Millisecond
	soakIdle    = 16

	// soakLate is how much longer than it may a call lasts on a busy machine.
	soakLate = 5 * time.Second
)

// soak is one run, and what all its goroutines share.
type soak struct {
	t        *testing.T
	start    time.Time
	seed     uint64
	over     context.Context // ends with the run
	clusters []*cluster
	chaos    []*chaos
	casts    []*counter
	incrs    []*counter
	nextFake atomic.Int64

	mu      sync.Mutex
	figures map[string]int
	faults  map[string]int
}

// cluster is a list of servers and two drivers for it, as two processes have.
type cluster struct {
	sites  []*site
	list   memcache.ServerList
	dbs    [2]*memcacheddriver.MemcachedDB
	native [2]*memcache.Client
}

// TestSoakUnderFire makes all calls at once, many of them cut off, on servers that
// are stopped, killed, restarted and replaced, beside models that hold whatever
// happens. It runs alone, as it looks at the heap.
func TestSoakUnderFire(t *testing.T) {
	d := max(drivertest.Soak(t), 6*time.Second)
	s := newSoak(t)
	over, end := context.WithCancel(t.Context())
	s.over = over

	var all, chaos sync.WaitGroup
	callers := 0
	run := func(n int, act func(*caller)) {
		for range n {
			c := &caller{soak: s, id: callers, rnd: rand.New(rand.NewPCG(s.seed, uint64(callers)))}
			callers++
			all.Go(func() {
				for over.Err() == nil {
					act(c)
				}
			})
		}
	}
	var owners []*owner
	for range 12 {
		o := newOwner(s, len(owners))
		owners = append(owners, o)
		run(1, o.act)
	}
	run(12, func(c *caller) { c.read(owners) })
	run(6, (*caller).compareAndCount)
	run(4, (*caller).increment)
	run(4, (*caller).readCounters)
	run(8, (*caller).mayfly)
	run(6, (*caller).keep)
	run(6, (*caller).fade)
	for _, c := range s.chaos {
		chaos.Go(c.run)
	}

	time.Sleep(d / 10)
	early := heap()
	for time.Since(s.start) < d {
		time.Sleep(100 * time.Millisecond)
		s.checkConnections(callers)
	}
	end()
	drivertest.NoDeadlock("the callers and the chaos", func() { all.Wait(); chaos.Wait() })

	s.checkAtRest()
	if late := heap(); late > 3*early+8<<20 {
		t.Errorf("the heap has grown from %d to %d bytes", early, late)
	}
	s.report(d)
}

func newSoak(t *testing.T) *soak {
	s := &soak{
		t: t, start: time.Now(), seed: uint64(time.Now().UnixNano()),
		figures: make(map[string]int), faults: make(map[string]int),
	}
	t.Logf("seed %d", s.seed)
	servers, _ := drivertest.StartServers(t, 3)
	s.addCluster(servers)
	secure, config := memcachedtest.StartTLS(t)
	s.addCluster([]*memcachedtest.Server{secure}, driver.WithTLSConfig(config))
	// What needs meta is exact only where nothing but a memcached with it has been.
	gentle := []*site{s.clusters[0].sites[2], s.clusters[1].sites[0]}
	smallChunks := slabChunkMax(servers[0].Stats(t)["version"])
	for _, c := range s.clusters {
		for _, at := range c.sites {
			at.gentle = slices.Contains(gentle, at)
			s.chaos = append(s.chaos, &chaos{
				soak: s, site: at, smallChunks: smallChunks,
				rnd: rand.New(rand.NewPCG(s.seed, uint64(1000+len(s.chaos)))),
			})
			s.casts = append(s.casts, newCounter(c, at))
			s.incrs = append(s.incrs, newCounter(c, at))
		}
	}
	return s
}

func (s *soak) addCluster(servers []*memcachedtest.Server, opts ...driver.Option) {
	c := &cluster{}
	var addrs []string
	for i, server := range servers {
		addrs = append(addrs, server.Addr())
		at := &site{cluster: c, index: i, server: server}
		at.state.Store(&siteState{epoch: 1, kind: isMeta})
		c.sites = append(c.sites, at)
	}
	require.NoError(s.t, c.list.SetServers(addrs...))
	opts = append(opts, memcacheddriver.WithTTLQuery(), memcacheddriver.WithMaxIdleConns(soakIdle),
		memcacheddriver.WithTimeout(soakTimeout), driver.WithDialTimeout(soakDial),
		memcacheddriver.WithServerFailureLimit(3, 50*time.Millisecond))
	for i := range c.dbs {
		c.dbs[i] = drivertest.OpenAsked(s.t, strings.Join(addrs, ","), opts...)
		store, err := kv.Open(c.dbs[i])
		require.NoError(s.t, err)
		c.native[i] = memcacheddriver.UnwrapClient(store)
	}
	s.clusters = append(s.clusters, c)
}

// siteOf returns the site that holds key.
func (c *cluster) siteOf(key string) *site {
	addr, err := c.list.PickServer(key)
	if err != nil {
		panic(err)
	}
	return c.sites[slices.IndexFunc(c.sites, func(at *site) bool { return at.server.Addr() == addr.String() })]
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// count counts an event for the figures.
func (s *soak) count(event string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.figures[event]++
}

// fault fails the test, with the first few of each kind.
func (s *soak) fault(kind, format string, args ...any) {
	s.mu.Lock()
	s.faults[kind]++
	n := s.faults[kind]
	s.mu.Unlock()
	if n <= 3 {
		s.t.Errorf("after %v: %s: %s", time.Since(s.start).Round(time.Millisecond), kind, fmt.Sprintf(format, args...))
	}
}

func (s *soak) checkConnections(callers int) {
	for _, c := range s.clusters {
		for _, db := range c.dbs {
			for _, st := range db.Stats() {
				// One more is the removal's of what lived under a second.
				if st.Idle > soakIdle || st.InUse > callers+1 {
					s.fault("too many connections", "%+v of %d callers", st, callers)
				}
			}
		}
	}
}

// checkAtRest looks at the servers, which all run, when no call does.
func (s *soak) checkAtRest() {
	for _, c := range s.clusters {
		for _, db := range c.dbs {
			memcachedtest.Eventually(s.t, func() bool { return db.Ping(s.t.Context()) == nil }, "all servers are up again")
			memcachedtest.Eventually(s.t, func() bool {
				return !slices.ContainsFunc(db.Stats(), func(st memcacheddriver.ServerStats) bool { return st.InUse > 0 })
			}, "no connection is in use")
		}
		for _, at := range c.sites {
			// Beside them are memcached's listener and the question's own.
			most := 2*soakIdle + 2
			memcachedtest.Eventually(s.t, func() bool {
				n, err := strconv.Atoi(at.server.Stats(s.t)["curr_connections"])
				return err == nil && n <= most
			}, "%s has at most %d connections", at.server.Addr(), most)
		}
	}
}

// report prints what has happened, and fails a long run in which something has
// not.
func (s *soak) report(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line := func(figures map[string]int) string {
		var parts []string
		for name, n := range figures {
			parts = append(parts, fmt.Sprint(name, " ", n))
		}
		slices.Sort(parts)
		return strings.Join(parts, ", ")
	}
	s.t.Logf("%v: %s", d, line(s.figures))
	if len(s.faults) > 0 {
		s.t.Logf("faults: %s", line(s.faults))
	}
	if d < 2*time.Minute {
		return
	}
	for _, event := range append(slices.Clone(soakEvents), fakeNames()...) {
		assert.NotZero(s.t, s.figures[event], "it never came to: %s", event)
	}
}

// soakEvents are those that a long run must have had.
var soakEvents = []string{
	"call get", "call set", "call setnx", "call setxx", "call delete", "call exists", "call mget", "call mset",
	"call cas", "call expire", "call ttl", "call do", "call native", "call ping",
	"hit", "miss", "cut off", "conflict", "server down", "timeout", "refused", "closed", "too large",
	"stop", "long stop", "kill", "restart", "classic",
	"ended", "kept", "faded", "must hit", "swaps counted", "increments",
}

// caller makes calls, from one goroutine.
type caller struct {
	*soak
	id   int
	rnd  *rand.Rand
	keys int
}

// newKey returns a key that nobody has used, on a gentle site if wanted.
func (c *caller) newKey(gentle bool) (string, *site) {
	for {
		c.keys++
		in := c.clusters[0]
		if c.rnd.IntN(4) == 0 {
			in = c.clusters[1]
		}
		key := fmt.Sprintf("soak-%d-%d", c.id, c.keys)
		if at := in.siteOf(key); at.gentle || !gentle {
			return key, at
		}
	}
}

// rest waits for d, or for the end of the run.
func (c *caller) rest(d time.Duration) {
	select {
	case <-time.After(d):
	case <-c.over.Done():
	}
}

func (c *caller) between(from, to time.Duration) time.Duration {
	return from + time.Duration(c.rnd.Int64N(int64(to-from)))
}

// context returns one that ends at a random moment, or not; left is how long it
// lasts, 0 for ever.
func (c *caller) context() (ctx context.Context, cancel context.CancelFunc, left time.Duration) {
	ctx, cancel = context.Background(), func() {}
	switch c.rnd.IntN(10) {
	case 0, 1:
		left = c.between(0, 3*time.Millisecond)
		ctx, cancel = context.WithTimeout(ctx, left)
	case 2:
		left = c.between(0, 300*time.Millisecond)
		ctx, cancel = context.WithTimeout(ctx, left)
	case 3:
		left = c.between(0, 5*time.Millisecond)
		cancelled, end := context.WithCancel(ctx)
		timer := time.AfterFunc(left, end)
		return cancelled, func() { timer.Stop(); end() }, left
	}
	return ctx, cancel, left
}

// exchanges is how many times the timeouts a call may have, generously.
var exchanges = map[string]time.Duration{"cas": 10, "mget": 2, "mset": 2, "delete": 2, "exists": 2}

// call makes one call for keys at random moments of a context, and judges its
// error and how long it took.
func (c *caller) call(op string, keys []string, in *cluster, run func(ctx context.Context) error) error {
	sites := in.sites
	if len(keys) == 1 {
		sites = []*site{in.siteOf(keys[0])}
	}
	before := make([]int64, len(sites))
	for i, at := range sites {
		before[i] = at.state.Load().epoch
	}
	ctx, cancel, left := c.context()
	if op == "native" {
		cancel()
		ctx, cancel, left = context.Background(), func() {}, 0
	}
	defer cancel()
	start := time.Now()
	err := run(ctx)
	took := time.Since(start)
	limit := max(1, exchanges[op]) * (soakDial + 2*soakTimeout)
	if left > 0 {
		limit = min(limit, left)
	}
	if took > limit+soakLate {
		c.fault("a call lasts too long", "%s took %v, with %v: %v", op, took, limit, err)
	}
	c.count("call " + op)
	faked := false
	for i, at := range sites {
		faked = faked || at.faked.Load() >= before[i]
	}
	c.judge(op, keys, err, ctx.Err(), faked)
	return err
}

// judge looks whether err is one that the call may have. Where a fake was, it may
// say anything.
func (c *caller) judge(op string, keys []string, err, ended error, faked bool) {
	if err == nil || err == kv.ErrNotFound || err == memcache.ErrCacheMiss {
		return
	}
	if strings.Contains(err.Error(), valueMark) {
		c.fault("an error has a value in it", "%s: %v", op, err)
	}
	if op == "do" || op == "native" {
		c.judgeCause(op, err, ended, faked)
		return
	}
	ops := drivertest.OpErrors(err)
	if len(ops) == 0 {
		c.fault("no OpError", "%s: %v", op, err)
	}
	for _, e := range ops {
		if e.Op != op || len(e.Keys) == 0 && op != "ping" {
			c.fault("an OpError without call or keys", "%s of %q: %q %q: %v", op, keys, e.Op, e.Keys, err)
		}
		for _, key := range e.Keys {
			if !slices.Contains(keys, key) {
				c.fault("an OpError with another key", "%s of %q: %v", op, keys, err)
			}
		}
		c.judgeCause(op, e.Err, ended, faked)
	}
}

func (c *caller) judgeCause(op string, err, ended error, faked bool) {
	is := func(targets ...error) bool {
		return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
	}
	switch {
	case is(context.Canceled, context.DeadlineExceeded):
		if ended == nil || !is(ended) {
			c.fault("a context's error where it has not ended", "%s: %v, context: %v", op, err, ended)
		}
		c.count("cut off")
	case is(memcacheddriver.ErrServerDown):
		c.count("server down")
	case is(os.ErrDeadlineExceeded):
		c.count("timeout")
	case is(syscall.ECONNREFUSED):
		c.count("refused")
	case is(io.ErrUnexpectedEOF, io.EOF, syscall.ECONNRESET, syscall.EPIPE):
		c.count("closed")
	case op == "cas" && is(kv.ErrConflict):
		c.count("conflict")
	case op == "ttl" && is(kv.ErrNotSupported):
		c.count("no meta")
	case is(memcacheddriver.ErrValueTooLarge):
		c.count("too large")
	case is(memcacheddriver.ErrTooManyConns): // for a while after the fake that said it, too
		c.count("too many connections")
	case is(memcacheddriver.ErrPoolTimeout):
		c.count("no connection")
	case faked:
		c.count("said by a fake")
	default:
		c.fault("an error of no expected kind", "%s: %v", op, err)
	}
}
