package memcacheddriver_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
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

// traced is an operation that a recorder was told of.
type traced struct {
	memcacheddriver.Operation
	parent *traced
	result *memcacheddriver.Result // nil until its end
}

// recorder remembers what it is told, and finds what does not come in pairs.
type recorder struct {
	t testing.TB

	mu  sync.Mutex
	ops []*traced
}

type parentKey struct{}

func (r *recorder) Start(ctx context.Context, op memcacheddriver.Operation) context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	parent, _ := ctx.Value(parentKey{}).(*traced)
	o := &traced{Operation: op, parent: parent}
	r.ops = append(r.ops, o)
	return context.WithValue(ctx, parentKey{}, o)
}

func (r *recorder) End(ctx context.Context, result memcacheddriver.Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := ctx.Value(parentKey{}).(*traced)
	assert.Nil(r.t, o.result, "%s has ended twice", o.Name)
	o.result = &result
	started := o.Operation
	if started.Server == "" {
		started.Server = result.Server // which was not known yet
	}
	assert.Equal(r.t, started, result.Operation)
	assert.Equal(r.t, result.Err == nil, result.ErrorType == "", "%v", result)
	assert.Positive(r.t, result.Duration)
}

// take returns what calls have been told of since the last take, and forgets it. Dials
// stay out.
func (r *recorder) take() (ops []*traced) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.ops {
		if o.Name != "dial" {
			ops = append(ops, o)
		}
	}
	r.ops = nil
	return ops
}

func (r *recorder) dials() (ops []*traced) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, o := range r.ops {
		if o.Name == "dial" && o.result != nil {
			ops = append(ops, o)
		}
	}
	return ops
}

// one returns the result of the only operation since the last take.
func (r *recorder) one() memcacheddriver.Result {
	r.t.Helper()
	ops := r.take()
	require.Len(r.t, ops, 1)
	require.NotNil(r.t, ops[0].result, "it has not ended")
	return *ops[0].result
}

func openTraced(t *testing.T, dsn string, opts ...driver.Option) (*memcacheddriver.MemcachedDB, *recorder) {
	t.Helper()
	r := &recorder{t: t}
	return drivertest.Open(t, dsn, append(opts, memcacheddriver.WithTracer(r))...), r
}

// One operation for each, and one more for each server that a batch or a Ping asks.
func TestEveryCallIsTraced(t *testing.T) {
	t.Parallel()
	names := map[string]string{
		"SetNX": "setnx", "SetXX": "setxx", "CompareAndSwap": "cas",
		"MGet of one": "get", "MSet of one": "set",
	}
	_, addrs := drivertest.StartServers(t, 2)
	keys := drivertest.KeysOf(t, addrs, 1)
	for _, shared := range []bool{false, true} {
		db, r := openTraced(t, strings.Join(addrs, ","), memcacheddriver.WithTTLQuery())
		memcacheddriver.ShareAll(db, shared)
		for _, call := range drivertest.Calls {
			where := fmt.Sprintf("%s, shared: %t", call.Name, shared)
			key := keys[1][0]
			want := names[call.Name]
			if want == "" {
				want, _, _ = strings.Cut(strings.ToLower(call.Name), " ")
				if short := names[strings.TrimSuffix(call.Name, " under a second")]; short != "" {
					want = short
				}
			}
			require.NoError(t, call.Run(t.Context(), db, key), where)
			ops := r.take()
			require.NotEmpty(t, ops, where)
			whole := ops[0]
			assert.Equal(t, want, whole.Name, where)
			assert.Equal(t, call.Keys, whole.KeyCount, where)
			assert.False(t, whole.Part, where)
			assert.Nil(t, whole.parent, where)
			switch {
			case call.Keys == 1:
				assert.Len(t, ops, 1, where)
				assert.Equal(t, addrs[1], whole.Server, where)
			case want == "do":
				assert.Len(t, ops, 1, where)
				assert.Empty(t, whole.Server, where)
			default:
				assert.Empty(t, whole.Server, where)
				parts, asked := 0, make(map[string]bool)
				for _, part := range ops[1:] {
					assert.Same(t, whole, part.parent, where)
					assert.True(t, part.Part, where)
					assert.Equal(t, want, part.Name, where)
					assert.False(t, asked[part.Server], "%s: two parts of one server", where)
					asked[part.Server] = true
					parts += part.KeyCount
				}
				assert.Equal(t, call.Keys, parts, where)
				assert.NotEmpty(t, asked, where)
			}
			for _, o := range ops {
				if assert.NotNil(t, o.result, "%s has not ended", where) {
					assert.NoError(t, o.result.Err, where)
				}
				assert.Nil(t, o.Keys, where)
			}
		}
	}
}

