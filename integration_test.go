package memcacheddriver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/log"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/codec"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/keyspace"
	"github.com/xraph/grove/kv/kvtest"
	"github.com/xraph/grove/kv/plugins"
)

// TestIntegration runs what the driver promises against Memcached containers,
// or, where Docker does not run, against local memcached processes. It is not
// parallel to other tests, because the conformance suite has a TTL of 50 ms in
// it and a busy machine none too spare.
func TestIntegration(t *testing.T) {
	start := startContainer
	if err := dockerRuns(t.Context()); err != nil {
		t.Logf("Docker does not run (%v): the cases run against local memcached processes instead", err)
		start = startProcess
	} else {
		t.Logf("the cases run against containers of %s", memcachedImage())
		requireImage(t)
	}

	nodes := make([]node, 4)
	var all sync.WaitGroup
	for i := range nodes {
		var args []string
		if i == 3 {
			args = []string{"-I", "4m", "-m", "64"}
		}
		all.Go(func() { nodes[i] = start(t, args...) })
	}
	all.Wait()
	if t.Failed() {
		return
	}
	var addrs []string
	for _, n := range nodes[:3] {
		addrs = append(addrs, n.addr())
	}

	for name, dsn := range map[string]string{
		"one server":    addrs[0],
		"three servers": strings.Join(addrs, ","),
	} {
		t.Run(name, func(t *testing.T) {
			for name, test := range map[string]func(t *testing.T, dsn string){
				"page":          testPage,
				"capabilities":  testCapabilities,
				"limitations":   testLimitations,
				"registry":      testRegistry,
				"conformance":   testConformance,
				"plugins":       testPlugins,
				"keyspace":      testKeyspace,
				"one goroutine": testMixedLoad(1),
				"16 goroutines": testMixedLoad(16),
			} {
				t.Run(name, func(t *testing.T) { test(t, dsn) })
			}
		})
	}
	t.Run("a server with a larger limit", func(t *testing.T) { testLargerLimit(t, nodes[3].addr()) })
	t.Run("keys on three servers", func(t *testing.T) { testSpread(t, addrs) })
	t.Run("one of three down", func(t *testing.T) { testOneDown(t, nodes[:3]) })
	t.Run("no persistence", func(t *testing.T) { testNoPersistence(t, nodes[0]) })
}

// node is a Memcached that can be stopped and started, in a container or not.
type node interface {
	addr() string
	stop(t *testing.T)
	start(t *testing.T) // empty, and maybe at another address
}

type process struct{ *memcachedtest.Server }

func startProcess(t *testing.T, args ...string) node {
	return process{memcachedtest.Start(t, args...)}
}

func (p process) addr() string     { return p.Addr() }
func (p process) stop(*testing.T)  { p.Kill() }
func (p process) start(*testing.T) { p.Restart() }

type container struct {
	testcontainers.Container
	at string
}

const port = "11211/tcp"

// startContainer may be called by any goroutine of the test, so it does not
// end it.
func startContainer(t *testing.T, args ...string) node {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, err := testcontainers.Run(ctx, memcachedImage(),
		testcontainers.WithCmd(args...),
		testcontainers.WithExposedPorts(port),
		// The image may have no shell to look from inside.
		testcontainers.WithWaitStrategy(wait.ForListeningPort(port).SkipInternalCheck().WithPollInterval(20*time.Millisecond)),
		testcontainers.WithLogger(log.TestLogger(t)),
	)
	t.Cleanup(func() {
		assert.NoError(t, testcontainers.TerminateContainer(c, testcontainers.StopTimeout(0)))
	})
	n := &container{Container: c}
	if assert.NoError(t, err, "a container of %s does not start", memcachedImage()) {
		n.find(t)
	}
	return n
}

