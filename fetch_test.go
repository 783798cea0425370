package memcacheddriver_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// page is what is fetched.
type page struct {
	Title string
	Words map[string]int
}

func pageOf(key string) page { return page{Title: key, Words: map[string]int{key: 1}} }

// loader counts its loads.
type loader struct {
	key   string
	loads atomic.Int32
}

func (l *loader) load(context.Context) (page, error) {
	l.loads.Add(1)
	return pageOf(l.key), nil
}

// blocked is a load that waits.
type blocked struct {
	loader
	begun chan struct{} // gets one when a load begins
	end   chan error    // what it returns, after that comes
}

func newBlocked(key string) *blocked {
	return &blocked{loader: loader{key: key}, begun: make(chan struct{}, 100), end: make(chan error)}
}

func (b *blocked) load(ctx context.Context) (page, error) {
	b.begun <- struct{}{}
	select {
	case err := <-b.end:
		p, _ := b.loader.load(ctx)
		return p, err
	case <-ctx.Done():
		return page{}, ctx.Err()
	}
}

// fetched is what a Fetch in the background has returned.
type fetched struct {
	page page
	err  error
}

func fetching(ctx context.Context, store *kv.Store, key string, ttl time.Duration, load func(context.Context) (page, error), opts ...memcacheddriver.FetchOption) <-chan fetched {
	result := make(chan fetched, 1)
	go func() {
		p, err := memcacheddriver.Fetch(ctx, store, key, ttl, load, opts...)
		result <- fetched{p, err}
	}()
	return result
}

func requireGone(t *testing.T, store *kv.Store, key string) {
	t.Helper()
	require.Equal(t, kv.ErrNotFound, store.Get(t.Context(), key, new(page)))
}

func requireLeaseFree(t *testing.T, addr, key string) {
	t.Helper()
	_, held := drivertest.ServerTTL(t, addr, key+"~lease")
	require.False(t, held, "the lease is still held")
}

func TestFetchLoadsWhatIsNotThere(t *testing.T) {
	t.Parallel()
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		store := drivertest.OpenStore(t, addr)
		l := &loader{key: drivertest.Key()}
		for range 3 {
			p, err := memcacheddriver.Fetch(t.Context(), store, l.key, time.Hour, l.load)
			require.NoError(t, err)
			require.Equal(t, pageOf(l.key), p)
		}
		assert.EqualValues(t, 1, l.loads.Load())
		assert.EqualValues(t, 1, drivertest.Stat(t, memcacheddriver.Unwrap(store)).Stores)
		var p page
		require.NoError(t, store.Get(t.Context(), l.key, &p), "the store reads it")
		assert.Equal(t, pageOf(l.key), p)
		requireLeaseFree(t, memcachedtest.Addr(t), l.key)

		require.NoError(t, memcacheddriver.DeleteFetched(t.Context(), store, l.key))
		requireGone(t, store, l.key)
		_, err := memcacheddriver.Fetch(t.Context(), store, l.key, time.Hour, l.load)
		require.NoError(t, err)
		assert.EqualValues(t, 2, l.loads.Load())
	})
}

func TestFetchGivesTheTTL(t *testing.T) {
	t.Parallel()
	addr := memcachedtest.Addr(t)
	store := drivertest.OpenStore(t, addr)
	ttlOf := func(ttl time.Duration, opts ...memcacheddriver.FetchOption) int64 {
		l := &loader{key: drivertest.Key()}
		_, err := memcacheddriver.Fetch(t.Context(), store, l.key, ttl, l.load, opts...)
		require.NoError(t, err)
		left, ok := drivertest.ServerTTL(t, addr, l.key)
		require.True(t, ok)
		return left
	}
	shortest, longest := int64(10000), int64(10000)
	for range 40 {
		left := ttlOf(10000 * time.Second)
		assert.InDelta(t, 10000, left, 502)
		shortest, longest = min(shortest, left), max(longest, left)
	}
	assert.Less(t, shortest, int64(9900), "they expire together")
	assert.Greater(t, longest, int64(10100), "they expire together")
	assert.InDelta(t, 10000, ttlOf(10000*time.Second, memcacheddriver.FetchJitter(0)), 2)
	assert.EqualValues(t, -1, ttlOf(0))
	assert.Greater(t, ttlOf(1<<63-1), int64(1<<20))

	l := &loader{key: drivertest.Key()}
	for range 2 {
		_, err := memcacheddriver.Fetch(t.Context(), store, l.key, -1, l.load)
		require.NoError(t, err)
	}
	assert.EqualValues(t, 2, l.loads.Load(), "it has expired already")
	short := &loader{key: drivertest.Key()}
	_, err := memcacheddriver.Fetch(t.Context(), store, short.key, 300*time.Millisecond, short.load)
	require.NoError(t, err)
	memcachedtest.Eventually(t, func() bool { return errors.Is(store.Get(t.Context(), short.key, new(page)), kv.ErrNotFound) }, "it ends")
}