func TestTracedResults(t *testing.T) {
	t.Parallel()
	for _, shared := range []bool{false, true} {
		for _, meta := range []bool{true, false} {
			t.Run(fmt.Sprintf("shared %t, meta %t", shared, meta), func(t *testing.T) {
				t.Parallel()
				addr := memcachedtest.Start(t).Addr()
				if !meta {
					addr = memcachedtest.StartClassic(t, addr)
				}
				db, r := openTraced(t, addr, memcacheddriver.WithTTLQuery())
				memcacheddriver.ShareAll(db, shared)
				ctx := t.Context()
				type counts struct{ Hits, Misses, Stores, BytesRead, BytesWritten int }
				for _, step := range []struct {
					name string
					do   func() error
					want counts
				}{
					{"get, not there", func() error { _, err := db.Get(ctx, "k"); return err }, counts{Misses: 1}},
					{"set", func() error { return db.Set(ctx, "k", []byte("12345"), 0) }, counts{Stores: 1, BytesWritten: 5}},
					{"set of nothing", func() error { return db.Set(ctx, "empty", nil, 0) }, counts{Stores: 1}},
					{"set under a second", func() error { return db.Set(ctx, "short", []byte("123"), 900*time.Millisecond) }, counts{Stores: 1, BytesWritten: 3}},
					{"set, too large", func() error { return db.Set(ctx, "large", make([]byte, 2<<20), 0) }, counts{}},
					{"get", func() error { _, err := db.Get(ctx, "k"); return err }, counts{Hits: 1, BytesRead: 5}},
					{"get of nothing", func() error { _, err := db.Get(ctx, "empty"); return err }, counts{Hits: 1}},
					{"setnx, there", func() error { _, err := db.SetNX(ctx, "k", []byte("1"), 0); return err }, counts{}},
					{"setnx", func() error { _, err := db.SetNX(ctx, "nx", []byte("1"), 0); return err }, counts{Stores: 1, BytesWritten: 1}},
					{"setxx, not there", func() error { _, err := db.SetXX(ctx, "xx", []byte("1"), 0); return err }, counts{}},
					{"setxx", func() error { _, err := db.SetXX(ctx, "nx", []byte("12"), 0); return err }, counts{Stores: 1, BytesWritten: 2}},
					{"exists", func() error { _, err := db.Exists(ctx, "k"); return err }, counts{Hits: 1}},
					{"exists, not there", func() error { _, err := db.Exists(ctx, "gone"); return err }, counts{Misses: 1}},
					{"exists of three", func() error { _, err := db.Exists(ctx, "k", "gone", "nx"); return err }, counts{Hits: 2, Misses: 1}},
					{"mget", func() error { _, err := db.MGet(ctx, []string{"k", "gone", "nx", "k"}); return err }, counts{Hits: 3, Misses: 1, BytesRead: 12}},
					{"mset", func() error { return db.MSet(ctx, map[string][]byte{"a": []byte("1"), "b": []byte("22")}, 0) }, counts{Stores: 2, BytesWritten: 3}},
					{"mset under a second", func() error {
						return db.MSet(ctx, map[string][]byte{"a": []byte("1"), "b": []byte("22")}, 900*time.Millisecond)
					}, counts{Stores: 2, BytesWritten: 3}},
					{"mset, one too large", func() error {
						return db.MSet(ctx, map[string][]byte{"a": []byte("1"), "b": make([]byte, 2<<20)}, 0)
					}, counts{Stores: 1, BytesWritten: 1}},
					{"expire", func() error { return db.Expire(ctx, "k", time.Hour) }, counts{Hits: 1}},
					{"expire, not there", func() error { return db.Expire(ctx, "gone", time.Hour) }, counts{Misses: 1}},
					{"cas", func() error {
						return db.CompareAndSwap(ctx, "nx", func([]byte) ([]byte, error) { return []byte("123"), nil })
					}, counts{Hits: 1, BytesRead: 2, Stores: 1, BytesWritten: 3}},
					{"cas, not there", func() error {
						return db.CompareAndSwap(ctx, "gone", func([]byte) ([]byte, error) { return nil, nil })
					}, counts{Misses: 1}},
					{"cas, overtaken", func() error {
						return db.CompareAndSwap(ctx, "nx", func([]byte) ([]byte, error) {
							return nil, db.Do(ctx, func(c *memcache.Client) error { return c.Set(&memcache.Item{Key: "nx"}) })
						})
					}, counts{Hits: 1, BytesRead: 3}},
					{"delete", func() error { _, err := db.Delete(ctx, "k", "nx", "gone"); return err }, counts{}},
				} {
					before := drivertest.Stat(t, db)
					err := step.do()
					ops := r.take()
					require.NotEmpty(t, ops, step.name)
					for _, o := range ops {
						if o.Name == "do" {
							continue
						}
						got := *o.result
						assert.Equal(t, step.want, counts{got.Hits, got.Misses, got.Stores, got.BytesRead, got.BytesWritten}, "%s, of one server: %t", step.name, o.Part)
						if err == kv.ErrNotFound {
							assert.NoError(t, got.Err, "%s: a miss is no failure", step.name)
						} else {
							assert.Equal(t, err == nil, got.Err == nil, "%s: %v", step.name, err)
						}
					}
					// The server counts the same, once.
					after := drivertest.Stat(t, db)
					if step.name == "cas, overtaken" {
						after.Stores-- // the Do's
					}
					assert.EqualValues(t, step.want.Hits, after.Hits-before.Hits, step.name)
					assert.EqualValues(t, step.want.Misses, after.Misses-before.Misses, step.name)
					assert.EqualValues(t, step.want.Stores, after.Stores-before.Stores, step.name)
					failed := uint64(0)
					if err != nil && err != kv.ErrNotFound && !errors.Is(err, kv.ErrConflict) {
						failed = 1
					}
					assert.Equal(t, failed, after.Errors-before.Errors, step.name)
				}
				left, err := db.TTL(ctx, "a")
				if meta {
					require.NoError(t, err)
					assert.Equal(t, memcacheddriver.NoExpiry, left)
					assert.Equal(t, 1, r.one().Hits)
				}
			})
		}
	}
}

