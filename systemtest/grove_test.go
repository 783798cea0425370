package systemtest

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/xraph/grove/audit"
	"github.com/xraph/grove/crdt"
	"github.com/xraph/grove/hook"
	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/codec"
	kvcrdt "github.com/xraph/grove/kv/crdt"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/observability"
)

// groveLines are the lines of docs/grove.md that need modules of Grove and others
// that the driver's own go.mod does not have. The driver's TestGrovePageIsTested
// reads them.
var groveLines = map[string]map[string]func(t *testing.T){
	"works": {
		"kv.WithCodec with codec.Protobuf": testGroveProtobuf,
		"kv.WithHook":                      testGroveHooks,
		"kvcrdt.NewCounter, kvcrdt.NewRegister, kvcrdt.NewSet, kvcrdt.NewMap, kvcrdt.NewList, kvcrdt.NewDocument, kvcrdt.WithNodeID, kvcrdt.WithClock, kvcrdt.WithCodec": testGroveCRDT,
	},
	"does nothing": {
		"kv.WithHook: a call that fails":                                   testGroveHooksOfFailures,
		"kv.WithHook: Batch, Ping, the driver's own calls":                 testGroveHooksOfOtherCalls,
		"kv.WithHook: hooks for mutations and rows, Grove's audit":         testGroveMutationHooks,
		"kv.WithHook: hook.Scope with Tables":                              testGroveHookTables,
		"kvcrdt.NewSyncer, kvcrdt.WithSyncInterval, kvcrdt.WithKeyPattern": testGroveSyncer,
	},
	"harms": {
		"Grove's observability.NewHook":          testGroveObservability,
		"kvcrdt: nodes that share a key":         testGroveCRDTOnOneKey,
		"kvcrdt: Map.Delete and Document.Delete": testGroveCRDTDelete,
	},
}

func TestGrove(t *testing.T) {
	t.Parallel()
	for verdict, lines := range groveLines {
		for what, test := range lines {
			t.Run(verdict+"/"+what, func(t *testing.T) {
				t.Parallel()
				test(t)
			})
		}
	}
}

func openGrove(t *testing.T, opts ...kv.Option) *kv.Store {
	t.Helper()
	store, err := kv.Open(drivertest.OpenShared(t), opts...)
	require.NoError(t, err)
	return store
}

func testGroveProtobuf(t *testing.T) {
	ctx := t.Context()
	store, key := openGrove(t, kv.WithCodec(codec.Protobuf{})), drivertest.Key()
	require.NoError(t, store.Set(ctx, key, wrapperspb.String("value")))
	var got wrapperspb.StringValue
	require.NoError(t, store.Get(ctx, key, &got))
	assert.Equal(t, "value", got.GetValue())
	assert.ErrorIs(t, store.Set(ctx, key, "no message"), kv.ErrCodecEncode)
}

// groveHook records what it is told, and refuses the key "refused".
type groveHook struct{ told []string }

func (h *groveHook) BeforeQuery(_ context.Context, qc *hook.QueryContext) (*hook.HookResult, error) {
	h.told = append(h.told, "before "+kv.CommandName(qc.Operation))
	if qc.RawQuery == "refused" {
		return &hook.HookResult{Decision: hook.Deny}, nil
	}
	return nil, nil
}

func (h *groveHook) AfterQuery(_ context.Context, qc *hook.QueryContext, result any) error {
	h.told = append(h.told, fmt.Sprintf("after %s, result %t", kv.CommandName(qc.Operation), result != nil))
	return nil
}

func (h *groveHook) BeforeMutation(context.Context, *hook.QueryContext, any) (*hook.HookResult, error) {
	panic("called")
}

func (h *groveHook) AfterMutation(context.Context, *hook.QueryContext, any, any) error {
	panic("called")
}

func (h *groveHook) OnStreamRow(context.Context, *hook.QueryContext, any) (hook.Decision, error) {
	panic("called")
}

// sinceThen returns what h was told since the last time.
func (h *groveHook) sinceThen() []string {
	defer func() { h.told = nil }()
	return h.told
}