// Each has a value of his own.
func TestFetchersOfAProcessShareALoad(t *testing.T) {
	t.Parallel()
	store := drivertest.OpenStore(t, memcachedtest.Addr(t))
	b := newBlocked(drivertest.Key())
	var results []<-chan fetched
	for range 200 {
		results = append(results, fetching(t.Context(), store, b.key, time.Hour, b.load))
	}
	<-b.begun
	b.end <- nil
	for _, r := range results {
		got := <-r
		require.NoError(t, got.err)
		require.Equal(t, pageOf(b.key), got.page)
		got.page.Words["mine"] = 1
	}
	assert.EqualValues(t, 1, b.loads.Load())
}

// coldKey makes this process one of those of TestFetchersOfManyProcessesShareALoad.
const coldKey = "MEMCACHEDDRIVER_TEST_COLD_KEY"

func TestFetchersOfManyProcessesShareALoad(t *testing.T) {
	if key := os.Getenv(coldKey); key != "" {
		fetchCold(t, os.Getenv("MEMCACHEDDRIVER_TEST_SERVER"), key)
		return
	}
	t.Parallel()
	for name, addr := range map[string]string{
		"meta": memcachedtest.Start(t).Addr(), "classic": memcachedtest.StartClassic(t, memcachedtest.Start(t).Addr()),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			key := drivertest.Key()
			client := memcache.New(addr)
			defer client.Close()
			for _, counter := range []string{"ready", "loads"} {
				require.NoError(t, client.Set(&memcache.Item{Key: counter, Value: []byte("0")}))
			}
			var processes sync.WaitGroup
			for range 4 {
				processes.Go(func() {
					cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFetchersOfManyProcessesShareALoad$", "-test.v")
					cmd.Env = append(os.Environ(), coldKey+"="+key, "MEMCACHEDDRIVER_TEST_SERVER="+addr)
					out, err := cmd.CombinedOutput()
					assert.NoError(t, err, "%s", out)
					assert.Contains(t, string(out), "250 have fetched")
				})
			}
			processes.Wait()
			item, err := client.Get("loads")
			require.NoError(t, err)
			assert.Equal(t, "1", strings.TrimSpace(string(item.Value)))
		})
	}
}

// fetchCold fetches a key from 250 goroutines, when three other processes do.
func fetchCold(t *testing.T, addr, key string) {
	store := drivertest.OpenStore(t, addr)
	native := memcacheddriver.UnwrapClient(store)
	_, err := native.Increment("ready", 1)
	require.NoError(t, err)
	memcachedtest.Eventually(t, func() bool {
		item, err := native.Get("ready")
		return err == nil && strings.TrimSpace(string(item.Value)) == "4"
	}, "all processes are there")
	var fetchers sync.WaitGroup
	for range 250 {
		fetchers.Go(func() {
			p, err := memcacheddriver.Fetch(t.Context(), store, key, time.Hour, func(context.Context) (page, error) {
				_, err := native.Increment("loads", 1)
				time.Sleep(300 * time.Millisecond)
				return pageOf(key), err
			}, memcacheddriver.FetchWait(drivertest.Never))
			assert.NoError(t, err)
			assert.Equal(t, pageOf(key), p)
		})
	}
	fetchers.Wait()
	fmt.Println("250 have fetched")
}