func TestErrorTypes(t *testing.T) {
	t.Parallel()
	dead := memcachedtest.StartFake(t, nil)
	dead.Close()
	frozen := memcachedtest.AfterDial(memcachedtest.Hang)
	ownErr := errors.New("my own")
	get := func(t *testing.T, db *memcacheddriver.MemcachedDB) error {
		_, err := db.Get(t.Context(), "k")
		return err
	}
	for name, c := range map[string]struct {
		server string // instead of the script's
		script memcachedtest.Script
		opts   []driver.Option
		do     func(t *testing.T, db *memcacheddriver.MemcachedDB) error
		want   string
	}{
		"the context is cancelled": {do: func(t *testing.T, db *memcacheddriver.MemcachedDB) error {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_, err := db.Get(ctx, "k")
			return err
		}, want: "canceled"},
		"the context's deadline": {script: frozen, do: func(t *testing.T, db *memcacheddriver.MemcachedDB) error {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			_, err := db.Get(ctx, "k")
			return err
		}, want: "deadline_exceeded"},
		"no connection": {server: dead.Addr(), do: get, want: "network"},
		"a server that is down": {server: dead.Addr(), opts: []driver.Option{memcacheddriver.WithServerFailureLimit(1, drivertest.Never)},
			do: func(t *testing.T, db *memcacheddriver.MemcachedDB) error {
				assert.Error(t, db.Do(t.Context(), func(c *memcache.Client) error { return c.Ping() }))
				return get(t, db)
			}, want: "server_down"},
		"a timeout of the driver's": {script: frozen, opts: []driver.Option{memcacheddriver.WithTimeout(300 * time.Millisecond)}, do: get, want: "timeout"},
		"no connection is free": {opts: []driver.Option{memcacheddriver.WithMaxOpenConns(1), driver.WithDialTimeout(300 * time.Millisecond)},
			do: func(t *testing.T, db *memcacheddriver.MemcachedDB) error {
				defer drivertest.Hold(t, db, 1)()
				return get(t, db)
			}, want: "pool_timeout"},
		"the server is full": {script: memcachedtest.Script{"*": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
			c.Say("ERROR Too many open connections\r\n")
			c.Close()
		}}, do: get, want: "too_many_conns"},
		"no credentials":      {script: memcachedtest.Script{"*": memcachedtest.Say("CLIENT_ERROR unauthenticated\r\n")}, do: get, want: "auth"},
		"a refusal":           {script: memcachedtest.Script{"get": memcachedtest.Say("SERVER_ERROR out of memory\r\n"), "gets": memcachedtest.Say("SERVER_ERROR out of memory\r\n")}, do: get, want: "server_error"},
		"another protocol":    {script: memcachedtest.Script{"get": memcachedtest.Say("HTTP/1.1 400\r\n"), "gets": memcachedtest.Say("HTTP/1.1 400\r\n")}, do: get, want: "protocol"},
		"the server hangs up": {script: memcachedtest.Script{"get": memcachedtest.HangUp, "gets": memcachedtest.HangUp}, do: get, want: "network"},
		"a value that is too large": {server: memcachedtest.Addr(t), do: func(t *testing.T, db *memcacheddriver.MemcachedDB) error {
			return db.Set(t.Context(), drivertest.Key(), make([]byte, 2<<20), 0)
		}, want: "value_too_large"},
		"a swap that was overtaken": {server: memcachedtest.Addr(t), do: func(t *testing.T, db *memcacheddriver.MemcachedDB) error {
			key := drivertest.Key()
			require.NoError(t, db.Client().Set(&memcache.Item{Key: key}))
			return db.CompareAndSwap(t.Context(), key, func([]byte) ([]byte, error) {
				return nil, db.Client().Set(&memcache.Item{Key: key})
			})
		}, want: "conflict"},
		"TTL without WithTTLQuery": {do: func(t *testing.T, db *memcacheddriver.MemcachedDB) error {
			_, err := db.TTL(t.Context(), "k")
			return err
		}, want: "not_supported"},
		"an invalid key": {do: func(t *testing.T, db *memcacheddriver.MemcachedDB) error {
			_, err := db.Delete(t.Context(), "a", "b c")
			return err
		}, want: "invalid_key"},
		"an empty key": {do: func(t *testing.T, db *memcacheddriver.MemcachedDB) error {
			_, err := db.Get(t.Context(), "")
			return err
		}, want: "invalid_key"},
		"Close": {script: frozen, do: func(t *testing.T, db *memcacheddriver.MemcachedDB) error {
			waits := make(chan error)
			go func() { waits <- get(t, db) }()
			memcachedtest.Eventually(t, func() bool { return drivertest.Stat(t, db).BytesWritten > 0 }, "the call is under way")
			require.NoError(t, db.Close())
			return <-waits
		}, want: "not_open"},
		"Do's own error": {do: func(t *testing.T, db *memcacheddriver.MemcachedDB) error {
			return db.Do(t.Context(), func(*memcache.Client) error { return ownErr })
		}, want: "_OTHER"},
		"a panic in a Do": {do: func(t *testing.T, db *memcacheddriver.MemcachedDB) (err error) {
			defer func() { err = fmt.Errorf("%v", recover()) }()
			return db.Do(t.Context(), func(*memcache.Client) error { panic("mine") })
		}, want: "panic"},
		"Goexit in a swap": {server: memcachedtest.Addr(t), do: func(t *testing.T, db *memcacheddriver.MemcachedDB) error {
			key := drivertest.Key()
			require.NoError(t, db.Client().Set(&memcache.Item{Key: key}))
			var swapping sync.WaitGroup
			swapping.Go(func() {
				_ = db.CompareAndSwap(t.Context(), key, func([]byte) ([]byte, error) {
					runtime.Goexit()
					return nil, nil
				})
			})
			swapping.Wait()
			return ownErr
		}, want: "panic"},
		"an error of a swap's function": {server: memcachedtest.Addr(t), do: func(t *testing.T, db *memcacheddriver.MemcachedDB) error {
			key := drivertest.Key()
			require.NoError(t, db.Client().Set(&memcache.Item{Key: key}))
			return db.CompareAndSwap(t.Context(), key, func([]byte) ([]byte, error) { return nil, ownErr })
		}, want: "_OTHER"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := c.server
			if server == "" {
				server = memcachedtest.StartFake(t, c.script).Addr()
			}
			db, r := openTraced(t, server, append([]driver.Option{memcacheddriver.WithTimeout(drivertest.Never)}, c.opts...)...)
			require.Error(t, c.do(t, db))
			ops := r.take()
			var result *memcacheddriver.Result
			for _, o := range ops {
				if o.Name != "do" || len(ops) == 1 {
					result = o.result
				}
			}
			require.NotNil(t, result)
			assert.Equal(t, c.want, result.ErrorType, "%v", result.Err)
		})
	}
}

