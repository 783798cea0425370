package memcacheddriver_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// forgotten is for a lease that nothing but its return ends while a test runs.
var forgotten = memcacheddriver.FetchLease(math.MaxInt64)

// items is a scripted memcached that keeps what it is given, so that a test can step in
// between.
type items struct {
	mu     sync.Mutex
	values map[string]string
	cas    map[string]int
	last   int
}

// script makes the commands of a Fetch on a server without meta.
func (s *items) script() memcachedtest.Script {
	s.values, s.cas = make(map[string]string), make(map[string]int)
	script := memcachedtest.Script{"mn": memcachedtest.Say("ERROR\r\n")}
	for _, name := range []string{"add", "cas", "set", "get", "gets"} {
		script[name] = func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) { c.Say(s.do(cmd)) }
	}
	return script
}

func (s *items) do(cmd memcachedtest.Command) (reply string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := cmd.Keys()[0]
	_, there := s.values[key]
	switch cmd.Name {
	case "get", "gets":
		for _, key := range cmd.Keys() {
			if value, ok := s.values[key]; ok {
				reply += fmt.Sprintf("VALUE %s 0 %d %d\r\n%s\r\n", key, len(value), s.cas[key], value)
			}
		}
		return reply + "END\r\n"
	case "add":
		if there {
			return "NOT_STORED\r\n"
		}
	case "cas":
		if !there {
			return "NOT_FOUND\r\n"
		}
		if cmd.Args[4] != strconv.Itoa(s.cas[key]) {
			return "EXISTS\r\n"
		}
	}
	s.last++
	s.values[key], s.cas[key] = string(cmd.Data), s.last
	if cmd.Args[2] == "2592001" { // long ago
		delete(s.values, key)
	}
	return "STORED\r\n"
}

func (s *items) has(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.values[key]
	return ok
}

func TestFetchGivesItsLeaseBack(t *testing.T) {
	t.Parallel()
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		ctx := t.Context()
		store := drivertest.OpenStore(t, addr)
		failure := errors.New("no database")
		for what, load := range map[string]func(ctx context.Context, key string) (page, error){
			"it is stored":      func(_ context.Context, key string) (page, error) { return pageOf(key), nil },
			"the load fails":    func(context.Context, string) (page, error) { return page{}, failure },
			"there is none":     func(context.Context, string) (page, error) { return page{}, kv.ErrNotFound },
			"a Set was quicker": func(ctx context.Context, key string) (page, error) { return page{}, store.Set(ctx, key, page{}) },
		} {
			key := drivertest.Key()
			_, _ = memcacheddriver.Fetch(ctx, store, key, time.Hour, func(ctx context.Context) (page, error) {
				left, held := drivertest.ServerTTL(t, memcachedtest.Addr(t), key+"~lease")
				assert.True(t, held, what)
				assert.Greater(t, left, int64(1<<20), what)
				return load(ctx, key)
			}, forgotten)
			requireLeaseFree(t, memcachedtest.Addr(t), key)
		}

		// Nobody waits any more.
		b := newBlocked(drivertest.Key())
		ctx, cancel := context.WithCancel(ctx)
		result := fetching(ctx, store, b.key, time.Hour, b.load, forgotten)
		<-b.begun
		cancel()
		require.ErrorIs(t, (<-result).err, context.Canceled)
		memcachedtest.Eventually(t, func() bool {
			_, held := drivertest.ServerTTL(t, memcachedtest.Addr(t), b.key+"~lease")
			return !held
		}, "the lease is given back")
	})
}

// A caller that leaves while the server is taking the lease.
func TestAFetcherThatLeavesWhileItTakesTheLease(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var server items
	script := server.script()
	script["add"] = func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		server.do(cmd)
		cancel()
		c.Hang()
	}
	store := drivertest.OpenStore(t, memcachedtest.StartFake(t, script).Addr())
	l := &loader{key: "k"}
	_, err := memcacheddriver.Fetch(ctx, store, "k", time.Hour, l.load)
	require.ErrorIs(t, err, context.Canceled)
	memcachedtest.Eventually(t, func() bool { return !server.has("k~lease") }, "the lease is given back")
	assert.Zero(t, l.loads.Load())
}

