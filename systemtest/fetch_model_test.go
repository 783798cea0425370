package systemtest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

const leaseSuffix = "~lease"

// edition is what is fetched: the source as it was after so many changes, or what a Set has
// stored.
type edition struct {
	Changes int
	BySet   bool
}

// fetchScene is what happens in a world beside two Fetches and a DeleteFetched.
type fetchScene struct {
	seed    uint64
	meta    bool
	refresh bool // there is a value that is due to be loaded anew
	empty   bool // the source has no value before it changes
	set     bool // there is a Set
	leave   bool // the caller of a Fetch leaves at some moment
	cuts    bool // connections are cut before or after a command
}

// newFetchScene takes what happens from the bits of the seed.
func newFetchScene(seed uint64, meta, cuts bool) fetchScene {
	bit := func(i int) bool { return seed>>i&1 == 1 }
	return fetchScene{seed: seed, meta: meta, refresh: meta && bit(0), empty: bit(1) && bit(2), set: bit(3), leave: bit(4), cuts: cuts}
}

// fetchWorld is a memcached, a source and those who use them, of whom one at a time does
// one thing, in a random order. All of it is of the goroutine that runs play, but for turns
// and over.
type fetchWorld struct {
	fetchScene
	key   string
	rnd   *rand.Rand
	inRow int // of eight turns, those that go to who had the last one
	turns chan *turn
	over  chan struct{}

	last    string // who had the last turn
	live    int    // actors that have not returned
	items   map[string]worldItem
	cas     uint64
	changes int // of the source
	deleted int // the changes that a DeleteFetched has come after
	idle    int // turns since something has changed

	takenAway, cut int // leases, and connections
	trace, faults  []string
}

type worldItem struct {
	value string
	cas   uint64
	ttl   string
}

// turn is what an actor waits to do.
type turn struct {
	actor, what string
	do          func() (result string)
	done        chan struct{}
}

func newFetchWorld(s fetchScene) *fetchWorld {
	w := &fetchWorld{
		fetchScene: s, key: drivertest.Key(), rnd: rand.New(rand.NewPCG(s.seed, 0)),
		turns: make(chan *turn), over: make(chan struct{}), items: make(map[string]worldItem),
	}
	w.inRow = w.rnd.IntN(8)
	if s.refresh {
		w.put(w.key, `{"Changes":0}`, "30")
	}
	return w
}

// await waits for a turn of actor's, in which do is done. It reports false if the world has
// ended before.
func (w *fetchWorld) await(actor, what string, do func() (result string)) bool {
	t := &turn{actor, what, do, make(chan struct{})}
	select {
	case w.turns <- t:
	case <-w.over:
		return false
	}
	select {
	case <-t.done:
		return true
	case <-w.over:
		return false
	}
}

// play gives turns until all actors have returned and what they have left behind has done
// its work, or, if it has not, for a minute.
func (w *fetchWorld) play() {
	const (
		// An actor may be in a pause, so nobody waits long for one to come.
		pause = 8 * time.Millisecond
		// That is nothing for what goes on in the background. But where it leaves
		// something wrong behind, it is waited for.
		quiet = 20 * time.Millisecond
	)
	defer close(w.over)
	deadline := time.Now().Add(time.Minute)
	var waiting []*turn
	for time.Now().Before(deadline) {
		if len(waiting) == 0 || len(waiting) < w.live {
			patience := pause
			switch {
			case len(waiting) > 0:
			case w.live > 0:
				patience = time.Until(deadline)
			default:
				patience = quiet
			}
			select {
			case t := <-w.turns:
				waiting = append(waiting, t)
				continue
			case <-time.After(patience):
			}
		}
		switch {
		case len(waiting) > 0:
			waiting = w.give(waiting)
		case w.live == 0 && w.stale() == "":
			return
		}
	}
	if w.live > 0 {
		w.fault("it is stuck")
	}
}