// find waits until the container's server answers: Docker's own proxy accepts
// connections before.
func (c *container) find(t *testing.T) {
	var err error
	c.at, err = c.PortEndpoint(t.Context(), port, "")
	if !assert.NoError(t, err) {
		return
	}
	client := memcache.New(c.at)
	defer client.Close()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if err = client.Ping(); err == nil || time.Now().After(deadline) {
			break
		}
	}
	assert.NoError(t, err, "the container's memcached does not answer at %s", c.at)
}

func (c *container) addr() string { return c.at }

func (c *container) stop(t *testing.T) {
	atOnce := time.Duration(0)
	require.NoError(t, c.Stop(t.Context(), &atOnce))
}

func (c *container) start(t *testing.T) {
	require.NoError(t, c.Start(t.Context()))
	c.find(t)
}

func memcachedImage() string {
	if image := os.Getenv("MEMCACHED_IMAGE"); image != "" {
		return image
	}
	return "memcached:1.6-alpine"
}

func dockerRuns(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	docker, err := testcontainers.NewDockerProvider()
	if err != nil {
		return err
	}
	defer docker.Close()
	return docker.Health(ctx)
}

// requireImage makes sure of the image before testcontainers tries to pull it
// for a quarter of an hour.
func requireImage(t *testing.T) {
	t.Helper()
	docker, err := testcontainers.NewDockerProvider(testcontainers.WithLogger(log.TestLogger(t)))
	require.NoError(t, err)
	defer docker.Close()
	if _, err := docker.Client().ImageInspect(t.Context(), memcachedImage()); err == nil {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := docker.PullImage(ctx, memcachedImage()); err != nil {
		t.Fatalf("Docker runs, but has no image %s and cannot pull it: set MEMCACHED_IMAGE to one that it has, or to the name that scripts/memcached-image.sh prints, which builds one of the local memcached (%v)", memcachedImage(), err)
	}
}

// The snippets of Grove's page, as they compile.
func testPage(t *testing.T, dsn string) {
	ctx := t.Context()
	store := openStore(t, dsn, memcacheddriver.WithTimeout(10*time.Second), memcacheddriver.WithMaxIdleConns(10))
	require.NoError(t, store.Ping(ctx))

	// Basic usage.
	type Session struct{ User string }
	abc, resource := newKey()+":session:abc", newKey()+":lock:resource"
	require.NoError(t, store.Set(ctx, abc, Session{"ann"}, kv.WithTTL(30*time.Minute)))
	var session Session
	require.NoError(t, store.Get(ctx, abc, &session))
	assert.Equal(t, "ann", session.User)
	require.NoError(t, store.Delete(ctx, abc))
	assert.True(t, store.Get(ctx, abc, &session) == kv.ErrNotFound)
	require.NoError(t, store.Set(ctx, resource, "me", kv.WithTTL(10*time.Second), kv.WithNX()))
	assert.ErrorIs(t, store.Set(ctx, resource, "you", kv.WithTTL(10*time.Second), kv.WithNX()), kv.ErrConflict)
	assert.ErrorIs(t, store.Set(ctx, abc, Session{"bob"}, kv.WithTTL(30*time.Minute), kv.WithXX()), kv.ErrNotFound)
	require.NoError(t, store.Set(ctx, abc, Session{"bob"}))
	require.NoError(t, store.Set(ctx, abc, Session{"eve"}, kv.WithTTL(30*time.Minute), kv.WithXX()))
	require.NoError(t, store.Get(ctx, abc, &session))
	assert.Equal(t, "eve", session.User)

	// CompareAndSwap.
	mdb := memcacheddriver.Unwrap(store)
	counter := newKey()
	require.NoError(t, store.Set(ctx, counter, 0))
	increment := func(current []byte) ([]byte, error) {
		count, err := strconv.Atoi(string(current))
		return []byte(strconv.Itoa(count + 1)), err
	}
	require.NoError(t, mdb.CompareAndSwap(ctx, counter, increment))
	err := mdb.CompareAndSwap(ctx, counter, func(current []byte) ([]byte, error) {
		require.NoError(t, mdb.CompareAndSwap(ctx, counter, increment)) // another client
		return increment(current)
	})
	assert.ErrorIs(t, err, kv.ErrConflict)
	var count int
	require.NoError(t, store.Get(ctx, counter, &count))
	assert.Equal(t, 2, count)

	// The native client.
	client := memcacheddriver.UnwrapClient(store)
	views, err := client.Increment(counter, 1)
	require.NoError(t, err)
	assert.EqualValues(t, 3, views)
	lines := newKey()
	require.NoError(t, mdb.Set(ctx, lines, nil, 0))
	require.NoError(t, client.Append(&memcache.Item{Key: lines, Value: []byte("new entry\n")}))
	raw, err := store.GetRaw(ctx, lines)
	require.NoError(t, err)
	assert.Equal(t, "new entry\n", string(raw))
}

// The rows of the page's capability table.
func testCapabilities(t *testing.T, dsn string) {
	ctx := t.Context()
	store := openStore(t, dsn)
	info := store.Driver().Info()
	for row, c := range map[string]struct {
		capability driver.Capability
		yes        bool
		works      func() error
	}{
		"TTL": {driver.CapTTL, true, func() error {
			key := newKey()
			if err := store.Set(ctx, key, 1, kv.WithTTL(time.Second)); err != nil {
				return err
			}
			eventually(t, func() bool { return store.Get(ctx, key, new(int)) == kv.ErrNotFound }, "a key with a TTL of 1 s is gone")
			return nil
		}},
		"CAS": {driver.CapCAS, true, func() error {
			key := newKey()
			if err := store.Set(ctx, key, 1, kv.WithXX()); err != kv.ErrNotFound {
				return fmt.Errorf("XX of an absent key: %w", err)
			}
			if err := store.Set(ctx, key, 1, kv.WithNX()); err != nil {
				return err
			}
			return store.Set(ctx, key, 2, kv.WithXX())
		}},
		"Scan": {driver.CapScan, false, func() error {
			return store.Scan(ctx, "*", func(string) error { return nil })
		}},
		"Batch": {driver.CapBatch, true, func() error {
			k := newKeys(3)
			if err := store.MSet(ctx, map[string]any{k[0]: "a", k[1]: "b"}, kv.WithTTL(time.Minute)); err != nil {
				return err
			}
			got := make(map[string]any)
			if err := store.MGet(ctx, k, got); err != nil {
				return err
			}
			assert.Equal(t, map[string]any{k[0]: "a", k[1]: "b"}, got)
			return nil
		}},
		"PubSub":       {driver.CapPubSub, false, nil},
		"Transactions": {driver.CapTransaction, false, nil},
		"Streams":      {driver.CapStreams, false, nil},
	} {
		assert.Equal(t, c.yes, info.Has(c.capability), row)
		if c.works == nil {
			continue // the store has no call for it
		}
		if err := c.works(); c.yes {
			assert.NoError(t, err, row)
		} else {
			assert.True(t, err == kv.ErrNotSupported, "%s: %v", row, err)
		}
	}
	_, pubsub := store.Driver().(driver.PubSubDriver)
	_, transactions := store.Driver().(driver.TransactionDriver)
	_, scan := store.Driver().(driver.ScanDriver)
	assert.False(t, pubsub || transactions || scan)
}

// The page's limitations but for "no persistence".
func testLimitations(t *testing.T, dsn string) {
	ctx := t.Context()
	store := openStore(t, dsn)
	key := newKey()
	require.NoError(t, store.Set(ctx, key, "v", kv.WithTTL(time.Hour)))

	assert.ErrorIs(t, store.Scan(ctx, "*", func(string) error { return nil }), kv.ErrNotSupported)

	_, err := store.TTL(ctx, key)
	assert.ErrorIs(t, err, kv.ErrNotSupported)
	assert.NoError(t, store.Expire(ctx, key, time.Minute))
	asking := openStore(t, dsn, memcacheddriver.WithTTLQuery())
	ttl, err := asking.TTL(ctx, key)
	require.NoError(t, err, "unless asked for")
	assert.True(t, 0 < ttl && ttl <= time.Minute+time.Second, "%v", ttl)

	long := strings.Repeat("k", 250-len(key)) + key
	require.NoError(t, store.Set(ctx, long, "v"))
	assert.ErrorIs(t, store.Set(ctx, long+"k", "v"), memcacheddriver.ErrInvalidKey)
	assert.ErrorIs(t, store.Get(ctx, long+"k", new(string)), memcacheddriver.ErrInvalidKey)

	// 1 MB is for the value, the key and what the server adds.
	require.NoError(t, store.SetRaw(ctx, key, make([]byte, 1<<20-1024)))
	assert.ErrorIs(t, store.SetRaw(ctx, key, make([]byte, 1<<20)), memcacheddriver.ErrValueTooLarge)
	assert.True(t, store.Get(ctx, key, new(string)) == kv.ErrNotFound, "memcached removes what it could not replace")
}

func testLargerLimit(t *testing.T, dsn string) {
	store := openStore(t, dsn)
	key := newKey()
	value := bytes.Repeat([]byte("x"), 3<<20)
	require.NoError(t, store.SetRaw(t.Context(), key, value))
	got, err := store.GetRaw(t.Context(), key)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(value, got))
	assert.ErrorIs(t, store.SetRaw(t.Context(), key, make([]byte, 5<<20)), memcacheddriver.ErrValueTooLarge)
}