func TestAFetchThatFailsFreesTheLease(t *testing.T) {
	t.Parallel()
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		ctx := t.Context()
		store, other := drivertest.OpenStore(t, addr), drivertest.OpenStore(t, addr)
		failure := errors.New("no database")
		b := newBlocked(drivertest.Key())
		first := fetching(ctx, store, b.key, time.Hour, b.load)
		second := fetching(ctx, store, b.key, time.Hour, b.load)
		<-b.begun
		memcachedtest.Eventually(t, func() bool { return memcacheddriver.Fetchers(store, b.key) == 2 }, "both wait")
		elsewhere := newBlocked(b.key)
		waits := fetching(ctx, other, b.key, time.Hour, elsewhere.load, memcacheddriver.FetchWait(drivertest.Never))
		b.end <- failure
		for _, r := range []<-chan fetched{first, second} {
			assert.Equal(t, failure, (<-r).err, "as it is")
		}
		<-elsewhere.begun
		elsewhere.end <- nil
		got := <-waits
		require.NoError(t, got.err)
		assert.Equal(t, pageOf(b.key), got.page)
	})
}

func TestAFetchThatPanics(t *testing.T) {
	t.Parallel()
	addr := memcachedtest.Addr(t)
	store := drivertest.OpenStore(t, addr)
	key := drivertest.Key()
	failure := errors.New("mine")
	proceed := make(chan bool)
	var callers sync.WaitGroup
	for range 2 {
		callers.Go(func() {
			defer func() {
				err, ok := recover().(error)
				assert.True(t, ok, "it has not panicked")
				assert.ErrorIs(t, err, failure)
				assert.ErrorContains(t, err, "fetch_test.go", "where it was")
			}()
			_, _ = memcacheddriver.Fetch(t.Context(), store, key, time.Hour, func(context.Context) (page, error) {
				<-proceed
				panic(failure)
			})
		})
	}
	memcachedtest.Eventually(t, func() bool { return memcacheddriver.Fetchers(store, key) == 2 }, "both wait")
	close(proceed)
	callers.Wait()
	requireLeaseFree(t, addr, key)

	_, err := memcacheddriver.Fetch(t.Context(), store, key, time.Hour, func(context.Context) (page, error) {
		runtime.Goexit()
		return page{}, nil
	})
	require.ErrorContains(t, err, "Goexit")
	requireLeaseFree(t, addr, key)
}

func TestAFetcherThatLeaves(t *testing.T) {
	t.Parallel()
	addr := memcachedtest.Addr(t)
	store := drivertest.OpenStore(t, addr)
	type tag struct{}
	b := newBlocked(drivertest.Key())
	saw := make(chan any, 1)
	load := func(ctx context.Context) (page, error) {
		saw <- ctx.Value(tag{})
		return b.load(ctx)
	}
	cause := errors.New("the reader has gone")
	ctx, cancel := context.WithCancelCause(context.WithValue(t.Context(), tag{}, "mine"))
	first := fetching(ctx, store, b.key, time.Hour, load)
	<-b.begun
	assert.Equal(t, "mine", <-saw)
	stays := fetching(t.Context(), store, b.key, time.Hour, load)
	memcachedtest.Eventually(t, func() bool { return memcacheddriver.Fetchers(store, b.key) == 2 }, "both wait")
	cancel(cause)
	got := <-first
	require.ErrorIs(t, got.err, context.Canceled)
	assert.ErrorContains(t, got.err, cause.Error())
	b.end <- nil
	got = <-stays
	require.NoError(t, got.err)
	assert.Equal(t, pageOf(b.key), got.page)
	assert.EqualValues(t, 1, b.loads.Load())

	// When nobody waits any more, the load's context ends.
	alone := newBlocked(drivertest.Key())
	ctx, cancel = context.WithCancelCause(t.Context())
	only := fetching(ctx, store, alone.key, time.Hour, alone.load)
	<-alone.begun
	cancel(cause)
	require.ErrorIs(t, (<-only).err, context.Canceled)
	memcachedtest.Eventually(t, func() bool {
		_, held := drivertest.ServerTTL(t, addr, alone.key+"~lease")
		return !held
	}, "the lease is free")
	_, err := memcacheddriver.Fetch(ctx, store, alone.key, time.Hour, alone.load)
	require.ErrorIs(t, err, context.Canceled)
	assert.Empty(t, alone.begun, "who comes too late loads nothing")
}