// give gives one of those who wait a turn, and returns the others.
func (w *fetchWorld) give(waiting []*turn) []*turn {
	// A lease may end at any time. It does so where all seem to wait for that.
	const mostIdle = 8
	if _, held := w.items[w.key+leaseSuffix]; held && (w.idle > mostIdle || w.rnd.IntN(50) == 0) {
		w.trace = append(w.trace, "the lease expires")
		w.remove(w.key + leaseSuffix)
	}
	// Their order must not depend on who came first.
	slices.SortFunc(waiting, func(a, b *turn) int {
		return cmp.Or(cmp.Compare(a.actor, b.actor), cmp.Compare(a.what, b.what))
	})
	i := w.rnd.IntN(len(waiting))
	// Some worlds let one do much while the others stand still: few faults show where all
	// are equally fast.
	if again := slices.IndexFunc(waiting, func(t *turn) bool { return t.actor == w.last }); again >= 0 && w.rnd.IntN(8) < w.inRow {
		i = again
	}
	t := waiting[i]
	w.last = t.actor
	w.idle++
	line := t.actor + ": " + t.what
	if result := t.do(); result != "" {
		line += " -> " + result
	}
	w.trace = append(w.trace, line)
	close(t.done)
	return slices.Delete(waiting, i, i+1)
}

func (w *fetchWorld) fault(format string, args ...any) {
	w.faults = append(w.faults, fmt.Sprintf(format, args...))
}

// stale says what there is of the source as it was before a DeleteFetched, "" for nothing.
func (w *fetchWorld) stale() string {
	if it, ok := w.items[w.key]; ok {
		if e := editionOf(it.value); !e.BySet && e.Changes < w.deleted {
			return it.value
		}
	}
	if it := w.items[w.key+leaseSuffix]; it.value == "none" && w.deleted > 0 {
		return "it is remembered that there is no value"
	}
	return ""
}

func editionOf(value string) (e edition) {
	if err := json.Unmarshal([]byte(value), &e); err != nil {
		panic(err)
	}
	return e
}

// put stores an item, or removes it where the ttl is in the past.
func (w *fetchWorld) put(key, value, ttl string) {
	const past = "2592001" // a second more than 30 days is in 1970
	if old, ok := w.items[key]; ok && key == w.key && editionOf(old.value).BySet && (ttl == past || !editionOf(value).BySet) {
		w.fault("the value of a Set was replaced by %q with a ttl of %s", value, ttl)
	}
	w.cas++
	w.items[key] = worldItem{value, w.cas, ttl}
	if w.idle = 0; ttl == past {
		w.remove(key)
	}
}

func (w *fetchWorld) remove(key string) {
	delete(w.items, key)
	w.idle = 0
}

// command does one as memcached does, and returns its answer.
func (w *fetchWorld) command(cmd memcachedtest.Command) string {
	key := cmd.Args[0]
	it, found := w.items[key]
	switch cmd.Name {
	case "get", "gets":
		return w.values(cmd) + "END\r\n"
	case "mg":
		if !found {
			return "EN\r\n"
		}
		if flags := strings.Join(cmd.Args[1:], " "); flags == "t c f v" {
			return fmt.Sprintf("VA %d t%s c%d f0\r\n%s\r\n", len(it.value), cmp.Or(strings.TrimPrefix(it.ttl, "0"), "-1"), it.cas, it.value)
		}
	case "set":
		w.put(key, string(cmd.Data), cmd.Args[2])
		return "STORED\r\n"
	case "add":
		if found {
			return "NOT_STORED\r\n"
		}
		w.put(key, string(cmd.Data), cmd.Args[2])
		return "STORED\r\n"
	case "cas":
		switch {
		case !found:
			return "NOT_FOUND\r\n"
		case strconv.FormatUint(it.cas, 10) != cmd.Args[4]:
			return "EXISTS\r\n"
		}
		w.put(key, string(cmd.Data), cmd.Args[2])
		return "STORED\r\n"
	case "delete":
		if !found {
			return "NOT_FOUND\r\n"
		}
		if key != w.key && it.value != "none" {
			w.takenAway++
		}
		w.remove(key)
		return "DELETED\r\n"
	}
	w.fault("nobody has told it how to %s", cmd.Line)
	return "ERROR\r\n"
}

// values are those of all keys of a get that are there.
func (w *fetchWorld) values(cmd memcachedtest.Command) (reply string) {
	for _, key := range cmd.Keys() {
		it, found := w.items[key]
		if !found {
			continue
		}
		reply += fmt.Sprintf("VALUE %s 0 %d", key, len(it.value))
		if cmd.Name == "gets" {
			reply += fmt.Sprint(" ", it.cas)
		}
		reply += "\r\n" + it.value + "\r\n"
	}
	return reply
}

