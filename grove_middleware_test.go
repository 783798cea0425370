package memcacheddriver_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/xraph/go-utils/log"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/codec"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/middleware"
)

func testGroveCache(t *testing.T) {
	ctx := t.Context()
	server := memcachedtest.Start(t)
	store := drivertest.OpenStore(t, server.Addr())
	cache := middleware.NewCache(10, time.Hour)
	store.Hooks().AddHook(cache)
	require.NoError(t, store.Set(ctx, "k", "server's"))
	var got string
	for range 2 {
		require.NoError(t, store.Get(ctx, "k", &got))
	}
	assert.Zero(t, cache.Size(), "nothing is kept")

	cache.Put("k", []byte(`"cache's"`), 0)
	require.NoError(t, store.Get(ctx, "k", &got))
	assert.Equal(t, "server's", got)
	assert.Equal(t, "3", server.Stats(t)["cmd_get"], "nor is what was put there by hand used")
}

func testGroveCircuitBreaker(t *testing.T) {
	ctx := t.Context()
	server := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.HangUp))
	store := drivertest.OpenStore(t, server.Addr(), memcacheddriver.WithServerFailureLimit(0, 0))
	breaker := middleware.NewCircuitBreaker(1, time.Hour)
	store.Hooks().AddHook(breaker)
	for range 3 {
		assert.Error(t, store.Set(ctx, "k", 1))
	}
	assert.Equal(t, middleware.StateClosed, breaker.State())
	assert.Equal(t, 3, server.Count("set"), "each went to the server")

	// With what it is told by hand it refuses every call.
	breaker.RecordFailure()
	assert.ErrorIs(t, store.Set(ctx, "k", 1), middleware.ErrCircuitOpen)
	_, err := store.Exists(ctx, "another")
	assert.ErrorIs(t, err, middleware.ErrCircuitOpen)
	assert.Zero(t, server.Count("touch")+server.Count("get")+server.Count("gets"))
}

// As docs/grove.md shows it.
type groveSealed struct {
	codec.Codec
	hook *middleware.EncryptHook
}

func (s groveSealed) Encode(v any) ([]byte, error) {
	plain, err := s.Codec.Encode(v)
	if err != nil {
		return nil, err
	}
	return s.hook.Encrypt(plain)
}

func (s groveSealed) Decode(data []byte, v any) error {
	plain, err := s.hook.Decrypt(data)
	if err != nil {
		return err
	}
	return s.Codec.Decode(plain, v)
}

func testGroveEncrypt(t *testing.T) {
	ctx := t.Context()
	encrypt, err := middleware.NewEncrypt(make([]byte, 32))
	require.NoError(t, err)
	store, keys := openGrove(t, kv.WithHook(encrypt)), drivertest.Keys(3)
	require.NoError(t, store.Set(ctx, keys[0], "secret"))
	assertGroveValue(t, store, keys[0], `"secret"`)

	// What the page says to use instead.
	store = openGrove(t, kv.WithCodec(groveSealed{codec.JSON(), encrypt}))
	require.NoError(t, store.Set(ctx, keys[0], "secret"))
	require.NoError(t, store.MSet(ctx, map[string]any{keys[1]: "secret"}))
	_, err = kv.NewBatch(store).Set(keys[2], "secret").Exec(ctx)
	require.NoError(t, err)
	many := map[string]any{}
	require.NoError(t, store.MGet(ctx, keys, many))
	for _, key := range keys {
		raw, err := store.GetRaw(ctx, key)
		require.NoError(t, err)
		assert.NotContains(t, string(raw), "secret")
		var got string
		require.NoError(t, store.Get(ctx, key, &got))
		assert.Equal(t, "secret", got)
		assert.Equal(t, "secret", many[key])
	}

	// What it does not do.
	require.NoError(t, store.Set(ctx, keys[0], "another"))
	raw, err := store.GetRaw(ctx, keys[0])
	require.NoError(t, err)
	require.NoError(t, store.SetRaw(ctx, keys[1], raw))
	var got string
	require.NoError(t, store.Get(ctx, keys[1], &got))
	assert.Equal(t, "another", got)
}

type groveSquashed struct {
	codec.Codec
	hook *middleware.CompressHook
}

func (s groveSquashed) Encode(v any) ([]byte, error) {
	plain, err := s.Codec.Encode(v)
	if err != nil {
		return nil, err
	}
	return s.hook.Compress(plain)
}

func (s groveSquashed) Decode(data []byte, v any) error {
	plain, err := s.hook.Decompress(data)
	if err != nil {
		return err
	}
	return s.Codec.Decode(plain, v)
}

func testGroveCompress(t *testing.T) {
	ctx := t.Context()
	compress := middleware.NewCompress(middleware.Gzip)
	store, key := openGrove(t, kv.WithHook(compress)), drivertest.Key()
	text := strings.Repeat("a", 10_000)
	require.NoError(t, store.Set(ctx, key, text))
	assertGroveValue(t, store, key, `"`+text+`"`)

	// What the page says to use instead, and with which codecs not.
	store = openGrove(t, kv.WithCodec(groveSquashed{codec.JSON(), compress}))
	require.NoError(t, store.Set(ctx, key, text))
	raw, err := store.GetRaw(ctx, key)
	require.NoError(t, err)
	assert.Less(t, len(raw), 1000)
	var got string
	require.NoError(t, store.Get(ctx, key, &got))
	assert.Equal(t, text, got)

	store = openGrove(t, kv.WithCodec(groveSquashed{codec.MsgPack(), compress}))
	require.NoError(t, store.Set(ctx, key, 31))
	assert.ErrorIs(t, store.Get(ctx, key, new(int)), kv.ErrCodecDecode, "it begins as if it were compressed")
}