// Nor in an error, unless it is asked for.
func TestKeysAreNotTraced(t *testing.T) {
	t.Parallel()
	const secret = "s3cret"
	f := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.Say("SERVER_ERROR no\r\n")))
	for _, asked := range []bool{false, true} {
		dsn := f.Addr() + "?ttl_query=true&key_prefix=" + secret + fmt.Sprintf("&traced_keys=%t", asked)
		db, r := openTraced(t, dsn)
		for _, call := range drivertest.Calls {
			for _, key := range []string{secret, secret + " invalid"} {
				err := call.Run(t.Context(), db, key)
				for _, o := range r.take() {
					where := fmt.Sprintf("%s of %q, of one server: %t", call.Name, key, o.Part)
					told := fmt.Sprintf("%+v %v", *o.result, o.result.Err)
					if call.Keys == 0 || !asked {
						assert.NotContains(t, told, secret, where)
						continue
					}
					if o.Part && o.KeyCount == 0 {
						continue
					}
					assert.Len(t, o.Keys, o.KeyCount, where)
					for _, k := range o.Keys {
						assert.Contains(t, []string{drivertest.Other, key}, k, where)
					}
					if err != nil && !o.Part {
						assert.Equal(t, err.Error(), o.result.Err.Error(), where)
					}
				}
			}
		}
	}
}