func TestAFetcherWaitsForAnotherProcess(t *testing.T) {
	t.Parallel()
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		store, other := drivertest.OpenStore(t, addr), drivertest.OpenStore(t, addr)
		b := newBlocked(drivertest.Key())
		first := fetching(t.Context(), store, b.key, time.Hour, b.load)
		<-b.begun
		idle := &loader{key: b.key}
		waits := fetching(t.Context(), other, b.key, time.Hour, idle.load, memcacheddriver.FetchWait(drivertest.Never))
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		_, err := memcacheddriver.Fetch(ctx, other, b.key, time.Hour, idle.load, memcacheddriver.FetchWait(drivertest.Never))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		b.end <- nil
		for _, r := range []<-chan fetched{first, waits} {
			got := <-r
			require.NoError(t, got.err)
			assert.Equal(t, pageOf(b.key), got.page)
		}
		assert.Zero(t, idle.loads.Load())
	})
}

// A lease that nobody gives back, as its process is dead.
func TestAFetcherDoesNotWaitForTheDead(t *testing.T) {
	t.Parallel()
	store := drivertest.OpenStore(t, memcachedtest.Addr(t))
	native := memcacheddriver.UnwrapClient(store)
	l := &loader{key: drivertest.Key()}
	require.NoError(t, native.Add(&memcache.Item{Key: l.key + "~lease", Value: []byte("the dead one's"), Expiration: 2}))
	start := time.Now()
	for _, wait := range []time.Duration{0, 100 * time.Millisecond} {
		p, err := memcacheddriver.Fetch(t.Context(), store, l.key, time.Hour, l.load, memcacheddriver.FetchWait(wait))
		require.NoError(t, err)
		assert.Equal(t, pageOf(l.key), p)
		assert.GreaterOrEqual(t, time.Since(start), wait)
		requireGone(t, store, l.key) // it is the other one's to store
	}
	assert.EqualValues(t, 2, l.loads.Load())
	_, err := memcacheddriver.Fetch(t.Context(), store, l.key, time.Hour, l.load, memcacheddriver.FetchWait(drivertest.Never))
	require.NoError(t, err, "the lease has expired")
	require.NoError(t, store.Get(t.Context(), l.key, new(page)))
}

// Though it takes longer than the lease lasts.
func TestALongLoadKeepsItsLease(t *testing.T) {
	t.Parallel()
	store, other := drivertest.OpenStore(t, memcachedtest.Addr(t)), drivertest.OpenStore(t, memcachedtest.Addr(t))
	b := newBlocked(drivertest.Key())
	first := fetching(t.Context(), store, b.key, time.Hour, b.load, memcacheddriver.FetchLease(300*time.Millisecond))
	<-b.begun
	idle := &loader{key: b.key}
	waits := fetching(t.Context(), other, b.key, time.Hour, idle.load, memcacheddriver.FetchWait(drivertest.Never))
	time.Sleep(4 * time.Second)
	b.end <- nil
	require.NoError(t, (<-first).err)
	require.NoError(t, (<-waits).err)
	assert.Zero(t, idle.loads.Load())
	require.NoError(t, store.Get(t.Context(), b.key, new(page)))
}

func TestFetchDoesWithoutACacheThatIsDown(t *testing.T) {
	t.Parallel()
	dead := memcachedtest.StartFake(t, nil)
	dead.Close()
	frozen := memcachedtest.StartFake(t, memcachedtest.Script{"*": memcachedtest.Hang})
	for what, store := range map[string]*kv.Store{
		"dead":   drivertest.OpenStore(t, dead.Addr()),
		"frozen": drivertest.OpenStore(t, frozen.Addr(), memcacheddriver.WithTimeout(200*time.Millisecond)),
	} {
		b := newBlocked("k")
		var results []<-chan fetched
		for range 20 {
			results = append(results, fetching(t.Context(), store, b.key, time.Hour, b.load))
		}
		<-b.begun
		memcachedtest.Eventually(t, func() bool { return memcacheddriver.Fetchers(store, b.key) == 20 }, "all share a load, the server is %s", what)
		b.end <- nil
		for _, r := range results {
			got := <-r
			require.NoError(t, got.err, what)
			require.Equal(t, pageOf(b.key), got.page, what)
		}
		assert.EqualValues(t, 1, b.loads.Load(), what)
		failure := errors.New("no database either")
		_, err := memcacheddriver.Fetch(t.Context(), store, b.key, time.Hour, func(context.Context) (page, error) { return page{}, failure })
		assert.Equal(t, failure, err, what)
	}
	store := drivertest.OpenStore(t, dead.Addr())
	require.NoError(t, store.Close())
	_, err := memcacheddriver.Fetch(t.Context(), store, "k", time.Hour, (&loader{}).load)
	assert.ErrorIs(t, err, memcacheddriver.ErrNotOpen)
}

