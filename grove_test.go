package memcacheddriver_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/codec"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/keyspace"
)

// groveLines are the lines of docs/grove.md, by what it says of them, each with the
// test that shows it. Where kv harms, the test asserts the harm: one that fails with
// a newer kv tells that the page is to be changed. Those that need a module that the
// driver's own go.mod shall not have are in systemtest/grove_test.go.
var groveLines = map[string]map[string]func(t *testing.T){
	"works": {
		"kv.Open, kv.OpenDriver": func(t *testing.T) { testRegistry(t, memcachedtest.Addr(t)) },
		"kv.WithTTL":             testGroveTTL,
		"kv.WithNX, kv.WithXX":   testGroveNX,
		"kv.NewBatch":            testGroveBatch,
		"kv.WithCodec with codec.JSON, codec.MsgPack or codec.Gob":                   testGroveCodecs,
		"keyspace.New, keyspace.WithTTL, keyspace.WithSeparator, keyspace.WithCodec": func(t *testing.T) { testKeyspace(t, memcachedtest.Addr(t)) },
		"middleware.NewLogging": testGroveLogging,
		"plugins.NewLock":       func(t *testing.T) { testLock(t, drivertest.OpenStore(t, memcachedtest.Addr(t))) },
		"plugins.NewSessionStore, plugins.WithSessionPrefix, plugins.WithSessionTTL": func(t *testing.T) { testSessions(t, drivertest.OpenStore(t, memcachedtest.Addr(t))) },
	},
	"does nothing": {
		"middleware.NewCache":          testGroveCache,
		"middleware.NewCircuitBreaker": testGroveCircuitBreaker,
		"middleware.NewCompress":       testGroveCompress,
		"middleware.NewRetry, middleware.WithInitialWait, middleware.WithMaxWait, middleware.WithJitter": testGroveRetry,
		"Keyspace.GetEntry: TTL and Version": testGroveEntry,
	},
	"harms": {
		"middleware.NewEncrypt":                           testGroveEncrypt,
		"middleware.NewLogging: failures":                 testGroveLoggingFailures,
		"middleware.NewNamespace":                         testGroveNamespace,
		"middleware.NewStampede":                          testGroveStampede,
		"kv.WithNX, kv.WithXX in MSet and Batch":          testGroveNXInBatches,
		"kv.WithCAS":                                      testGroveCAS,
		"Batch.Set of what cannot be encoded":             testGroveBatchEncoding,
		"MGet with codec.JSON":                            testGroveMGetJSON,
		"Keyspace.MGet with keyspace.WithCodec":           testGroveKeyspaceMGet,
		"plugins.NewAtomicCounter":                        testGroveCounter,
		"plugins.NewLeaderboard":                          testGroveLeaderboard,
		"plugins.NewQueue, plugins.WithVisibilityTimeout": testGroveQueue,
		"plugins.NewRateLimiter":                          testGroveRateLimiter,
		"Lock.Release, Lock.Extend":                       testGroveLockOfAnother,
	},
	"not supported": {
		"Store.Scan, Keyspace.Scan":             testGroveScan,
		"MGet with codec.Gob or codec.Protobuf": testGroveMGetGob,
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

// The page has a line for each test and a test for each line, with the same verdict.
func TestGrovePageIsTested(t *testing.T) {
	t.Parallel()
	tested := map[string]string{}
	for verdict, lines := range groveLines {
		for what := range lines {
			tested[what] = verdict
		}
	}
	maps.Copy(tested, groveLinesOf(t, "systemtest/grove_test.go"))
	assert.Equal(t, tested, grovePage(t))
}

// Whatever of kv's a store is set up with or wrapped in is on the page.
func TestGrovePageHasEveryConstructor(t *testing.T) {
	t.Parallel()
	var page strings.Builder
	for what := range grovePage(t) {
		page.WriteString(what + "\n")
	}
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/xraph/grove/kv").Output()
	require.NoError(t, err)
	found := 0
	for _, pkg := range []string{"", "middleware", "plugins", "codec", "keyspace", "crdt"} {
		paths, err := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), pkg, "*.go"))
		require.NoError(t, err)
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			require.NoError(t, err)
			for _, name := range constructors(file) {
				found++
				assert.Regexp(t, `\b`+regexp.QuoteMeta(name)+`\b`, page.String(), "%s", path)
			}
		}
	}
	assert.Greater(t, found, 40)
}