// Another has it by now: what was loaded may be old.
func TestFetchStoresNothingWithoutItsLease(t *testing.T) {
	t.Parallel()
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		ctx := t.Context()
		store, other := drivertest.OpenStore(t, addr), drivertest.OpenStore(t, addr)
		late, later := newBlocked(drivertest.Key()), newBlocked("")
		first := fetching(ctx, store, late.key, time.Hour, late.load)
		<-late.begun
		require.NoError(t, memcacheddriver.DeleteFetched(ctx, other, late.key))
		second := fetching(ctx, other, late.key, time.Hour, later.load, forgotten)
		<-later.begun
		late.end <- nil
		require.NoError(t, (<-first).err)
		requireGone(t, store, late.key)
		_, held := drivertest.ServerTTL(t, memcachedtest.Addr(t), late.key+"~lease")
		assert.True(t, held, "the lease is the other one's")
		later.end <- nil
		require.NoError(t, (<-second).err)
		require.NoError(t, store.Get(ctx, late.key, new(page)))
	})
}

// What the first one loaded is not what the second one waits for.
func TestFetchersAfterADeletionShareALoadOfTheirOwn(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := drivertest.OpenStore(t, memcachedtest.Addr(t))
	before, after := newBlocked(drivertest.Key()), newBlocked("after")
	first := fetching(ctx, store, before.key, time.Hour, before.load)
	<-before.begun
	require.NoError(t, memcacheddriver.DeleteFetched(ctx, store, before.key))
	second := fetching(ctx, store, before.key, time.Hour, after.load)
	<-after.begun
	before.end <- nil
	require.NoError(t, (<-first).err)
	third := fetching(ctx, store, before.key, time.Hour, after.load)
	memcachedtest.Eventually(t, func() bool { return memcacheddriver.Fetchers(store, before.key) == 2 }, "the third joins the second")
	after.end <- nil
	for _, r := range []<-chan fetched{second, third} {
		got := <-r
		require.NoError(t, got.err)
		assert.Equal(t, "after", got.page.Title)
	}
}

func TestDeleteFetchedDeletesTheLeaseFirst(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"delete": memcachedtest.Say("DELETED\r\n")})
	store := drivertest.OpenStore(t, f.Addr())
	require.NoError(t, memcacheddriver.DeleteFetched(t.Context(), store, "a", "b"))
	assert.Contains(t, f.Received(), "delete a~lease\r\ndelete b~lease\r\ndelete a\r\ndelete b\r\n")

	// Where that breaks no key has been deleted, and all are named.
	f.SetScript(memcachedtest.Script{"delete": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		if cmd.Keys()[0] == "a~lease" {
			c.Say("DELETED\r\n")
			return
		}
		c.Close()
	}})
	err := memcacheddriver.DeleteFetched(t.Context(), store, "a", "b")
	assert.Equal(t, []string{"a", "b"}, drivertest.RequireOpError(t, err).Keys)
}

// A refused meta set would remove what is there.
func TestFetchOfWhatIsRefusedTakesNothingAway(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := drivertest.OpenStore(t, memcachedtest.Start(t).Addr())
	long := strings.Repeat("x", 2<<20)
	_, err := memcacheddriver.Fetch(ctx, store, "k", time.Hour, func(ctx context.Context) (string, error) {
		return long, store.Set(ctx, "k", "newer")
	})
	require.NoError(t, err)
	requireValue(t, memcacheddriver.Unwrap(store), "k", `"newer"`)

	require.NoError(t, store.Set(ctx, "k", "old", kv.WithTTL(30*time.Second)))
	got, err := memcacheddriver.Fetch(ctx, store, "k", time.Hour, func(context.Context) (string, error) { return long, nil }, memcacheddriver.FetchRefresh(time.Minute))
	require.NoError(t, err)
	require.Equal(t, len(long), len(got))
	requireValue(t, memcacheddriver.Unwrap(store), "k", `"old"`)
}

