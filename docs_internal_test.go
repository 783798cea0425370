package memcacheddriver

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// prelude is what a Go block of the documentation finds declared, unless it is a
// file of its own.
const prelude = `package block

import (
	"context"

	"github.com/xraph/grove/kv"
)

var (
	ctx   context.Context
	store *kv.Store
)

type User struct{ Name string }

func show(User) error { return nil }

func loadUser(context.Context, int) (User, error) { return User{}, nil }
`

// blockImports are the packages that a block may use without importing them.
var blockImports = map[string]string{
	"context":         "context",
	"codec":           "github.com/xraph/grove/kv/codec",
	"driver":          "github.com/xraph/grove/kv/driver",
	"errors":          "errors",
	"fmt":             "fmt",
	"kv":              "github.com/xraph/grove/kv",
	"log":             "log",
	"memcache":        "github.com/bradfitz/gomemcache/memcache",
	"memcacheddriver": "github.com/xraph/grove/kv/drivers/memcacheddriver",
	"os":              "os",
	"strconv":         "strconv",
	"time":            "time",
	"tls":             "crypto/tls",
	"x509":            "crypto/x509",
}

func TestGoBlocksCompile(t *testing.T) {
	t.Parallel()
	module, err := os.Getwd()
	require.NoError(t, err)
	dir := t.TempDir()
	// The blocks are packages of this module, though nothing of them is in its
	// directory: an overlay puts them there for the go command alone.
	overlay := make(map[string]string)
	var packages []string
	for _, doc := range documents(t) {
		blocks := goBlocks(t, doc)
		for _, b := range blocks {
			pkg := fmt.Sprintf("internal/docblocks/block%d", len(packages))
			packages = append(packages, "./"+pkg)
			for name, source := range b.files(t) {
				path := filepath.Join(dir, fmt.Sprintf("%d-%s", len(packages), name))
				require.NoError(t, os.WriteFile(path, []byte(source), 0o600))
				overlay[filepath.Join(module, filepath.FromSlash(pkg), name)] = path
			}
		}
	}
	require.Greater(t, len(packages), 20, "the Go blocks of the documents")
	replace, err := json.Marshal(map[string]any{"Replace": overlay})
	require.NoError(t, err)
	file := filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(file, replace, 0o600))

	args := append([]string{"build", "-overlay", file}, packages...)
	out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput()
	assert.NoError(t, err, "%s", out)
}

// documents returns what users read, but for the package documentation.
func documents(t *testing.T) []string {
	t.Helper()
	docs, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	require.NotEmpty(t, docs)
	return append([]string{"README.md", "CONTRIBUTING.md", "CHANGELOG.md"}, docs...)
}

type goBlock struct {
	doc    string
	line   int // of its first line of code
	source string
}

func goBlocks(t *testing.T, doc string) (blocks []goBlock) {
	t.Helper()
	text, err := os.ReadFile(doc)
	require.NoError(t, err)
	var b *goBlock
	for i, line := range strings.SplitAfter(string(text), "\n") {
		switch fence := strings.TrimSpace(line); {
		case b == nil && fence == "```go":
			b = &goBlock{doc: doc, line: i + 2}
		case b != nil && fence == "```":
			blocks = append(blocks, *b)
			b = nil
		case b != nil:
			b.source += line
		}
	}
	require.Nil(t, b, "%s: a block has no end", doc)
	return blocks
}

// files returns the package that is made of the block.
func (b *goBlock) files(t *testing.T) map[string]string {
	t.Helper()
	position := fmt.Sprintf("//line %s:%d\n", b.doc, b.line)
	if strings.HasPrefix(b.source, "package ") {
		return map[string]string{"block.go": position + b.source}
	}
	body := "\nfunc _() error {\n" + position + b.source + "\nreturn nil\n}\n"
	file, err := parser.ParseFile(token.NewFileSet(), "", "package block\n"+body, 0)
	require.NoError(t, err)
	imports := make(map[string]string)
	for _, id := range file.Unresolved {
		if path, ok := blockImports[id.Name]; ok {
			imports[id.Name] = "import " + strconv.Quote(path) + "\n"
		}
	}
	source := "package block\n\n"
	for _, line := range imports {
		source += line
	}
	return map[string]string{"block.go": source + body, "prelude.go": prelude}
}