func testGroveHooks(t *testing.T) {
	ctx := t.Context()
	var all, gets groveHook
	store, key := openGrove(t, kv.WithHook(&all), kv.WithHook(&gets, hook.Scope{Operations: []hook.Operation{kv.OpGet}})), drivertest.Key()
	require.NoError(t, store.Set(ctx, key, 1))
	assert.Equal(t, []string{"before SET", "after SET, result false"}, all.sinceThen())
	require.NoError(t, store.Get(ctx, key, new(int)))
	assert.Equal(t, []string{"before GET", "after GET, result true"}, all.sinceThen())
	_, err := store.Exists(ctx, key)
	require.NoError(t, err)
	require.NoError(t, store.MGet(ctx, []string{key}, map[string]any{}))
	require.NoError(t, store.MSet(ctx, map[string]any{key: 2}))
	require.NoError(t, store.Expire(ctx, key, time.Hour))
	require.NoError(t, store.Delete(ctx, key))
	var told []string
	for _, op := range []string{"EXISTS, result true", "MGET, result true", "MSET, result false", "EXPIRE, result false", "DEL, result false"} {
		name, _, _ := strings.Cut(op, ",")
		told = append(told, "before "+name, "after "+op)
	}
	assert.Equal(t, told, all.sinceThen())
	assert.Equal(t, kv.ErrHookDenied, store.Set(ctx, "refused", 1))
	assert.Equal(t, []string{"before GET", "after GET, result true"}, gets.sinceThen())
}

func testGroveHooksOfFailures(t *testing.T) {
	ctx := t.Context()
	server := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.HangUp))
	store := drivertest.OpenStore(t, server.Addr())
	var h groveHook
	store.Hooks().AddHook(&h)
	assert.Error(t, store.Set(ctx, "k", 1))
	assert.Error(t, store.Delete(ctx, "k"))
	_, err := store.Exists(ctx, "k")
	assert.Error(t, err)
	assert.Error(t, store.MGet(ctx, []string{"k"}, map[string]any{}))
	assert.Error(t, store.MSet(ctx, map[string]any{"k": 1}))
	assert.Error(t, store.Expire(ctx, "k", time.Hour))
	assert.Equal(t, []string{"before SET", "before DEL", "before EXISTS", "before MGET", "before MSET", "before EXPIRE"}, h.sinceThen())

	// Of a Get that failed, it is told what it is told of a miss.
	assert.NotErrorIs(t, store.Get(ctx, "k", new(int)), kv.ErrNotFound)
	failed := h.sinceThen()
	assert.Equal(t, []string{"before GET", "after GET, result false"}, failed)
	store = openGrove(t, kv.WithHook(&h))
	assert.Equal(t, kv.ErrNotFound, store.Get(ctx, drivertest.Key(), new(int)))
	assert.Equal(t, failed, h.sinceThen())
}

func testGroveHooksOfOtherCalls(t *testing.T) {
	ctx := t.Context()
	var h groveHook
	store, key := openGrove(t, kv.WithHook(&h)), drivertest.Key()
	_, err := kv.NewBatch(store).Set(key, 1).Get(key).Delete(key).Exec(ctx)
	require.NoError(t, err)
	require.NoError(t, store.Ping(ctx))
	db := memcacheddriver.Unwrap(store)
	require.NoError(t, db.Set(ctx, key, []byte("1"), 0))
	require.NoError(t, db.CompareAndSwap(ctx, key, func(current []byte) ([]byte, error) { return current, nil }))
	assert.Empty(t, h.told)
}

type groveAudit struct{ entries int }

func (a *groveAudit) WriteEntry(context.Context, *audit.AuditEntry) error { a.entries++; return nil }

func testGroveMutationHooks(t *testing.T) {
	ctx := t.Context()
	var writer groveAudit
	// groveHook's own hooks for mutations and rows panic.
	store, key := openGrove(t, kv.WithHook(&groveHook{}), kv.WithHook(audit.NewHook(&writer))), drivertest.Key()
	require.NoError(t, store.Set(ctx, key, 1))
	require.NoError(t, store.MSet(ctx, map[string]any{key: 1}))
	require.NoError(t, store.Get(ctx, key, new(int)))
	require.NoError(t, store.Expire(ctx, key, time.Hour))
	require.NoError(t, store.Delete(ctx, key))
	assert.Zero(t, writer.entries)
}