func testRegistry(t *testing.T, dsn string) {
	ctx := t.Context()
	drv, err := kv.OpenDriver(ctx, "memcached", "memcached://"+dsn+"?timeout=10s&max_idle_conns=4")
	require.NoError(t, err)
	store, err := kv.Open(drv, kv.WithCodec(codec.MsgPack()))
	require.NoError(t, err)
	defer store.Close()
	key := newKey()
	require.NoError(t, store.Set(ctx, key, "value"))
	var got string
	require.NoError(t, store.Get(ctx, key, &got))
	assert.Equal(t, "value", got)
}

// promised is the driver as Grove's page promises it: without a TTL query. The
// suite's TTLExpire, which asks for one, goes by the interface.
type promised struct {
	driver.Driver
	driver.BatchDriver
	driver.CASDriver
}

func testConformance(t *testing.T, dsn string) {
	t.Run("default", func(t *testing.T) {
		db := openDB(t, dsn)
		kvtest.RunConformanceSuite(t, promised{db, db, db})
	})
	t.Run("with the TTL query", func(t *testing.T) {
		kvtest.RunConformanceSuite(t, openDB(t, dsn, memcacheddriver.WithTTLQuery()))
	})
}

// Grove's plugins. None needs a scan.
func testPlugins(t *testing.T, dsn string) {
	ctx := t.Context()
	store := openStore(t, dsn)

	t.Run("counter", func(t *testing.T) {
		c := plugins.NewAtomicCounter(store, newKey())
		n, err := c.Get(ctx)
		require.NoError(t, err, "the plugin compares a miss by ==")
		assert.Zero(t, n)
		for want := range int64(3) {
			n, err = c.Increment(ctx, 1)
			require.NoError(t, err)
			assert.Equal(t, want+1, n)
		}
		n, err = c.Decrement(ctx, 2)
		require.NoError(t, err)
		assert.EqualValues(t, 1, n)
		require.NoError(t, c.Set(ctx, 9))
		require.NoError(t, c.Reset(ctx))
		n, err = c.Get(ctx)
		require.NoError(t, err)
		assert.Zero(t, n)
	})
	t.Run("rate limit", func(t *testing.T) {
		limit := plugins.NewRateLimiter(store, newKey(), 3, 2*time.Minute)
		for i := range 5 {
			r, err := limit.Allow(ctx, "ann")
			require.NoError(t, err)
			assert.Equal(t, i < 3, r.Allowed, "request %d", i)
			assert.Equal(t, max(0, 2-i), r.Remaining, "request %d", i)
		}
		r, err := limit.Allow(ctx, "bob")
		require.NoError(t, err)
		assert.True(t, r.Allowed)
		require.NoError(t, limit.Reset(ctx, "ann"))
		r, err = limit.Allow(ctx, "ann")
		require.NoError(t, err)
		assert.True(t, r.Allowed)

		// The window ends.
		short := plugins.NewRateLimiter(store, newKey(), 1, time.Second)
		_, err = short.Allow(ctx, "ann")
		require.NoError(t, err)
		eventually(t, func() bool {
			r, err := short.Allow(ctx, "ann")
			require.NoError(t, err)
			return r.Allowed
		}, "the window is over")
	})
	t.Run("lock", func(t *testing.T) {
		name := newKey()
		mine, yours := plugins.NewLock(store, name, time.Minute), plugins.NewLock(store, name, time.Minute)
		require.NoError(t, mine.Acquire(ctx))
		assert.ErrorIs(t, yours.Acquire(ctx), kv.ErrConflict)
		assert.Error(t, yours.AcquireWithRetry(ctx, time.Millisecond, 3))
		require.NoError(t, mine.Extend(ctx, 2*time.Minute))
		require.NoError(t, mine.Release(ctx))
		require.NoError(t, yours.Acquire(ctx))
		require.NoError(t, yours.Extend(ctx, -time.Second), "a lock that ends at once")
		assert.ErrorIs(t, yours.Extend(ctx, time.Minute), kv.ErrNotFound)
		require.NoError(t, mine.Acquire(ctx))

		// A lock whose owner died is free when its time is over.
		name = newKey()
		require.NoError(t, plugins.NewLock(store, name, time.Second).Acquire(ctx))
		require.NoError(t, plugins.NewLock(store, name, time.Minute).AcquireWithRetry(ctx, 20*time.Millisecond, 500))
	})
	t.Run("session", func(t *testing.T) {
		type data struct{ User string }
		sessions := plugins.NewSessionStore(store, plugins.WithSessionPrefix(newKey()), plugins.WithSessionTTL(time.Minute))
		id, err := sessions.Create(ctx, data{"ann"})
		require.NoError(t, err)
		var got data
		require.NoError(t, sessions.Get(ctx, id, &got))
		assert.Equal(t, "ann", got.User)
		require.NoError(t, sessions.Update(ctx, id, data{"bob"}))
		require.NoError(t, sessions.Touch(ctx, id))
		there, err := sessions.Exists(ctx, id)
		require.NoError(t, err)
		assert.True(t, there)
		require.NoError(t, sessions.Delete(ctx, id))
		there, err = sessions.Exists(ctx, id)
		require.NoError(t, err)
		assert.False(t, there)
		assert.Equal(t, kv.ErrNotFound, sessions.Get(ctx, id, &got))
		assert.Equal(t, kv.ErrNotFound, sessions.Touch(ctx, id))
	})
	t.Run("leaderboard", func(t *testing.T) {
		board := plugins.NewLeaderboard(store, newKey())
		size, err := board.Size(ctx)
		require.NoError(t, err, "the plugin compares a miss by ==")
		assert.Zero(t, size)
		for member, score := range map[string]float64{"ann": 3, "bob": 1, "eve": 2} {
			require.NoError(t, board.Add(ctx, member, score))
		}
		top, err := board.TopN(ctx, 2)
		require.NoError(t, err)
		assert.Equal(t, []plugins.LeaderboardEntry{{Member: "ann", Score: 3}, {Member: "eve", Score: 2}}, top)
		rank, err := board.Rank(ctx, "bob")
		require.NoError(t, err)
		assert.Equal(t, 3, rank)
		require.NoError(t, board.Remove(ctx, "ann"))
		_, err = board.Score(ctx, "ann")
		assert.Equal(t, kv.ErrNotFound, err)
	})
	t.Run("queue", func(t *testing.T) {
		q := plugins.NewQueue(store, newKey(), plugins.WithVisibilityTimeout(time.Minute))
		job, err := q.Dequeue(ctx)
		require.NoError(t, err, "the plugin compares a miss by ==")
		assert.Nil(t, job)
		for _, payload := range []string{"first", "second"} {
			_, err := q.Enqueue(ctx, payload)
			require.NoError(t, err)
		}
		for left, payload := range []string{"first", "second"} {
			job, err := q.Dequeue(ctx)
			require.NoError(t, err)
			require.NotNil(t, job)
			assert.Equal(t, payload, job.Payload)
			require.NoError(t, q.Ack(ctx, job.ID))
			size, err := q.Size(ctx)
			require.NoError(t, err)
			assert.Equal(t, 1-left, size)
		}
	})
}