func TestDialsAreTraced(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, nil)
	db, r := openTraced(t, f.Addr())
	// The call that it is for may end before it, and who calls next has the connection.
	type tag struct{}
	require.NoError(t, db.Ping(context.WithValue(t.Context(), tag{}, true)))
	memcachedtest.Eventually(t, func() bool { return len(r.dials()) == 1 }, "a dial is traced")
	dial := r.dials()[0]
	assert.Equal(t, memcacheddriver.Operation{Name: "dial", Server: f.Addr()}, dial.Operation)
	assert.NoError(t, dial.result.Err)
	assert.Nil(t, dial.parent, "it is nobody's call")

	f.Close()
	r.take()
	time.Sleep(10 * time.Millisecond) // until the connection is looked at
	require.Error(t, db.Ping(t.Context()))
	memcachedtest.Eventually(t, func() bool { return len(r.dials()) == 1 }, "a dial is traced")
	failed := r.dials()[0].result
	assert.Equal(t, "network", failed.ErrorType)
	assert.Equal(t, f.Addr(), drivertest.RequireOpError(t, failed.Err).Server)
}

// As Grove's registry does.
func TestADriverThatIsOpenedByNameHasATracer(t *testing.T) {
	t.Parallel()
	r := &recorder{t: t}
	kv.RegisterDriver("memcached-traced", func() driver.Driver {
		return memcacheddriver.New(memcacheddriver.WithTracer(r), memcacheddriver.WithKeyPrefix("a:"))
	})
	opened, err := kv.OpenDriver(t.Context(), "memcached-traced", memcachedtest.Addr(t))
	require.NoError(t, err)
	store, err := kv.Open(opened)
	require.NoError(t, err)
	defer func() { assert.NoError(t, store.Close()) }()
	key := drivertest.Key()
	require.NoError(t, store.Set(t.Context(), key, 1))
	assert.Equal(t, "set", r.one().Name)
	item, err := memcacheddriver.UnwrapClient(store).Get("a:" + key)
	require.NoError(t, err)
	assert.Equal(t, "1", string(item.Value))

	// The options of Open come after.
	opts := []driver.Option{memcacheddriver.WithKeyPrefix("a:")}
	db := memcacheddriver.New(opts...)
	opts[0] = nil // they are the caller's
	require.NoError(t, db.Open(t.Context(), memcachedtest.Addr(t)))
	require.NoError(t, db.Set(t.Context(), key, []byte("2"), 0))
	item, err = db.Client().Get("a:" + key)
	require.NoError(t, err)
	assert.Equal(t, "2", string(item.Value))
	require.NoError(t, db.Close())
	require.NoError(t, db.Open(t.Context(), memcachedtest.Addr(t), memcacheddriver.WithKeyPrefix("b:")))
	defer func() { assert.NoError(t, db.Close()) }()
	require.NoError(t, db.Set(t.Context(), key, []byte("2"), 0))
	item, err = db.Client().Get("b:" + key)
	require.NoError(t, err)
	assert.Equal(t, "2", string(item.Value))
}