// It is not another one that has it.
func TestALeaseThatIsRefusedIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{
		"mn":  memcachedtest.Say("ERROR\r\n"),
		"add": memcachedtest.Say("SERVER_ERROR out of memory storing object\r\n"),
	})
	store := drivertest.OpenStore(t, f.Addr())
	l := &loader{key: "k"}
	_, err := memcacheddriver.Fetch(t.Context(), store, "k", time.Hour, l.load, memcacheddriver.FetchWait(drivertest.Never))
	require.NoError(t, err)
	assert.Equal(t, 1, f.Count("add"))
}

// The answer to the storing is lost: it may have happened. The first try to take it back
// fails as well.
func TestFetchTakesBackWhatItMayHaveStored(t *testing.T) {
	t.Parallel()
	var server items
	script := server.script()
	script["add"] = func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		reply := server.do(cmd)
		if cmd.Keys()[0] == "k" {
			c.Close()
			return
		}
		c.Say(reply)
	}
	tries := 0
	script["cas"] = func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		if tries++; tries == 1 {
			c.Close()
			return
		}
		c.Say(server.do(cmd))
	}
	store := drivertest.OpenStore(t, memcachedtest.StartFake(t, script).Addr())
	l := &loader{key: "k"}
	_, err := memcacheddriver.Fetch(t.Context(), store, "k", time.Hour, l.load, memcacheddriver.FetchWait(drivertest.Never))
	require.NoError(t, err)
	assert.False(t, server.has("k"))
	assert.True(t, server.has("k~lease"), "nobody knows whose it is")
}

// A server that falls silent, at each exchange of a Fetch after the Get.
func TestFetchWaitsForASilentServerNoLongerThanItIsTold(t *testing.T) {
	t.Parallel()
	for _, silent := range []string{"get k k~lease", "add k~lease ", "gets k ", "gets k~lease ", "add k ", "cas k~lease "} {
		t.Run(silent, func(t *testing.T) {
			t.Parallel()
			var server items
			var gets atomic.Int32
			script := server.script()
			for name, answer := range script {
				script[name] = func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
					isGet := cmd.Line == "gets k" && gets.Add(1) == 1
					if strings.HasPrefix(cmd.Line+" ", silent) && !isGet {
						c.Hang()
						return
					}
					answer(c, cmd)
				}
			}
			f := memcachedtest.StartFake(t, script)
			store := drivertest.OpenStore(t, f.Addr(), memcacheddriver.WithTimeout(drivertest.Never))
			l := &loader{key: "k"}
			p, err := memcacheddriver.Fetch(t.Context(), store, "k", time.Hour, l.load, memcacheddriver.FetchWait(200*time.Millisecond))
			require.NoError(t, err)
			assert.Equal(t, pageOf("k"), p)
			assert.EqualValues(t, 1, l.loads.Load())
			assert.Contains(t, f.Received(), strings.TrimSpace(silent))
		})
	}
}

// It is found out by the Get, and not asked once more.
func TestFetchAsksAServerThatFailsNoMore(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"gets": memcachedtest.Say("SERVER_ERROR no\r\n")})
	store := drivertest.OpenStore(t, f.Addr())
	l := &loader{key: "k"}
	_, err := memcacheddriver.Fetch(t.Context(), store, "k", time.Hour, l.load)
	require.NoError(t, err)
	assert.Equal(t, 1, f.Count("gets"))
	assert.Zero(t, f.Count("get")+f.Count("add"))
	assert.EqualValues(t, 1, l.loads.Load())

	require.NoError(t, store.Close())
	_, err = memcacheddriver.Fetch(t.Context(), store, "k", time.Hour, l.load)
	require.ErrorIs(t, err, memcacheddriver.ErrNotOpen)
	assert.EqualValues(t, 1, l.loads.Load())
}