// serve answers the commands of one actor. Those on another key are what one of an earlier
// world has left behind.
func (w *fetchWorld) serve(actor string) memcachedtest.Handler {
	return func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		keys := cmd.Keys()
		if len(keys) == 0 || strings.TrimSuffix(keys[0], leaseSuffix) != w.key {
			c.Default(cmd)
			return
		}
		reply, cut := "", false
		lived := w.await(actor, w.short(cmd.Line+" "+string(cmd.Data)), func() (result string) {
			before, after := w.drawCuts(cmd)
			if cut = before || after; cut {
				w.cut++
			}
			if before {
				return "cut off before"
			}
			reply = w.command(cmd)
			if result = w.short(reply); after {
				result += " cut off after"
			}
			return result
		})
		if cut || !lived {
			c.Close()
			return
		}
		c.Say(reply)
	}
}

// drawCuts says whether the connection ends before or after a command, which it does more
// often where a value is stored.
func (w *fetchWorld) drawCuts(cmd memcachedtest.Command) (before, after bool) {
	of := 12
	if cmd.Args[0] == w.key && cmd.Data != nil {
		of = 4
	}
	n := w.rnd.IntN(of)
	return w.cuts && n == 0, w.cuts && n == 1
}

// short makes one readable line of what was said.
func (w *fetchWorld) short(text string) string {
	return strings.TrimSpace(strings.NewReplacer(w.key, "k", "\r\n", " ").Replace(text))
}

// load is that of the Fetch of a process.
func (w *fetchWorld) load(process string) (e edition, err error) {
	w.await(process, "reads the source", func() string {
		if e.Changes = w.changes; w.empty && w.changes == 0 {
			err = kv.ErrNotFound
		}
		return ""
	})
	w.await(process, "has loaded", func() string { return fmt.Sprint(e.Changes, " ", err) })
	return e, err
}

// fetch is the Fetch of a process.
func (w *fetchWorld) fetch(ctx context.Context, process string, store *kv.Store) error {
	opts := []memcacheddriver.FetchOption{
		memcacheddriver.FetchWait(drivertest.Never), memcacheddriver.FetchLease(drivertest.Never),
		memcacheddriver.FetchNotFound(time.Hour),
	}
	if w.refresh {
		opts = append(opts, memcacheddriver.FetchRefresh(time.Minute))
	}
	_, err := memcacheddriver.Fetch(ctx, store, w.key, time.Hour, func(context.Context) (edition, error) { return w.load(process) }, opts...)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) || w.empty && err == kv.ErrNotFound {
		return nil
	}
	return err
}

// change changes the source, and tells so.
func (w *fetchWorld) change(ctx context.Context, store *kv.Store) error {
	const actor = "changer"
	w.await(actor, "changes the source", func() string {
		w.changes++
		return ""
	})
	err := memcacheddriver.DeleteFetched(ctx, store, w.key)
	w.await(actor, "DeleteFetched", func() string {
		if err == nil {
			w.deleted = w.changes
		}
		return fmt.Sprint(err)
	})
	if w.cuts {
		return nil
	}
	return err
}

// store is a Set of another caller's.
func (w *fetchWorld) store(ctx context.Context, store *kv.Store) error {
	if err := store.Set(ctx, w.key, edition{BySet: true}); !w.cuts {
		return err
	}
	return nil
}

// fetchStage has the stores that worlds happen on, one after the other, each with a server
// that knows by that whose commands it gets.
type fetchStage struct {
	meta    bool
	servers map[string]*memcachedtest.Fake
	stores  map[string]*kv.Store
}

func newFetchStage(t *testing.T, meta bool) *fetchStage {
	s := &fetchStage{meta: meta, servers: make(map[string]*memcachedtest.Fake), stores: make(map[string]*kv.Store)}
	for _, actor := range []string{"process 1", "process 2", "changer", "setter"} {
		s.servers[actor] = memcachedtest.StartFake(t, s.script(nil))
		s.stores[actor] = drivertest.OpenStore(t, s.servers[actor].Addr(), memcacheddriver.WithServerFailureLimit(0, 0),
			memcacheddriver.WithTimeout(2*drivertest.Never), driver.WithDialTimeout(drivertest.Never))
	}
	return s
}