// While servers come and go, calls fail, end early and are traced from many goroutines.
func TestEveryStartHasItsEnd(t *testing.T) {
	t.Parallel()
	_, addrs := drivertest.StartServers(t, 2)
	db, r := openTraced(t, addrs[0], memcacheddriver.WithTTLQuery())
	var callers sync.WaitGroup
	for i := range 24 {
		callers.Go(func() {
			for n, call := range drivertest.Calls {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(1+(i*n)%7)*time.Millisecond)
				_ = call.Run(ctx, db, fmt.Sprint("k", i%3))
				cancel()
			}
		})
	}
	for i := range 20 {
		require.NoError(t, db.SetServers(addrs[i%2]+","+addrs[1-i%2]))
		require.NoError(t, db.SetServers(addrs[i%2]))
	}
	callers.Wait()
	ops := r.take()
	assert.Greater(t, len(ops), 24*len(drivertest.Calls)-1)
	for _, o := range ops {
		assert.NotNil(t, o.result, "%s has not ended", o.Name)
	}
}

// Many callers, shared and merged, some of whom leave: the sums are what they saw.
func TestTracedSumsAreWhatCallersSaw(t *testing.T) {
	t.Parallel()
	db, r := openTraced(t, memcachedtest.Start(t).Addr())
	require.NoError(t, db.Set(t.Context(), "k", []byte("12345"), 0))
	r.take()
	before := drivertest.Stat(t, db)
	var hits, misses, cancelled atomic.Int64
	var callers sync.WaitGroup
	for i := range 100 {
		callers.Go(func() {
			for j := range 50 {
				ctx, cancel := context.WithCancel(t.Context())
				if (i+j)%9 == 0 {
					go cancel()
				}
				_, err := db.Get(ctx, []string{"k", "gone"}[j%2])
				switch err {
				case nil:
					hits.Add(1)
				case kv.ErrNotFound:
					misses.Add(1)
				default:
					assert.ErrorIs(t, err, context.Canceled)
					cancelled.Add(1)
				}
				cancel()
			}
		})
	}
	callers.Wait()
	var sum memcacheddriver.Result
	failed := int64(0)
	for _, o := range r.take() {
		sum.Hits += o.result.Hits
		sum.Misses += o.result.Misses
		sum.BytesRead += o.result.BytesRead
		if o.result.Err != nil {
			failed++
		}
	}
	assert.EqualValues(t, hits.Load(), sum.Hits)
	assert.EqualValues(t, misses.Load(), sum.Misses)
	assert.EqualValues(t, 5*hits.Load(), sum.BytesRead)
	assert.Equal(t, cancelled.Load(), failed)
	after := drivertest.Stat(t, db)
	assert.EqualValues(t, hits.Load(), after.Hits-before.Hits)
	assert.EqualValues(t, misses.Load(), after.Misses-before.Misses)
	assert.Zero(t, after.Errors)
}