// DSN parameters too, with their defaults.
func TestDocsHaveEveryOption(t *testing.T) {
	t.Parallel()
	c := defaultConfig()
	defaults := map[string]any{
		"timeout":              c.readTimeout,
		"dial_timeout":         c.dialTimeout,
		"read_timeout":         c.readTimeout,
		"write_timeout":        c.writeTimeout,
		"max_open_conns":       c.maxOpenConns,
		"max_idle_conns":       c.maxIdleConns,
		"pool_size":            c.maxIdleConns,
		"conn_max_idle_time":   c.connMaxIdleTime,
		"server_failure_limit": c.failureLimit,
		"server_retry_timeout": c.retryTimeout,
		"tls":                  c.tls != nil,
		"insecure_credentials": c.insecureCredentials,
		"discovery":            "none",
		"discovery_interval":   c.discoveryInterval,
		"distribution":         c.distribution,
		"key_prefix":           "none",
		"ping":                 c.pingPolicy,
		"traced_keys":          c.tracedKeys,
		"ttl_query":            c.ttlQuery,
	}
	rows := table(t, "docs/options.md", "\n## Options\n")
	for _, p := range params {
		name := p.name
		require.Contains(t, defaults, name, "the default of parameter %s, for this test", name)
		i := slices.IndexFunc(rows, func(row []string) bool { return row[1] == "`"+name+"`" })
		if assert.GreaterOrEqual(t, i, 0, "parameter %s is in the table", name) {
			assert.Equal(t, fmt.Sprint(defaults[name]), rows[i][2], "the default of parameter %s", name)
		}
	}
	for _, option := range exported(t, func(d *ast.FuncDecl) bool {
		results := d.Type.Results
		if d.Recv != nil || results == nil || len(results.List) != 1 {
			return false
		}
		s, ok := results.List[0].Type.(*ast.SelectorExpr)
		return ok && s.Sel.Name == "Option"
	}) {
		assert.True(t, slices.ContainsFunc(rows, func(row []string) bool {
			return strings.HasPrefix(row[0], "`"+option+"(")
		}), "option %s is in the table", option)
	}
}

func TestDocsHaveEveryError(t *testing.T) {
	t.Parallel()
	rows := table(t, "docs/errors.md", "# Errors\n")
	errs := exported(t, nil)
	require.Contains(t, errs, "ErrServerDown")
	for _, name := range errs {
		i := slices.IndexFunc(rows, func(row []string) bool { return strings.Contains(row[0], "`"+name+"`") })
		if assert.GreaterOrEqual(t, i, 0, "%s is in the table", name) {
			assert.NotEmpty(t, rows[i][1], "%s: what happened", name)
			assert.NotEmpty(t, rows[i][2], "%s: what to do", name)
		}
	}
}

// table returns the cells of the first table of a document after a heading.
func table(t *testing.T, doc, heading string) (rows [][]string) {
	t.Helper()
	text, err := os.ReadFile(doc)
	require.NoError(t, err)
	_, section, ok := strings.Cut(string(text), heading)
	require.True(t, ok, "%s has no %q", doc, heading)
	for line := range strings.Lines(section) {
		row, ok := strings.CutPrefix(strings.TrimSpace(line), "|")
		if !ok {
			if rows != nil {
				break
			}
			continue
		}
		cells := strings.Split(strings.TrimSuffix(row, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		rows = append(rows, cells)
	}
	require.Greater(t, len(rows), 2, "the table after %q", heading)
	return rows[2:]
}

// exported returns the names of the package's exported functions that match, or
// of its exported errors where match is nil.
func exported(t *testing.T, match func(*ast.FuncDecl) bool) (names []string) {
	t.Helper()
	for _, file := range parseDir(t, ".", 0) {
		for _, decl := range file.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if match != nil && d.Name.IsExported() && match(d) {
					names = append(names, d.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					v, ok := spec.(*ast.ValueSpec)
					if match == nil && ok && d.Tok == token.VAR && strings.HasPrefix(v.Names[0].Name, "Err") {
						names = append(names, v.Names[0].Name)
					}
				}
			}
		}
	}
	require.NotEmpty(t, names)
	return names
}

// parseDir parses the files of a package, without its tests.
func parseDir(t *testing.T, dir string, mode parser.Mode) (files []*ast.File) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	require.NoError(t, err)
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, mode|parser.SkipObjectResolution)
		require.NoError(t, err)
		files = append(files, file)
	}
	require.NotEmpty(t, files, "%s has no Go files", dir)
	return files
}