func TestFetchWhileTheServerIsKilled(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	store, other := drivertest.OpenStore(t, server.Addr()), drivertest.OpenStore(t, server.Addr())
	b, elsewhere := newBlocked("k"), newBlocked("k")
	first := fetching(t.Context(), store, b.key, time.Hour, b.load)
	<-b.begun
	waits := fetching(t.Context(), other, b.key, time.Hour, elsewhere.load, memcacheddriver.FetchWait(drivertest.Never))
	server.Kill()
	<-elsewhere.begun // it does not wait for what nobody can store
	elsewhere.end <- nil
	require.NoError(t, (<-waits).err)
	b.end <- nil
	got := <-first
	require.NoError(t, got.err)
	assert.Equal(t, pageOf("k"), got.page)
}

func TestFetchOverwritesNobody(t *testing.T) {
	t.Parallel()
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		ctx := t.Context()
		store := drivertest.OpenStore(t, addr)
		b := newBlocked(drivertest.Key())
		result := fetching(ctx, store, b.key, time.Hour, b.load)
		<-b.begun
		require.NoError(t, store.Set(ctx, b.key, page{Title: "newer"}))
		b.end <- nil
		require.NoError(t, (<-result).err)
		var p page
		require.NoError(t, store.Get(ctx, b.key, &p))
		assert.Equal(t, "newer", p.Title)
		requireLeaseFree(t, memcachedtest.Addr(t), b.key)
	})
}

func TestDeleteFetchedTakesWhatIsBeingLoaded(t *testing.T) {
	t.Parallel()
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		ctx := t.Context()
		stores := []*kv.Store{drivertest.OpenStore(t, addr), drivertest.OpenStore(t, addr)}
		for _, deleter := range stores {
			b := newBlocked(drivertest.Key())
			stale := fetching(ctx, stores[0], b.key, time.Hour, b.load)
			<-b.begun
			require.NoError(t, memcacheddriver.DeleteFetched(ctx, deleter, b.key, drivertest.Key()))
			fresh := newBlocked(b.key)
			if deleter == stores[0] {
				// Who comes now does not share it.
				result := fetching(ctx, stores[0], b.key, time.Hour, fresh.load)
				<-fresh.begun
				fresh.end <- nil
				require.NoError(t, (<-result).err)
				require.NoError(t, memcacheddriver.DeleteFetched(ctx, deleter, b.key))
			}
			b.end <- nil
			require.NoError(t, (<-stale).err)
			requireGone(t, stores[0], b.key)
		}
	})
}

// The deletion of the lease comes between the storing of the value and its return.
func TestDeleteFetchedInTheMomentOfStoring(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]memcachedtest.Handler{
		"deleted": memcachedtest.Say("NOT_FOUND\r\n"),
		"taken":   memcachedtest.Say("EXISTS\r\n"),
		"unknown": memcachedtest.HangUp,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var server items
			script := server.script()
			script["cas"] = func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
				if cmd.Keys()[0] == "k~lease" {
					answer(c, cmd)
					return
				}
				c.Say(server.do(cmd))
			}
			f := memcachedtest.StartFake(t, script)
			store := drivertest.OpenStore(t, f.Addr())
			l := &loader{key: "k"}
			_, err := memcacheddriver.Fetch(t.Context(), store, "k", time.Hour, l.load, memcacheddriver.FetchWait(drivertest.Never))
			require.NoError(t, err)
			assert.Contains(t, f.Received(), "add k ")
			assert.False(t, server.has("k"), "it is taken back")
		})
	}
}

// What was set after that is somebody else's.
func TestFetchTakesBackOnlyItsOwn(t *testing.T) {
	t.Parallel()
	var server items
	script := server.script()
	script["cas"] = func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		if cmd.Keys()[0] == "k" {
			c.Say(server.do(cmd))
			return
		}
		server.do(memcachedtest.Command{Name: "set", Args: []string{"k", "0", "0", "5"}, Data: []byte("newer")})
		c.Say("NOT_FOUND\r\n")
	}
	store := drivertest.OpenStore(t, memcachedtest.StartFake(t, script).Addr())
	l := &loader{key: "k"}
	_, err := memcacheddriver.Fetch(t.Context(), store, "k", time.Hour, l.load, memcacheddriver.FetchWait(drivertest.Never))
	require.NoError(t, err)
	assert.True(t, server.has("k"))
}