func testKeyspace(t *testing.T, dsn string) {
	ctx := t.Context()
	type User struct {
		Name string `json:"name" msgpack:"name"`
		Age  int    `json:"age" msgpack:"age"`
	}
	store := openStore(t, dsn)
	for name, users := range map[string]*keyspace.Keyspace[User]{
		"JSON":    keyspace.New[User](store, newKey(), keyspace.WithTTL(time.Hour)),
		"MsgPack": keyspace.New[User](store, newKey(), keyspace.WithTTL(time.Hour), keyspace.WithCodec(codec.MsgPack()), keyspace.WithSeparator("/")),
	} {
		ann, bob := User{"Ann", 30}, User{"Bob", 40}
		_, err := users.Get(ctx, "ann")
		assert.True(t, err == kv.ErrNotFound, "%s: %v", name, err)
		require.NoError(t, users.Set(ctx, "ann", ann))
		require.NoError(t, users.Set(ctx, "bob", bob, kv.WithTTL(time.Minute)))
		got, err := users.Get(ctx, "ann")
		require.NoError(t, err, name)
		assert.Equal(t, ann, got)
		assert.Equal(t, kv.ErrConflict, users.Set(ctx, "ann", bob, kv.WithNX()))
		assert.Equal(t, kv.ErrNotFound, users.Set(ctx, "eve", bob, kv.WithXX()))

		entry, err := users.GetEntry(ctx, "ann")
		require.NoError(t, err, name)
		assert.Equal(t, ann, entry.Value)
		assert.Zero(t, entry.TTL, "no TTL query")

		n, err := users.Exists(ctx, "ann", "bob", "eve")
		require.NoError(t, err)
		assert.EqualValues(t, 2, n)
		if name == "JSON" { // Grove's MGet reads with the store's codec
			many, err := users.MGet(ctx, []string{"bob", "eve", "ann"})
			require.NoError(t, err)
			assert.Equal(t, map[string]User{"ann": ann, "bob": bob}, many)
		}
		assert.ErrorIs(t, users.Scan(ctx, "*", func(string) error { return nil }), kv.ErrNotSupported)
		require.NoError(t, users.Delete(ctx, "ann", "bob", "eve"))
		n, err = users.Exists(ctx, "ann", "bob", "eve")
		require.NoError(t, err)
		assert.Zero(t, n)
	}

	asking := keyspace.New[int](openStore(t, dsn, memcacheddriver.WithTTLQuery()), newKey(), keyspace.WithTTL(time.Hour))
	require.NoError(t, asking.Set(ctx, "k", 1))
	entry, err := asking.GetEntry(ctx, "k")
	require.NoError(t, err)
	assert.InDelta(t, time.Hour, entry.TTL, float64(time.Minute))
}