// groveLog hands on what NewLogging logs, which it does when a call is over.
type groveLog struct {
	log.Logger
	info func(fields map[string]any)
}

func (l groveLog) Info(_ string, fields ...log.Field) {
	values := map[string]any{}
	for _, f := range fields {
		values[f.Key()] = f.Value()
	}
	l.info(values)
}

// logGrove returns a function that returns, in a line each, what is logged of the
// calls of store since the last time.
func logGrove(store *kv.Store) func() []string {
	var lines []string
	store.Hooks().AddHook(middleware.NewLogging(groveLog{info: func(fields map[string]any) {
		lines = append(lines, fmt.Sprint(fields["op"], " ", fields["key"], " ", len(fields)))
	}}))
	return func() []string {
		defer func() { lines = nil }()
		return lines
	}
}

func testGroveLogging(t *testing.T) {
	ctx := t.Context()
	store, key := drivertest.OpenStore(t, memcachedtest.Addr(t)), drivertest.Key()
	logged := logGrove(store)
	require.NoError(t, store.Set(ctx, key, 1))
	require.NoError(t, store.Get(ctx, key, new(int)))
	require.NoError(t, store.Expire(ctx, key, time.Hour))
	require.NoError(t, store.Delete(ctx, key, drivertest.Key()))
	assert.Equal(t, []string{"SET " + key + " 3", "GET " + key + " 3", "EXPIRE " + key + " 3", "DEL " + key + " 3"}, logged(),
		"operation, key (the first one), latency")
}

func testGroveLoggingFailures(t *testing.T) {
	ctx := t.Context()
	server := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.HangUp))
	store := drivertest.OpenStore(t, server.Addr())
	logged := logGrove(store)
	assert.Error(t, store.Get(ctx, "k", new(int)))
	assert.Equal(t, []string{"GET k 3"}, logged(), "as of a hit")
	assert.Error(t, store.Set(ctx, "k", 1))
	assert.Error(t, store.Delete(ctx, "k"))
	_, err := store.Exists(ctx, "k")
	assert.Error(t, err)
	assert.Error(t, store.MGet(ctx, []string{"k"}, map[string]any{}))
	assert.Error(t, store.MSet(ctx, map[string]any{"k": 1}))
	assert.Error(t, store.Expire(ctx, "k", time.Hour))
	assert.Empty(t, logged())
}

func testGroveNamespace(t *testing.T) {
	ctx := t.Context()
	store := drivertest.OpenStore(t, memcachedtest.Addr(t))
	tenant, key, other := drivertest.Key(), drivertest.Key(), drivertest.Key()
	store.Hooks().AddHook(middleware.NewNamespace(tenant))
	require.NoError(t, store.Set(ctx, key, 1))
	assertGroveValue(t, store, tenant+":"+key, "1")

	require.NoError(t, store.Delete(ctx, key))
	var got int
	require.NoError(t, store.Get(ctx, key, &got), "it was not deleted")
	n, err := store.Exists(ctx, key)
	require.NoError(t, err)
	assert.Zero(t, n, "nor does it exist")
	assert.Equal(t, kv.ErrNotFound, store.Expire(ctx, key, time.Hour))
	many := map[string]any{}
	require.NoError(t, store.MGet(ctx, []string{key}, many))
	assert.Empty(t, many)

	require.NoError(t, store.MSet(ctx, map[string]any{other: 2}))
	assertGroveValue(t, store, other, "2") // every tenant's
	assert.Equal(t, kv.ErrNotFound, store.Get(ctx, other, &got))
}

func testGroveRetry(t *testing.T) {
	ctx := t.Context()
	count := func(hooks ...any) (sets, gets int) {
		server := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.HangUp))
		store := drivertest.OpenStore(t, server.Addr(), memcacheddriver.WithServerFailureLimit(0, 0))
		for _, h := range hooks {
			store.Hooks().AddHook(h)
		}
		assert.Error(t, store.Set(ctx, "k", 1))
		sets = server.Count("set")
		assert.Error(t, store.Get(ctx, "k", new(int)))
		return sets, server.Count("get") + server.Count("gets")
	}
	sets, gets := count()
	assert.Equal(t, 1, sets)
	assert.Positive(t, gets)
	with, without := [2]int{}, [2]int{sets, gets}
	with[0], with[1] = count(middleware.NewRetry(5, middleware.WithInitialWait(time.Millisecond), middleware.WithMaxWait(time.Millisecond), middleware.WithJitter(false)))
	assert.Equal(t, without, with)
}

func testGroveStampede(t *testing.T) {
	store, key := drivertest.OpenStore(t, memcachedtest.Addr(t)), drivertest.Key()
	stampede := middleware.NewStampede()
	store.Hooks().AddHook(stampede)
	require.NoError(t, store.Set(t.Context(), key, 1))
	require.NoError(t, store.Get(t.Context(), key, new(int)))

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	var second sync.WaitGroup
	over := make(chan error, 1)
	second.Go(func() { over <- store.Get(ctx, key, new(int)) })
	defer second.Wait()
	// Which nothing but this does, and which lets the second one go.
	defer stampede.Complete(key)
	<-ctx.Done()
	select {
	case err := <-over:
		t.Fatalf("the second Get of a key does not hang: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
}