func TestFetchRefreshOfAMissIsAMiss(t *testing.T) {
	t.Parallel()
	dead := memcachedtest.StartFake(t, nil)
	dead.Close()
	failure := errors.New("no database")
	ahead := memcacheddriver.FetchRefresh(time.Minute)
	for what, addr := range map[string]string{
		"meta": memcachedtest.Addr(t), "classic": memcachedtest.StartClassic(t, memcachedtest.Addr(t)), "dead": dead.Addr(),
	} {
		store := drivertest.OpenStore(t, addr)
		key := drivertest.Key()
		_, err := memcacheddriver.Fetch(t.Context(), store, key, time.Hour, func(context.Context) (page, error) { return page{}, failure }, ahead)
		assert.Equal(t, failure, err, what)
		b := newBlocked(key)
		results := []<-chan fetched{fetching(t.Context(), store, key, time.Hour, b.load, ahead), fetching(t.Context(), store, key, time.Hour, b.load, ahead)}
		memcachedtest.Eventually(t, func() bool { return memcacheddriver.Fetchers(store, key) == 2 }, "both wait: %s", what)
		b.end <- nil
		for _, r := range results {
			got := <-r
			require.NoError(t, got.err, what)
			assert.Equal(t, pageOf(key), got.page, what)
		}
	}
}

// For a second, in which others get the old value without asking for the lease.
func TestARefreshThatFailedIsNotTriedAgainAtOnce(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := drivertest.OpenStore(t, memcachedtest.Addr(t))
	key := drivertest.Key()
	old := page{Title: "old"}
	require.NoError(t, store.Set(ctx, key, old, kv.WithTTL(30*time.Second)))
	var loads atomic.Int32
	fetch := func() {
		t.Helper()
		p, err := memcacheddriver.Fetch(ctx, store, key, time.Hour, func(context.Context) (page, error) {
			loads.Add(1)
			return page{}, errors.New("no database")
		}, memcacheddriver.FetchRefresh(time.Minute))
		require.NoError(t, err)
		require.Equal(t, old, p)
	}
	start := time.Now()
	for range 20 {
		fetch()
	}
	if time.Since(start) < 900*time.Millisecond { // else it may have been tried again
		assert.EqualValues(t, 1, loads.Load())
	}
	memcachedtest.Eventually(t, func() bool { fetch(); return loads.Load() > 1 }, "it is tried again")

	// Who misses does not wait for that.
	require.NoError(t, store.Delete(ctx, key))
	l := &loader{key: key}
	_, err := memcacheddriver.Fetch(ctx, store, key, time.Hour, l.load)
	require.NoError(t, err)
	assert.EqualValues(t, 1, l.loads.Load())
}

// It is remembered for a moment, but not for who misses.
func TestAMissAfterARefreshOfAnother(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := drivertest.OpenStore(t, memcachedtest.Addr(t))
	key := drivertest.Key()
	require.NoError(t, store.Set(ctx, key, page{Title: "old"}, kv.WithTTL(30*time.Second)))
	require.NoError(t, store.SetRaw(ctx, key+"~lease", []byte("another's"), kv.WithTTL(time.Hour)))
	p, err := memcacheddriver.Fetch(ctx, store, key, time.Hour, (&loader{}).load, memcacheddriver.FetchRefresh(time.Minute))
	require.NoError(t, err)
	assert.Equal(t, "old", p.Title)
	require.NoError(t, store.Delete(ctx, key, key+"~lease"))
	l := &loader{key: key}
	p, err = memcacheddriver.Fetch(ctx, store, key, time.Hour, l.load)
	require.NoError(t, err)
	assert.Equal(t, pageOf(key), p)
}