func (s *fetchStage) script(h memcachedtest.Handler) memcachedtest.Script {
	script := memcachedtest.AfterDial(h)
	if !s.meta {
		script["mn"] = memcachedtest.Say("ERROR\r\n")
	}
	return script
}

// play lets a world happen.
func (s *fetchStage) play(t *testing.T, w *fetchWorld) {
	ctx, end := context.WithCancel(t.Context())
	defer end()
	caller, leave := context.WithCancel(ctx)
	defer leave()
	for actor, server := range s.servers {
		server.SetScript(s.script(w.serve(actor)))
	}
	var actors sync.WaitGroup
	act := func(actor string, fn func() error) {
		w.live++
		actors.Go(func() {
			err := fn()
			w.await(actor, "has returned", func() string {
				if w.live--; err != nil {
					w.fault("%s: %v", actor, err)
				}
				return ""
			})
		})
	}
	act("process 1", func() error { return w.fetch(caller, "process 1", s.stores["process 1"]) })
	act("process 2", func() error { return w.fetch(ctx, "process 2", s.stores["process 2"]) })
	act("changer", func() error { return w.change(ctx, s.stores["changer"]) })
	if w.set {
		act("setter", func() error { return w.store(ctx, s.stores["setter"]) })
	}
	if w.leave {
		act("leaver", func() error {
			w.await("leaver", "process 1 leaves", func() string { leave(); return "" })
			return nil
		})
	}
	w.play()
	end()
	actors.Wait()
	if stale := w.stale(); stale != "" {
		w.fault("it is stale after DeleteFetched: %s", stale)
	}
	if len(w.faults) > 0 {
		t.Errorf("%+v:\n%s\n\n%s", w.fetchScene, strings.Join(w.faults, "\n"), strings.Join(w.trace, "\n"))
	}
}

// fetchWorldsFor lets worlds happen for a time, and at least so many that something has
// come of it; several at once, as most of it is waiting.
func fetchWorldsFor(t *testing.T, d time.Duration, cuts bool) {
	const stages, worldsOfStage, leastOfStage = 16, 50, 15
	seed := uint64(time.Now().UnixNano())
	var mu sync.Mutex
	worlds, takenAway, cut := 0, 0, 0
	for deadline := time.Now().Add(d); worlds == 0 || time.Now().Before(deadline); {
		// Servers remember what they have received, so they get new ones every so often.
		t.Run(fmt.Sprint("from ", worlds), func(t *testing.T) {
			var all sync.WaitGroup
			for i := range stages {
				s, first := newFetchStage(t, i%2 == 0), seed
				seed += worldsOfStage
				all.Go(func() {
					for n := range uint64(worldsOfStage) {
						if t.Failed() || n >= leastOfStage && time.Now().After(deadline) {
							return
						}
						w := newFetchWorld(newFetchScene(first+n, s.meta, cuts))
						s.play(t, w)
						mu.Lock()
						worlds++
						takenAway += w.takenAway
						cut += w.cut
						mu.Unlock()
					}
				})
			}
			all.Wait()
		})
		if t.Failed() {
			break
		}
	}
	t.Logf("%d worlds, %d leases taken away, %d connections cut", worlds, takenAway, cut)
	assert.NotZero(t, takenAway, "nothing was deleted while it was loaded")
	assert.Equal(t, cuts, cut > 0)
}

func TestFetchInAnyOrder(t *testing.T) {
	t.Parallel()
	fetchWorldsFor(t, 2*time.Second, false)
}

func TestFetchInAnyOrderWithCuts(t *testing.T) {
	t.Parallel()
	fetchWorldsFor(t, 2*time.Second, true)
}

func TestSoakFetchInAnyOrder(t *testing.T) {
	t.Parallel()
	fetchWorldsFor(t, drivertest.Soak(t), false)
}

func TestSoakFetchInAnyOrderWithCuts(t *testing.T) {
	t.Parallel()
	fetchWorldsFor(t, drivertest.Soak(t), true)
}