func testGroveHookTables(t *testing.T) {
	ctx := t.Context()
	var h groveHook
	store := openGrove(t, kv.WithHook(&h, hook.Scope{Tables: []string{"users"}}))
	require.NoError(t, store.Set(ctx, "users:"+drivertest.Key(), 1))
	assert.Empty(t, h.told)
}

func testGroveObservability(t *testing.T) {
	ctx := t.Context()
	server := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.HangUp))
	store, seen := drivertest.OpenStore(t, server.Addr()), observability.NewInMemoryCollector()
	store.Hooks().AddHook(observability.NewHook(seen))
	assert.Error(t, store.Get(ctx, "k", new(int)))
	assert.Error(t, store.Set(ctx, "k", 1))
	entries := seen.Entries()
	require.Len(t, entries, 1, "the Set is not counted")
	assert.Equal(t, "UNKNOWN", entries[0].Operation)
	assert.NoError(t, entries[0].Error)
}

// groveNodes returns what two nodes open a CRDT with: a key for each, and options.
func groveNodes(c codec.Codec) (key, key2 string, one, two []kvcrdt.Option) {
	options := func(id string) []kvcrdt.Option {
		return []kvcrdt.Option{kvcrdt.WithNodeID(id), kvcrdt.WithClock(crdt.NewHybridClock(id)), kvcrdt.WithCodec(c)}
	}
	return drivertest.Key(), drivertest.Key(), options("one"), options("two")
}

// Each node writes a key of its own, and merges the other's into it.
func testGroveCRDT(t *testing.T) {
	ctx := t.Context()
	store := openGrove(t)
	for _, c := range []codec.Codec{codec.JSON(), codec.MsgPack()} {
		key, key2, a, b := groveNodes(c)
		counter, counter2 := kvcrdt.NewCounter(store, key, a...), kvcrdt.NewCounter(store, key2, b...)
		require.NoError(t, counter.Increment(ctx, 2))
		require.NoError(t, counter2.Increment(ctx, 3))
		mergeGrove(t, counter2.State, counter.Merge)
		n, err := counter.Value(ctx)
		require.NoError(t, err)
		assert.EqualValues(t, 5, n, c.Name())

		key, key2, a, b = groveNodes(c)
		register, register2 := kvcrdt.NewRegister[string](store, key, a...), kvcrdt.NewRegister[string](store, key2, b...)
		require.NoError(t, register.Set(ctx, "old"))
		require.NoError(t, register2.Set(ctx, "new"))
		mergeGrove(t, register2.State, register.Merge)
		value, err := register.Get(ctx)
		require.NoError(t, err)
		assert.Equal(t, "new", value, c.Name())

		key, key2, a, b = groveNodes(c)
		set, set2 := kvcrdt.NewSet[string](store, key, a...), kvcrdt.NewSet[string](store, key2, b...)
		require.NoError(t, set.Add(ctx, "ann"))
		require.NoError(t, set2.Add(ctx, "bob"))
		mergeGrove(t, set2.State, set.Merge)
		members, err := set.Members(ctx)
		require.NoError(t, err)
		assert.ElementsMatch(t, []string{"ann", "bob"}, members, c.Name())

		key, key2, a, b = groveNodes(c)
		fields, fields2 := kvcrdt.NewMap(store, key, a...), kvcrdt.NewMap(store, key2, b...)
		require.NoError(t, fields.Set(ctx, "ann", 1))
		require.NoError(t, fields2.Set(ctx, "bob", 2))
		mergeGrove(t, fields2.State, fields.Merge)
		names, err := fields.Keys(ctx)
		require.NoError(t, err)
		assert.ElementsMatch(t, []string{"ann", "bob"}, names, c.Name())

		key, key2, a, b = groveNodes(c)
		list, list2 := kvcrdt.NewList[string](store, key, a...), kvcrdt.NewList[string](store, key2, b...)
		require.NoError(t, list.Append(ctx, "ann"))
		require.NoError(t, list2.Append(ctx, "bob"))
		mergeGrove(t, list2.State, list.Merge)
		elements, err := list.Elements(ctx)
		require.NoError(t, err)
		assert.ElementsMatch(t, []string{"ann", "bob"}, elements, c.Name())

		key, key2, a, b = groveNodes(c)
		doc, doc2 := kvcrdt.NewDocument(store, key, a...), kvcrdt.NewDocument(store, key2, b...)
		require.NoError(t, doc.Set(ctx, "user.ann", 1))
		require.NoError(t, doc2.Set(ctx, "user.bob", 2))
		mergeGrove(t, doc2.State, doc.Merge)
		all, err := doc.Resolve(ctx)
		require.NoError(t, err)
		assert.Contains(t, all, "user")
		assert.Len(t, all["user"], 2, c.Name())
	}
}