// constructors returns what makes something for a store: functions by their names,
// and the codecs, some of which are types.
func constructors(file *ast.File) (names []string) {
	named := regexp.MustCompile(`^(New|Open|With)`)
	pkg := file.Name.Name
	for _, decl := range file.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil && d.Name.IsExported() && (pkg == "codec" || named.MatchString(d.Name.Name)) {
				names = append(names, pkg+"."+d.Name.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				s, ok := spec.(*ast.TypeSpec)
				if ok && pkg == "codec" && s.Name.IsExported() && s.Name.Name != "Codec" {
					names = append(names, pkg+"."+s.Name.Name)
				}
			}
		}
	}
	return names
}

// groveLinesOf reads the lines of another module's test, with their verdicts.
func groveLinesOf(t *testing.T, path string) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	require.NoError(t, err)
	require.Contains(t, file.Scope.Objects, "groveLines", path)
	lines := map[string]string{}
	value := file.Scope.Objects["groveLines"].Decl.(*ast.ValueSpec).Values[0].(*ast.CompositeLit)
	unquote := func(e ast.Expr) string {
		s, err := strconv.Unquote(e.(*ast.BasicLit).Value)
		require.NoError(t, err)
		return s
	}
	for _, of := range value.Elts {
		of := of.(*ast.KeyValueExpr)
		for _, line := range of.Value.(*ast.CompositeLit).Elts {
			lines[unquote(line.(*ast.KeyValueExpr).Key)] = unquote(of.Key)
		}
	}
	require.NotEmpty(t, lines)
	return lines
}

// grovePage returns the lines of the page's table without their backquotes, with
// their verdicts.
func grovePage(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("docs/grove.md")
	require.NoError(t, err)
	lines := map[string]string{}
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, "|")
		if len(cells) != 6 || strings.HasPrefix(cells[1], " ---") || cells[1] == " What " {
			continue
		}
		what := strings.ReplaceAll(strings.TrimSpace(cells[1]), "`", "")
		assert.NotContains(t, lines, what, "twice")
		lines[what] = strings.Trim(cells[2], " *")
		assert.NotEmpty(t, strings.TrimSpace(cells[3]), "%s: why", what)
	}
	require.NotEmpty(t, lines)
	return lines
}

// groveUser has a number; groveID is one that a float64 rounds.
type groveUser struct {
	ID int64 `json:"id" msgpack:"id"`
}

const groveID = 1<<53 + 1

func testGroveTTL(t *testing.T) {
	ctx, addr := t.Context(), memcachedtest.Addr(t)
	store, keys := drivertest.OpenStore(t, addr), drivertest.Keys(3)
	require.NoError(t, store.Set(ctx, keys[0], 1, kv.WithTTL(time.Hour)))
	require.NoError(t, store.MSet(ctx, map[string]any{keys[1]: 1}, kv.WithTTL(time.Hour)))
	_, err := kv.NewBatch(store).Set(keys[2], 1).WithOptions(kv.WithTTL(time.Hour)).Exec(ctx)
	require.NoError(t, err)
	for _, key := range keys {
		seconds, ok := drivertest.ServerTTL(t, addr, key)
		assert.True(t, ok)
		assert.Greater(t, seconds, int64(3000))
	}
}

func testGroveNX(t *testing.T) {
	ctx := t.Context()
	store, key := drivertest.OpenStore(t, memcachedtest.Addr(t)), drivertest.Key()
	assert.Equal(t, kv.ErrNotFound, store.Set(ctx, key, 1, kv.WithXX()))
	require.NoError(t, store.Set(ctx, key, 2, kv.WithNX()))
	assert.Equal(t, kv.ErrConflict, store.Set(ctx, key, 3, kv.WithNX()))
	require.NoError(t, store.Set(ctx, key, 4, kv.WithXX()))
	assertGroveValue(t, store, key, "4")
}