// What the live server did is counted, and what the dead one did not.
func TestTracedBatchWithADeadServer(t *testing.T) {
	t.Parallel()
	dead := memcachedtest.StartFake(t, nil)
	dead.Close()
	addrs := []string{memcachedtest.Start(t).Addr(), dead.Addr()}
	db, r := openTraced(t, strings.Join(addrs, ","))
	keys := drivertest.KeysOf(t, addrs, 5)
	all := append(keys[0], keys[1]...)
	require.Error(t, db.MSet(t.Context(), drivertest.Pairs(all), 0))
	require.Error(t, db.MSet(t.Context(), drivertest.Pairs(all), 900*time.Millisecond))
	values, err := db.MGet(t.Context(), all)
	require.Error(t, err)
	require.Equal(t, 5, drivertest.AssertValues(t, all, values))
	for _, o := range r.take() {
		if !o.Part {
			assert.Equal(t, 5, o.result.Hits+o.result.Stores, o.Name)
			assert.Zero(t, o.result.Misses)
			assert.Contains(t, []string{"network", "server_down"}, o.result.ErrorType)
		}
	}
	stats := db.Stats()
	assert.Equal(t, []uint64{5, 0, 10, 0}, []uint64{stats[0].Hits, stats[0].Misses, stats[0].Stores, stats[0].Errors})
	assert.Equal(t, []uint64{0, 0, 0, 3}, []uint64{stats[1].Hits, stats[1].Misses, stats[1].Stores, stats[1].Errors})
}

// A server that refuses one of many small values does not say which, and may then hang up.
func TestTracedMSetThatIsRefusedAndCutOff(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, nil)
	db, r := openTraced(t, f.Addr())
	require.NoError(t, db.Ping(t.Context()))
	require.Contains(t, f.Received(), "mn")
	f.SetScript(memcachedtest.Script{
		"ms": memcachedtest.Say("SERVER_ERROR out of memory storing object\r\n"),
		"mn": memcachedtest.HangUp,
	})
	r.take()
	require.Error(t, db.MSet(t.Context(), map[string][]byte{"a": []byte("1"), "b": []byte("22")}, 0))
	for _, o := range r.take() {
		assert.Zero(t, o.result.Stores)
		assert.Zero(t, o.result.BytesWritten)
	}
}