// testMixedLoad does everything at once and looks that no reply goes astray.
func testMixedLoad(goroutines int) func(t *testing.T, dsn string) {
	return func(t *testing.T, dsn string) {
		ctx := t.Context()
		db := openDB(t, dsn)
		var all sync.WaitGroup
		for range goroutines {
			all.Go(func() {
				k := newKeys(5)
				for i := range 20 {
					pairs := make(map[string][]byte)
					for j, key := range k[:4] {
						pairs[key] = fmt.Append(nil, key, i, j)
					}
					assert.NoError(t, db.MSet(ctx, pairs, time.Minute))
					got, err := db.MGet(ctx, k)
					assert.NoError(t, err)
					for j, key := range k {
						assert.Equal(t, pairs[key], got[j])
					}
					assert.NoError(t, db.CompareAndSwap(ctx, k[0], func(c []byte) ([]byte, error) {
						assert.Equal(t, pairs[k[0]], c)
						return append(c, '!'), nil
					}))
					one, err := db.Get(ctx, k[0])
					assert.NoError(t, err)
					assert.Equal(t, append(pairs[k[0]], '!'), one)
					n, err := db.Delete(ctx, k...)
					assert.NoError(t, err)
					assert.EqualValues(t, 4, n)
				}
			})
		}
		all.Wait()
	}
}