func TestFetchWithoutCASNumbers(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := drivertest.OpenStore(t, memcachedtest.Start(t, "-C").Addr())
	l := &loader{key: "k"}
	for range 2 {
		_, err := memcacheddriver.Fetch(ctx, store, "k", time.Hour, l.load)
		require.NoError(t, err)
	}
	assert.EqualValues(t, 1, l.loads.Load())
	require.NoError(t, memcacheddriver.DeleteFetched(ctx, store, "k"))

	require.NoError(t, store.Set(ctx, "k", page{Title: "old"}, kv.WithTTL(30*time.Second)))
	p, err := memcacheddriver.Fetch(ctx, store, "k", time.Hour, l.load, memcacheddriver.FetchRefresh(time.Minute))
	require.NoError(t, err)
	assert.Equal(t, "old", p.Title, "nothing could tell a Set that came meanwhile")
	assert.EqualValues(t, 1, l.loads.Load())

	b := newBlocked("none")
	require.NoError(t, store.SetRaw(ctx, b.key, []byte("{no JSON")))
	result := fetching(ctx, store, b.key, time.Hour, b.load)
	<-b.begun
	require.NoError(t, store.Set(ctx, b.key, page{Title: "newer"}))
	b.end <- nil
	require.NoError(t, (<-result).err)
	require.NoError(t, store.Get(ctx, b.key, &p))
	assert.Equal(t, "newer", p.Title)
}

func TestFetchWhileTheServersChange(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	_, addrs := drivertest.StartServers(t, 2)
	store := drivertest.OpenStore(t, addrs[0])
	db := memcacheddriver.Unwrap(store)
	b := newBlocked("k")
	first := fetching(ctx, store, "k", time.Hour, b.load)
	<-b.begun
	require.NoError(t, db.SetServers(addrs[1]))
	require.NoError(t, memcacheddriver.DeleteFetched(ctx, store, "k"))
	require.NoError(t, db.SetServers(addrs[0]))
	b.end <- nil
	require.NoError(t, (<-first).err)
	requireGone(t, store, "k")
	requireLeaseFree(t, addrs[0], "k")
}

// Only what a load says of it, and only where there is none.
func TestFetchRemembersNothingElse(t *testing.T) {
	t.Parallel()
	drivertest.MetaAndClassic(t, func(t *testing.T, addr string) {
		ctx := t.Context()
		store := drivertest.OpenStore(t, addr)
		remember := memcacheddriver.FetchNotFound(time.Hour)
		for what, load := range map[string]func(ctx context.Context, key string) (page, error){
			"a value":   func(_ context.Context, key string) (page, error) { return pageOf(key), nil },
			"a failure": func(context.Context, string) (page, error) { return page{}, errors.New("no database") },
			"a Set meanwhile": func(ctx context.Context, key string) (page, error) {
				return page{}, errors.Join(store.Set(ctx, key, page{}), kv.ErrNotFound)
			},
		} {
			l := &loader{key: drivertest.Key()}
			_, _ = memcacheddriver.Fetch(ctx, store, l.key, time.Hour, func(ctx context.Context) (page, error) { return load(ctx, l.key) }, remember)
			require.NoError(t, store.Delete(ctx, l.key))
			_, err := memcacheddriver.Fetch(ctx, store, l.key, time.Hour, l.load, remember)
			require.NoError(t, err, what)
			assert.EqualValues(t, 1, l.loads.Load(), what)
		}
	})
}

// bytesCodec hands bytes through, without a copy.
type bytesCodec struct{ scratch []byte }

func (c *bytesCodec) Encode(v any) ([]byte, error) {
	c.scratch = append(c.scratch[:0], v.([]byte)...)
	return c.scratch, nil
}
func (*bytesCodec) Decode(data []byte, v any) error { *v.(*[]byte) = data; return nil }
func (*bytesCodec) Name() string                    { return "bytes" }

func TestFetchersShareNoBytes(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store := drivertest.OpenStore(t, memcachedtest.Addr(t), memcacheddriver.WithStoreOptions(kv.WithCodec(&bytesCodec{})))
	key := drivertest.Key()
	proceed := make(chan bool)
	results := make(chan []byte, 2)
	for range 2 {
		go func() {
			value, err := memcacheddriver.Fetch(ctx, store, key, time.Hour, func(context.Context) ([]byte, error) {
				<-proceed
				return []byte("value"), nil
			})
			assert.NoError(t, err)
			results <- value
		}()
	}
	memcachedtest.Eventually(t, func() bool { return memcacheddriver.Fetchers(store, key) == 2 }, "both wait")
	close(proceed)
	one, two := <-results, <-results
	one[0] = 'X'
	assert.Equal(t, "value", string(two))
	_, err := store.Codec().Encode([]byte("other"))
	require.NoError(t, err)
	assert.Equal(t, "value", string(two), "it is not the codec's")
}