func TestFetchRefresh(t *testing.T) {
	t.Parallel()
	addr := memcachedtest.Addr(t)
	store, other := drivertest.OpenStore(t, addr), drivertest.OpenStore(t, addr)
	for _, shared := range []bool{false, true} {
		memcacheddriver.ShareAll(memcacheddriver.Unwrap(store), shared)
		ctx := t.Context()
		ahead := memcacheddriver.FetchRefresh(time.Minute)
		old := page{Title: "old"}
		for name, ttl := range map[string]time.Duration{"not due": time.Hour, "no end": 0} {
			l := &loader{key: drivertest.Key()}
			require.NoError(t, store.Set(ctx, l.key, old, kv.WithTTL(ttl)))
			p, err := memcacheddriver.Fetch(ctx, store, l.key, time.Hour, l.load, ahead)
			require.NoError(t, err)
			assert.Equal(t, old, p, name)
		}

		b := newBlocked(drivertest.Key())
		require.NoError(t, store.Set(ctx, b.key, old, kv.WithTTL(30*time.Second)))
		first := fetching(ctx, store, b.key, time.Hour, b.load, ahead)
		<-b.begun
		for _, s := range []*kv.Store{store, other} {
			p, err := memcacheddriver.Fetch(ctx, s, b.key, time.Hour, b.load, ahead)
			require.NoError(t, err)
			assert.Equal(t, old, p, "the others do not wait")
		}
		b.end <- nil
		got := <-first
		require.NoError(t, got.err)
		assert.Equal(t, pageOf(b.key), got.page)
		left, _ := drivertest.ServerTTL(t, addr, b.key)
		assert.Greater(t, left, int64(3000))
		requireLeaseFree(t, addr, b.key)

		// A load that fails, or whose caller leaves, is no failure.
		for _, end := range []error{errors.New("no database"), nil} {
			b := newBlocked(drivertest.Key())
			require.NoError(t, store.Set(ctx, b.key, old, kv.WithTTL(30*time.Second)))
			ctx, cancel := context.WithCancel(ctx)
			result := fetching(ctx, store, b.key, time.Hour, b.load, ahead)
			<-b.begun
			if end == nil {
				cancel()
			} else {
				b.end <- end
			}
			got := <-result
			cancel()
			require.NoError(t, got.err)
			assert.Equal(t, old, got.page)
		}

		// What has been changed meanwhile stays.
		for name, change := range map[string]func(key string) error{
			"set":            func(key string) error { return other.Set(ctx, key, page{Title: "newer"}) },
			"delete":         func(key string) error { return other.Delete(ctx, key) },
			"delete fetched": func(key string) error { return memcacheddriver.DeleteFetched(ctx, other, key) },
		} {
			b := newBlocked(drivertest.Key())
			require.NoError(t, store.Set(ctx, b.key, old, kv.WithTTL(30*time.Second)))
			result := fetching(ctx, store, b.key, time.Hour, b.load, ahead)
			<-b.begun
			require.NoError(t, change(b.key))
			b.end <- nil
			require.NoError(t, (<-result).err)
			var p page
			if name == "set" {
				require.NoError(t, store.Get(ctx, b.key, &p), name)
				assert.Equal(t, "newer", p.Title)
			} else {
				requireGone(t, store, b.key)
			}
		}

		// One that has no value any more.
		gone := drivertest.Key()
		require.NoError(t, store.Set(ctx, gone, old, kv.WithTTL(30*time.Second)))
		_, err := memcacheddriver.Fetch(ctx, store, gone, time.Hour, func(context.Context) (page, error) { return page{}, kv.ErrNotFound }, ahead)
		require.ErrorIs(t, err, kv.ErrNotFound)
		requireGone(t, store, gone)
	}

	classic := drivertest.OpenStore(t, memcachedtest.StartClassic(t, addr))
	l := &loader{key: drivertest.Key()}
	require.NoError(t, classic.Set(t.Context(), l.key, page{Title: "old"}, kv.WithTTL(30*time.Second)))
	p, err := memcacheddriver.Fetch(t.Context(), classic, l.key, time.Hour, l.load, memcacheddriver.FetchRefresh(time.Minute))
	require.NoError(t, err)
	assert.Equal(t, "old", p.Title, "it cannot be told")
}