func testGroveNXInBatches(t *testing.T) {
	ctx := t.Context()
	store, key, absent := drivertest.OpenStore(t, memcachedtest.Addr(t)), drivertest.Key(), drivertest.Key()
	require.NoError(t, store.Set(ctx, key, 1))
	require.NoError(t, store.MSet(ctx, map[string]any{key: 2}, kv.WithNX()))
	assertGroveValue(t, store, key, "2")
	_, err := kv.NewBatch(store).Set(key, 3).Set(absent, 3).WithOptions(kv.WithNX(), kv.WithXX()).Exec(ctx)
	require.NoError(t, err)
	assertGroveValue(t, store, key, "3")
	assertGroveValue(t, store, absent, "3")
}

func testGroveCAS(t *testing.T) {
	ctx := t.Context()
	store, key := drivertest.OpenStore(t, memcachedtest.Addr(t)), drivertest.Key()
	require.NoError(t, store.Set(ctx, key, 1))
	require.NoError(t, store.Set(ctx, key, 2, kv.WithCAS(1)), "a version that the key does not have")
	assertGroveValue(t, store, key, "2")
}

// assertGroveValue checks what is stored, below codecs and hooks.
func assertGroveValue(t *testing.T, store *kv.Store, key, want string) {
	t.Helper()
	value, err := memcacheddriver.Unwrap(store).Get(t.Context(), key)
	require.NoError(t, err)
	assert.Equal(t, want, string(value))
}

func testGroveBatch(t *testing.T) {
	ctx := t.Context()
	store, keys := drivertest.OpenStore(t, memcachedtest.Addr(t)), drivertest.Keys(2)
	done, err := kv.NewBatch(store).Set(keys[0], groveUser{groveID}).Exec(ctx)
	require.NoError(t, err)
	assert.EqualValues(t, 1, done.Written)
	done, err = kv.NewBatch(store).Get(keys...).Delete(keys...).Exec(ctx)
	require.NoError(t, err)
	var user groveUser
	require.NoError(t, done.Decode(keys[0], &user, store.Codec()))
	assert.Equal(t, groveUser{groveID}, user)
	assert.ErrorIs(t, done.Decode(keys[1], &user, store.Codec()), kv.ErrNotFound)
	assert.EqualValues(t, 1, done.Deleted)

	// In whatever order they were asked for.
	done, err = kv.NewBatch(store).Delete(keys[0]).Set(keys[0], 1).Get(keys[0]).Exec(ctx)
	require.NoError(t, err)
	assert.Equal(t, &kv.BatchResult{Values: map[string][]byte{}, Written: 1, Deleted: 1}, done)
}

func testGroveBatchEncoding(t *testing.T) {
	ctx := t.Context()
	store, key := drivertest.OpenStore(t, memcachedtest.Addr(t)), drivertest.Key()
	done, err := kv.NewBatch(store).Set(key, make(chan int)).Exec(ctx)
	require.NoError(t, err)
	assert.Zero(t, done.Written)
	assert.ErrorIs(t, store.Set(ctx, key, make(chan int)), kv.ErrCodecEncode, "which a Set tells")
}

func openGrove(t *testing.T, opts ...kv.Option) *kv.Store {
	t.Helper()
	store, err := kv.Open(drivertest.OpenShared(t), opts...)
	require.NoError(t, err)
	return store
}

func testGroveCodecs(t *testing.T) {
	ctx := t.Context()
	for _, c := range []codec.Codec{codec.JSON(), codec.MsgPack(), codec.Gob{}} {
		store, key := openGrove(t, kv.WithCodec(c)), drivertest.Key()
		require.NoError(t, store.Set(ctx, key, groveUser{groveID}), c.Name())
		var user groveUser
		require.NoError(t, store.Get(ctx, key, &user), c.Name())
		assert.Equal(t, groveUser{groveID}, user, c.Name())
	}
}