// Another process stores a value between the look at the key and the lease.
func TestFetchLooksAgainWhenItHasTheLease(t *testing.T) {
	t.Parallel()
	var server items
	script := server.script()
	script["add"] = func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		server.do(memcachedtest.Command{Name: "set", Args: []string{"k", "0", "0", "2"}, Data: []byte(`{"Title":"theirs"}`)})
		c.Say(server.do(cmd))
	}
	store := drivertest.OpenStore(t, memcachedtest.StartFake(t, script).Addr())
	l := &loader{key: "k"}
	p, err := memcacheddriver.Fetch(t.Context(), store, "k", time.Hour, l.load, memcacheddriver.FetchWait(drivertest.Never))
	require.NoError(t, err)
	assert.Equal(t, "theirs", p.Title)
	assert.Zero(t, l.loads.Load())
	assert.False(t, server.has("k~lease"))
}

func TestFetchThatIsNotToWaitLooksOnce(t *testing.T) {
	t.Parallel()
	var server items
	f := memcachedtest.StartFake(t, server.script())
	server.do(memcachedtest.Command{Name: "set", Args: []string{"k~lease", "0", "0", "9"}, Data: []byte("another's")})
	store := drivertest.OpenStore(t, f.Addr())
	l := &loader{key: "k"}
	_, err := memcacheddriver.Fetch(t.Context(), store, "k", time.Hour, l.load, memcacheddriver.FetchWait(0))
	require.NoError(t, err)
	assert.Equal(t, 1, f.Count("get"), "that of both keys")
}

// A lease that was taken away is another's, or what is remembered.
func TestALoadKeepsNoLeaseButItsOwn(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	store, other := drivertest.OpenStore(t, memcachedtest.Addr(t)), drivertest.OpenStore(t, memcachedtest.Addr(t))
	b := newBlocked(drivertest.Key())
	first := fetching(ctx, store, b.key, time.Hour, b.load, memcacheddriver.FetchLease(time.Second))
	<-b.begun
	require.NoError(t, memcacheddriver.DeleteFetched(ctx, other, b.key))
	_, err := memcacheddriver.Fetch(ctx, other, b.key, time.Hour, func(context.Context) (page, error) { return page{}, kv.ErrNotFound }, memcacheddriver.FetchNotFound(time.Second))
	require.ErrorIs(t, err, kv.ErrNotFound)
	memcachedtest.Eventually(t, func() bool {
		_, there := drivertest.ServerTTL(t, memcachedtest.Addr(t), b.key+"~lease")
		return !there
	}, "what is remembered ends")
	b.end <- nil
	require.NoError(t, (<-first).err)
	requireGone(t, store, b.key)
}

// The load of those who have left goes on for a while, as it does not look at its context.
func TestAFetcherDoesNotJoinALoadThatAllHaveLeft(t *testing.T) {
	t.Parallel()
	store := drivertest.OpenStore(t, memcachedtest.Addr(t))
	key := drivertest.Key()
	ctx, cancel := context.WithCancel(t.Context())
	begun, proceed := make(chan bool), make(chan bool)
	first := fetching(ctx, store, key, time.Hour, func(context.Context) (page, error) {
		begun <- true
		<-proceed
		return page{}, nil
	})
	<-begun
	cancel()
	require.ErrorIs(t, (<-first).err, context.Canceled)
	l := &loader{key: key}
	p, err := memcacheddriver.Fetch(t.Context(), store, key, time.Hour, l.load, memcacheddriver.FetchWait(0))
	require.NoError(t, err)
	assert.Equal(t, pageOf(key), p)
	close(proceed)
}