// Who misses while a refresh is under way waits for it, and loads if it comes to nothing.
func TestAFetchThatJoinsARefresh(t *testing.T) {
	t.Parallel()
	store := drivertest.OpenStore(t, memcachedtest.Addr(t))
	ctx := t.Context()
	b, mine := newBlocked(drivertest.Key()), newBlocked(drivertest.Key())
	require.NoError(t, store.Set(ctx, b.key, page{Title: "old"}, kv.WithTTL(30*time.Second)))
	refreshes := fetching(ctx, store, b.key, time.Hour, b.load, memcacheddriver.FetchRefresh(time.Minute))
	<-b.begun
	require.NoError(t, store.Delete(ctx, b.key))
	joins := fetching(ctx, store, b.key, time.Hour, mine.load)
	memcachedtest.Eventually(t, func() bool { return memcacheddriver.Fetchers(store, b.key) == 2 }, "both wait")
	b.end <- nil
	require.NoError(t, (<-refreshes).err)
	got := <-joins
	require.NoError(t, got.err)
	assert.Equal(t, pageOf(b.key), got.page)
	assert.Zero(t, mine.loads.Load())
}

func TestFetchRemembersThatThereIsNone(t *testing.T) {
	t.Parallel()
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		ctx := t.Context()
		store, other := drivertest.OpenStore(t, addr), drivertest.OpenStore(t, addr)
		var loads atomic.Int32
		none := func(context.Context) (page, error) {
			loads.Add(1)
			return page{}, fmt.Errorf("user 42: %w", kv.ErrNotFound)
		}
		fetch := func(key string, opts ...memcacheddriver.FetchOption) {
			t.Helper()
			for _, s := range []*kv.Store{store, other, store} {
				_, err := memcacheddriver.Fetch(ctx, s, key, time.Hour, none, opts...)
				require.ErrorIs(t, err, kv.ErrNotFound)
			}
		}
		fetch(drivertest.Key())
		assert.EqualValues(t, 3, loads.Swap(0), "not unless it is asked to")

		key := drivertest.Key()
		fetch(key, memcacheddriver.FetchNotFound(time.Minute))
		assert.EqualValues(t, 1, loads.Swap(0))
		requireGone(t, store, key)
		require.NoError(t, memcacheddriver.DeleteFetched(ctx, store, key))
		fetch(key, memcacheddriver.FetchNotFound(time.Minute))
		assert.EqualValues(t, 1, loads.Swap(0))
		require.NoError(t, store.Set(ctx, key, page{Title: "there"}))
		p, err := memcacheddriver.Fetch(ctx, store, key, time.Hour, none)
		require.NoError(t, err)
		assert.Equal(t, "there", p.Title)

		// A deletion meanwhile is honoured here, too.
		b := newBlocked(drivertest.Key())
		result := fetching(ctx, store, b.key, time.Hour, b.load, memcacheddriver.FetchNotFound(time.Minute))
		<-b.begun
		require.NoError(t, memcacheddriver.DeleteFetched(ctx, other, b.key))
		b.end <- kv.ErrNotFound
		require.ErrorIs(t, (<-result).err, kv.ErrNotFound)
		l := &loader{key: b.key}
		_, err = memcacheddriver.Fetch(ctx, store, b.key, time.Hour, l.load)
		require.NoError(t, err)

		short := drivertest.Key()
		fetch(short, memcacheddriver.FetchNotFound(time.Second))
		memcachedtest.Eventually(t, func() bool {
			l := &loader{key: short}
			_, err := memcacheddriver.Fetch(ctx, store, short, time.Hour, l.load)
			return err == nil
		}, "it ends")
	})
}

func TestFetchReplacesWhatCannotBeDecoded(t *testing.T) {
	t.Parallel()
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		ctx := t.Context()
		store := drivertest.OpenStore(t, addr)
		l := &loader{key: drivertest.Key()}
		require.NoError(t, store.SetRaw(ctx, l.key, []byte("{no JSON")))
		for range 2 {
			p, err := memcacheddriver.Fetch(ctx, store, l.key, time.Hour, l.load)
			require.NoError(t, err)
			assert.Equal(t, pageOf(l.key), p)
		}
		assert.EqualValues(t, 1, l.loads.Load())
		_, err := memcacheddriver.Fetch(ctx, store, drivertest.Key(), time.Hour, func(context.Context) (func(), error) { return func() {}, nil })
		assert.ErrorIs(t, err, kv.ErrCodecEncode)
	})
}