func TestTracedErrorsKeepTheirKeys(t *testing.T) {
	t.Parallel()
	dead := memcachedtest.StartFake(t, nil)
	dead.Close()
	db, r := openTraced(t, dead.Addr(), memcacheddriver.WithTracedKeys())
	keys := []string{"first", "second"}
	_, err := db.Exists(t.Context(), keys...)
	require.Error(t, err)
	keys[0] = "used again" // they are the caller's
	for _, o := range r.take() {
		assert.NotContains(t, o.result.Err.Error(), "used again", "of one server: %t", o.Part)
	}
	own := &memcacheddriver.OpError{Op: "mine", Keys: []string{"k"}, Err: errors.New("no")}
	require.Error(t, db.Do(t.Context(), func(*memcache.Client) error { return own }))
	assert.Equal(t, error(own), r.one().Err)
}

func TestTracedDo(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"SERVER_ERROR out of memory":              "server_error",
		"SERVER_ERROR object too large for cache": "value_too_large",
		"what is this":                            "protocol",
	} {
		f := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.Say(line+"\r\n")))
		db, r := openTraced(t, f.Addr())
		require.Error(t, db.Do(t.Context(), func(c *memcache.Client) error { return c.Set(&memcache.Item{Key: "k"}) }))
		result := r.one()
		assert.Equal(t, want, result.ErrorType, "%v", result.Err)
		assert.NotContains(t, result.Err.Error(), "what is this", "it may be a value")
	}
	db, r := openTraced(t, memcachedtest.Addr(t))
	for _, answer := range []error{memcache.ErrCacheMiss, memcache.ErrNotStored} {
		require.Equal(t, answer, db.Do(t.Context(), func(*memcache.Client) error { return answer }))
		result := r.one()
		assert.NoError(t, result.Err, "%v is an answer", answer)
		assert.Zero(t, result.Misses, "as a hit is none")
	}
}

// asking is a tracer that uses the driver, though not while it is told of a dial.
type asking struct{ db *memcacheddriver.MemcachedDB }

type askingKey struct{}

func (a *asking) Start(ctx context.Context, op memcacheddriver.Operation) context.Context {
	if op.Name != "dial" && ctx.Value(askingKey{}) == nil {
		_, _ = a.db.Get(context.WithValue(context.Background(), askingKey{}, true), "of-the-tracer")
	}
	return ctx
}

func (a *asking) End(ctx context.Context, r memcacheddriver.Result) { a.Start(ctx, r.Operation) }

func TestATracerMayUseTheDriver(t *testing.T) {
	t.Parallel()
	a := &asking{}
	_, addrs := drivertest.StartServers(t, 2)
	a.db = drivertest.Open(t, strings.Join(addrs, ","), memcacheddriver.WithTracer(a), memcacheddriver.WithTTLQuery(), memcacheddriver.WithMaxOpenConns(1), driver.WithDialTimeout(drivertest.Never))
	for _, call := range drivertest.Calls {
		assert.NoError(t, call.Run(t.Context(), a.db, "k"), call.Name)
	}
}

// hurrying is a tracer that gives calls a deadline.
type hurrying struct{}

func (hurrying) Start(ctx context.Context, op memcacheddriver.Operation) context.Context {
	if op.Name == "dial" {
		return ctx
	}
	ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	context.AfterFunc(ctx, cancel)
	return ctx
}

func (hurrying) End(context.Context, memcacheddriver.Result) {}

func TestACallGoesOnWithTheTracersContext(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.Hang))
	for _, shared := range []bool{false, true} {
		db := drivertest.Open(t, f.Addr(), memcacheddriver.WithTracer(hurrying{}), memcacheddriver.WithTimeout(3*time.Second), memcacheddriver.WithTTLQuery())
		memcacheddriver.ShareAll(db, shared)
		for _, call := range drivertest.Calls {
			if call.Name != "Ping" { // which the fake answers as it does in a dial
				assert.ErrorIs(t, call.Run(t.Context(), db, "k"), context.DeadlineExceeded, "%s, shared: %t", call.Name, shared)
			}
		}
	}
}