// As docs/architecture.md says.
func TestImports(t *testing.T) {
	t.Parallel()
	const module = "github.com/xraph/grove/kv/drivers/memcacheddriver/"
	const gomemcache = "github.com/bradfitz/gomemcache/memcache"
	allowed := map[string][]string{
		"internal/pipeline":      {module + "internal/pool", module + "internal/protocol"},
		"internal/link":          {module + "internal/pipeline", module + "internal/pool", module + "internal/protocol"},
		"internal/remover":       {module + "internal/pipeline"},
		"internal/discovery":     {module + "internal/protocol"},
		"internal/pool":          {gomemcache, module + "internal/ketama", module + "internal/protocol"},
		"internal/ketama":        nil,
		"internal/protocol":      nil,
		"internal/memcachedtest": {"go.uber.org/goleak"},
		"internal/drivertest": {
			strings.TrimSuffix(module, "/"), module + "internal/memcachedtest", gomemcache,
			"github.com/xraph/grove/kv", "github.com/xraph/grove/kv/driver",
			"github.com/xraph/go-utils/log", "github.com/stretchr/testify/assert", "github.com/stretchr/testify/require",
		},
	}
	dirs, err := fs.Glob(os.DirFS("."), "internal/*")
	require.NoError(t, err)
	for _, dir := range dirs {
		require.Contains(t, allowed, dir, "a package that docs/architecture.md does not know")
		for _, file := range parseDir(t, dir, parser.ImportsOnly) {
			for _, spec := range file.Imports {
				path, err := strconv.Unquote(spec.Path.Value)
				require.NoError(t, err)
				// The standard library's paths have no dot in their first element.
				if first, _, _ := strings.Cut(path, "/"); strings.Contains(first, ".") {
					assert.Contains(t, allowed[dir], path, "%s imports it", dir)
				}
			}
		}
	}
	for _, file := range parseDir(t, ".", parser.ImportsOnly) {
		for _, spec := range file.Imports {
			for _, forTests := range []string{"memcachedtest", "drivertest"} {
				assert.NotContains(t, spec.Path.Value, forTests, "%s is for tests only", spec.Path.Value)
			}
		}
	}
}

var (
	docLink = regexp.MustCompile(`\]\(([^)#: ]*)(?:#([^) ]+))?\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	dropped = regexp.MustCompile(`[^a-z0-9 _-]`)
)

// To other files of the repository, and to headings in them.
func TestDocumentLinksLeadSomewhere(t *testing.T) {
	t.Parallel()
	found := 0
	for _, doc := range documents(t) {
		text, err := os.ReadFile(doc)
		require.NoError(t, err)
		for _, m := range docLink.FindAllStringSubmatch(string(text), -1) {
			found++
			target := doc
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(doc), m[1])
			}
			in, err := os.ReadFile(target)
			if !assert.NoError(t, err, "%s: %s", doc, m[0]) || m[2] == "" {
				continue
			}
			var anchors []string
			for _, h := range heading.FindAllStringSubmatch(string(in), -1) {
				anchors = append(anchors, strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-"))
			}
			assert.Contains(t, anchors, m[2], "%s: %s", doc, m[0])
		}
	}
	assert.Greater(t, found, 20)
}

func TestTablesHaveHeads(t *testing.T) {
	t.Parallel()
	for _, doc := range documents(t) {
		text, err := os.ReadFile(doc)
		require.NoError(t, err)
		lines := strings.Split(string(text), "\n")
		for i, line := range lines {
			if strings.HasPrefix(line, "|") && (i == 0 || !strings.HasPrefix(lines[i-1], "|")) {
				assert.Regexp(t, `^\|( -+:? \|)+$`, lines[i+1], "%s:%d: a table without a head", doc, i+1)
			}
		}
	}
}