func mergeGrove[S any](t *testing.T, state func(context.Context) (S, error), merge func(context.Context, S) error) {
	t.Helper()
	s, err := state(t.Context())
	require.NoError(t, err)
	require.NoError(t, merge(t.Context(), s))
}

// groveInterruption lets another do something once a call has come back.
type groveInterruption struct {
	once sync.Once
	do   func()
}

func (h *groveInterruption) AfterQuery(context.Context, *hook.QueryContext, any) error {
	h.once.Do(h.do)
	return nil
}

func testGroveCRDTOnOneKey(t *testing.T) {
	ctx := t.Context()
	key, _, one, two := groveNodes(codec.JSON())
	yours := kvcrdt.NewCounter(openGrove(t), key, two...)
	mine := kvcrdt.NewCounter(openGrove(t, kv.WithHook(&groveInterruption{do: func() {
		require.NoError(t, yours.Increment(ctx, 3))
	}})), key, one...)
	require.NoError(t, mine.Increment(ctx, 2))
	n, err := yours.Value(ctx)
	require.NoError(t, err)
	assert.EqualValues(t, 2, n, "the other's 3 are lost")
}

func testGroveCRDTDelete(t *testing.T) {
	ctx := t.Context()
	store := openGrove(t)
	key, key2, one, two := groveNodes(codec.JSON())
	fields, fields2 := kvcrdt.NewMap(store, key, one...), kvcrdt.NewMap(store, key2, two...)
	require.NoError(t, fields.Set(ctx, "ann", 1))
	mergeGrove(t, fields.State, fields2.Merge)
	require.NoError(t, fields.Delete(ctx, "ann"))
	mergeGrove(t, fields2.State, fields.Merge)
	require.NoError(t, fields.Get(ctx, "ann", new(int)), "it is back")

	key, key2, one, two = groveNodes(codec.JSON())
	doc, doc2 := kvcrdt.NewDocument(store, key, one...), kvcrdt.NewDocument(store, key2, two...)
	require.NoError(t, doc.Set(ctx, "user.ann", 1))
	mergeGrove(t, doc.State, doc2.Merge)
	require.NoError(t, doc.Delete(ctx, "user.ann"))
	mergeGrove(t, doc2.State, doc.Merge)
	require.NoError(t, doc.Get(ctx, "user.ann", new(int)), "it is back")
}

func testGroveSyncer(t *testing.T) {
	ctx := t.Context()
	primary, replica := openGrove(t), drivertest.OpenStore(t, memcachedtest.Start(t).Addr())
	key := "crdt:" + drivertest.Key()
	require.NoError(t, kvcrdt.NewCounter(primary, key).Increment(ctx, 1))
	syncer := kvcrdt.NewSyncer(primary, replica, kvcrdt.WithSyncInterval(time.Millisecond), kvcrdt.WithKeyPattern(key))
	_, err := syncer.Sync(ctx)
	assert.ErrorIs(t, err, kv.ErrNotSupported)
	syncer.Start(ctx) // which has nobody to tell it to
	time.Sleep(20 * time.Millisecond)
	syncer.Stop()
	n, err := replica.Exists(ctx, key)
	require.NoError(t, err)
	assert.Zero(t, n)
}