// Keys are where plain gomemcache looks for them, on all three servers.
func testSpread(t *testing.T, addrs []string) {
	db := openDB(t, strings.Join(addrs, ","))
	plain := memcache.New(addrs...)
	plain.Timeout = 10 * time.Second
	defer plain.Close()
	keys := keysOf(t, addrs, 3)
	for _, key := range concat(keys) {
		require.NoError(t, db.Set(t.Context(), key, []byte(key), 0))
	}
	for i, addr := range addrs {
		one := memcache.New(addr)
		one.Timeout = 10 * time.Second
		for j := range keys {
			items, err := one.GetMulti(keys[j])
			require.NoError(t, err)
			if i == j {
				assert.Len(t, items, 3)
			} else {
				assert.Empty(t, items, "a key of server %d is on server %d", j, i)
			}
		}
		require.NoError(t, one.Close())
	}
	items, err := plain.GetMulti(concat(keys))
	require.NoError(t, err)
	assert.Len(t, items, 9)
}

func testOneDown(t *testing.T, nodes []node) {
	ctx := t.Context()
	var addrs []string
	for _, n := range nodes {
		addrs = append(addrs, n.addr())
	}
	db := openDB(t, strings.Join(addrs, ","))
	keys := keysOf(t, addrs, 2)
	for _, key := range concat(keys) {
		require.NoError(t, db.Set(ctx, key, []byte(key), 0))
	}
	nodes[1].stop(t)

	err := db.Ping(ctx)
	require.Error(t, err)
	assert.Equal(t, addrs[1], requireOpError(t, err).Server)
	got, err := db.MGet(ctx, concat(keys))
	requireDead(t, err, "mget", addrs[1], keys[1])
	for i, key := range concat(keys) {
		if slices.Contains(keys[1], key) {
			assert.Nil(t, got[i])
		} else {
			assert.Equal(t, key, string(got[i]))
		}
	}
	_, err = db.Get(ctx, keys[1][0])
	requireDead(t, err, "get", addrs[1], keys[1][:1])
	_, err = db.Get(ctx, keys[0][0])
	assert.NoError(t, err)
}

// The page's "no persistence": a restart empties the server, and costs no call.
func testNoPersistence(t *testing.T, n node) {
	ctx := t.Context()
	before := openStore(t, n.addr())
	key := newKey()
	require.NoError(t, before.Set(ctx, key, "v"))
	addr := n.addr()
	n.stop(t)
	err := before.Get(ctx, key, new(string))
	assert.False(t, err == nil || errors.Is(err, kv.ErrNotFound), "a server that is down is no miss: %v", err)
	n.start(t)
	store := before
	if n.addr() != addr {
		store = openStore(t, n.addr())
	}
	eventually(t, func() bool { err = store.Get(ctx, key, new(string)); return errors.Is(err, kv.ErrNotFound) }, "the key is gone")
	assert.True(t, err == kv.ErrNotFound, "%v", err)
	require.NoError(t, store.Set(ctx, key, "v"))
}