// Values that are too large are the callers' all the same.
func TestFetchOfWhatTheServerRefuses(t *testing.T) {
	t.Parallel()
	store := drivertest.OpenStore(t, memcachedtest.Start(t).Addr())
	long := strings.Repeat("x", 2<<20)
	for range 2 {
		got, err := memcacheddriver.Fetch(t.Context(), store, "k", time.Hour, func(context.Context) (string, error) { return long, nil })
		require.NoError(t, err)
		require.Equal(t, len(long), len(got))
	}
	assert.EqualValues(t, 2, drivertest.Stat(t, memcacheddriver.Unwrap(store)).Errors)
}

func TestFetchChecksItsArguments(t *testing.T) {
	t.Parallel()
	store := drivertest.OpenStore(t, memcachedtest.Addr(t), memcacheddriver.WithKeyPrefix("1234567890"))
	l := &loader{}
	for _, opt := range []memcacheddriver.FetchOption{
		memcacheddriver.FetchRefresh(-1), memcacheddriver.FetchRefresh(time.Hour), memcacheddriver.FetchNotFound(-1), memcacheddriver.FetchWait(-1),
		memcacheddriver.FetchLease(0), memcacheddriver.FetchJitter(1), memcacheddriver.FetchJitter(-0.1),
	} {
		_, err := memcacheddriver.Fetch(t.Context(), store, "k", time.Hour, l.load, opt)
		assert.ErrorIs(t, err, memcacheddriver.ErrInvalidOption)
	}
	longest := strings.Repeat("k", 234)
	for key, want := range map[string]error{longest + "k": memcacheddriver.ErrInvalidKey, "a b": memcacheddriver.ErrInvalidKey, "": kv.ErrKeyEmpty} {
		_, err := memcacheddriver.Fetch(t.Context(), store, key, time.Hour, l.load)
		assert.ErrorIs(t, err, want)
		assert.ErrorIs(t, memcacheddriver.DeleteFetched(t.Context(), store, "k", key), want)
	}
	assert.Zero(t, l.loads.Load())
	_, err := memcacheddriver.Fetch(t.Context(), store, longest, time.Hour, l.load)
	require.NoError(t, err)
	require.NoError(t, memcacheddriver.DeleteFetched(t.Context(), store, longest))
	require.NoError(t, memcacheddriver.DeleteFetched(t.Context(), store))
}

// Several servers and keys, a proxy, and values that must not be mixed up.
func TestFetchersOfManyKeys(t *testing.T) {
	t.Parallel()
	servers, addrs := drivertest.StartServers(t, 3)
	proxy := drivertest.StartTwemproxy(t, servers)
	for _, dsn := range []string{strings.Join(addrs, ",") + "?distribution=ketama&key_prefix=a:", proxy} {
		stores := []*kv.Store{drivertest.OpenStore(t, dsn), drivertest.OpenStore(t, dsn)}
		var fetchers sync.WaitGroup
		for i := range 60 {
			fetchers.Go(func() {
				for n := range 50 {
					key := "key-" + strconv.Itoa((i*7+n)%20)
					store := stores[i%2]
					if n%10 == i%10 {
						assert.NoError(t, memcacheddriver.DeleteFetched(t.Context(), store, key))
						continue
					}
					l := &loader{key: key}
					p, err := memcacheddriver.Fetch(t.Context(), store, key, time.Minute, l.load)
					assert.NoError(t, err)
					assert.Equal(t, pageOf(key), p)
				}
			})
		}
		fetchers.Wait()
	}
}

func BenchmarkFetchHit(b *testing.B) {
	store := drivertest.OpenStore(b, memcachedtest.Start(b).Addr())
	l := &loader{key: "k"}
	_, err := memcacheddriver.Fetch(b.Context(), store, l.key, 0, l.load)
	require.NoError(b, err)
	for name, get := range map[string]func() error{
		"store.Get": func() error { return store.Get(b.Context(), l.key, new(page)) },
		"Fetch": func() error {
			_, err := memcacheddriver.Fetch(b.Context(), store, l.key, 0, l.load)
			return err
		},
		"Fetch with refresh": func() error {
			_, err := memcacheddriver.Fetch(b.Context(), store, l.key, 0, l.load, memcacheddriver.FetchRefresh(time.Second))
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := get(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