func testGroveMGetJSON(t *testing.T) {
	ctx := t.Context()
	store, prefix := drivertest.OpenStore(t, memcachedtest.Addr(t)), drivertest.Key()
	users := keyspace.New[groveUser](store, prefix)
	require.NoError(t, users.Set(ctx, "ann", groveUser{groveID}))
	many, err := users.MGet(ctx, []string{"ann"})
	require.NoError(t, err)
	assert.Equal(t, map[string]groveUser{"ann": {groveID - 1}}, many, "another id")
	key, got := prefix+":ann", map[string]any{}
	require.NoError(t, store.MGet(ctx, []string{key}, got))
	assert.Equal(t, map[string]any{key: map[string]any{"id": float64(groveID - 1)}}, got)
}

func testGroveKeyspaceMGet(t *testing.T) {
	ctx := t.Context()
	addr := memcachedtest.Addr(t)
	users := keyspace.New[groveUser](drivertest.OpenStore(t, addr), drivertest.Key(), keyspace.WithCodec(codec.MsgPack()))
	require.NoError(t, users.Set(ctx, "ann", groveUser{1}))
	_, err := users.MGet(ctx, []string{"ann"})
	assert.ErrorIs(t, err, kv.ErrCodecDecode)

	users = keyspace.New[groveUser](openGrove(t, kv.WithCodec(codec.MsgPack())), drivertest.Key(), keyspace.WithCodec(codec.JSON()))
	require.NoError(t, users.Set(ctx, "ann", groveUser{1}))
	many, err := users.MGet(ctx, []string{"ann"})
	require.NoError(t, err)
	assert.Empty(t, many, "as if it were not there")
	user, err := users.Get(ctx, "ann")
	require.NoError(t, err)
	assert.Equal(t, groveUser{1}, user)
}

func testGroveMGetGob(t *testing.T) {
	ctx := t.Context()
	for _, c := range []codec.Codec{codec.Gob{}, codec.Protobuf{}} {
		store, key := openGrove(t, kv.WithCodec(c)), drivertest.Key()
		value, err := codec.Gob{}.Encode(groveUser{1})
		require.NoError(t, err)
		if c == (codec.Protobuf{}) {
			value = nil // a message with all its fields at their defaults
		}
		require.NoError(t, store.SetRaw(ctx, key, value))
		assert.ErrorIs(t, store.MGet(ctx, []string{key}, map[string]any{}), kv.ErrCodecDecode, c.Name())
	}
}

func testGroveEntry(t *testing.T) {
	ctx := t.Context()
	users := keyspace.New[groveUser](drivertest.OpenStore(t, memcachedtest.Addr(t)), drivertest.Key(), keyspace.WithTTL(time.Hour))
	require.NoError(t, users.Set(ctx, "ann", groveUser{1}))
	entry, err := users.GetEntry(ctx, "ann")
	require.NoError(t, err)
	assert.False(t, entry.HasTTL(), "as if it had none")
	assert.Zero(t, entry.Version)

	users = keyspace.New[groveUser](drivertest.OpenStore(t, memcachedtest.Addr(t), memcacheddriver.WithTTLQuery()), users.Prefix())
	entry, err = users.GetEntry(ctx, "ann")
	require.NoError(t, err)
	assert.True(t, entry.HasTTL(), "what the page says to use instead")
	assert.Zero(t, entry.Version)
}

func testGroveScan(t *testing.T) {
	ctx := t.Context()
	store := drivertest.OpenStore(t, memcachedtest.Addr(t))
	never := func(string) error { panic("called") }
	assert.Equal(t, kv.ErrNotSupported, store.Scan(ctx, "*", never))
	assert.Equal(t, kv.ErrNotSupported, keyspace.New[int](store, "users").Scan(ctx, "*", never))
}
