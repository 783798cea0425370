package systemtest

import (
	"crypto/tls"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// TestDocsMakeAService builds and runs a service in a module of its own, outside this
// repository, whose code is that of the README and of docs.
func TestDocsMakeAService(t *testing.T) {
	t.Parallel()
	module, err := filepath.Abs("..")
	require.NoError(t, err)
	sums, err := os.ReadFile(filepath.Join(module, "go.sum"))
	require.NoError(t, err)
	certificate, tlsAddr := startTLS(t)
	_, three := drivertest.StartServers(t, 3)

	dir := t.TempDir()
	for name, content := range map[string]string{
		"go.mod": "module example.com/service\n\ngo 1.25.7\n\n" +
			"require github.com/xraph/grove/kv/drivers/memcacheddriver v0.0.0\n\n" +
			"replace github.com/xraph/grove/kv/drivers/memcacheddriver => " + module + "\n",
		"go.sum":             string(sums), // so that nothing is looked up
		"ca.pem":             certificate,
		"quickstart/main.go": docBlock(t, "README.md", "got the lock", "localhost:11211", memcachedtest.Start(t).Addr()),
		"cache/cache.go":     docBlock(t, "docs/options.md", "package cache"),
		"several/main.go": serviceMain + "func open(ctx context.Context) error {\n" +
			docBlock(t, "docs/options.md", `mc3:11211",`, "mc1:11211,mc2:11211,mc3:11211", strings.Join(three, ","), "500*time.Millisecond", "time.Minute") +
			"return use(ctx, store)\n}\n\nvar _ = codec.JSON\nvar _ = time.Now\n",
		"secure/main.go": strings.Replace(serviceMain, "import (", `import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"github.com/xraph/grove/kv/driver"
`, 1) + "func open(ctx context.Context) error {\n" +
			docBlock(t, "docs/options.md", "ca.pem", "cache.example.com:11211", tlsAddr) +
			"return use(ctx, store)\n}\n\nvar _ = codec.JSON\nvar _ = time.Now\n",
		"native/main.go": nativeMain +
			"func readme(ctx context.Context, store *kv.Store) error {\n" + docBlock(t, "README.md", "UnwrapClient(store)") + "return nil\n}\n\n" +
			"func calls(ctx context.Context, store *kv.Store) error {\n" + docBlock(t, "docs/calls.md", `client.Append(`) + "return nil\n}\n",
		"byname/main.go": strings.Replace(serviceMain, "import (", `import (
	"example.com/service/cache"
`, 1) + `func open(ctx context.Context) error {
	store, err := cache.Open(ctx, cache.Config{
		Driver: "memcached",
		DSN:    "` + three[0] + `?timeout=2s&max_idle_conns=4",
	})
	if err != nil {
		return err
	}
	defer store.Close()
	return use(ctx, store)
}

var _ = codec.JSON
var _ = time.Now
var _ = memcacheddriver.New
`,
	} {
		path := filepath.Join(dir, filepath.FromSlash(name))
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	}
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off", "MEMCACHED_PASSWORD=none")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s %s: %s", name, args, out)
		return string(out)
	}

	run("go", "build", "-o", "bin/", "./...")
	assert.Equal(t, "{User:Ada}\ngot the lock: true\n", run("bin/quickstart"))
	// On an empty server, and again on one that has what it needs.
	empty := memcachedtest.Start(t).Addr()
	assert.Equal(t, "1\n2\n", run("bin/native", empty))
	assert.Equal(t, "3\n4\n", run("bin/native", empty))
	for _, program := range []string{"several", "secure", "byname"} {
		assert.Equal(t, "20 of 20\n", run("bin/"+program), program)
	}
}

// serviceMain is what the snippets of docs need around them.
const serviceMain = `package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strconv"
	"time"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/codec"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

func main() {
	if err := open(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func use(ctx context.Context, store *kv.Store) error {
	if err := store.Ping(ctx); err != nil {
		return err
	}
	pairs, got := map[string]any{}, map[string]any{}
	var keys []string
	for i := range 20 {
		keys = append(keys, "service:"+strconv.Itoa(os.Getpid())+":"+strconv.Itoa(i))
		pairs[keys[i]] = i
	}
	if err := store.MSet(ctx, pairs); err != nil {
		return err
	}
	if err := store.MGet(ctx, keys, got); err != nil {
		return err
	}
	fmt.Printf("%d of %d\n", len(got), len(keys))
	return store.Delete(ctx, keys...)
}

`

// nativeMain is what the documents' snippets of gomemcache's own calls need around them.
const nativeMain = `package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

func main() {
	ctx := context.Background()
	store, err := memcacheddriver.OpenStore(ctx, os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	if err := errors.Join(readme(ctx, store), calls(ctx, store)); err != nil {
		log.Fatal(err)
	}
}

`

// docBlock returns the only Go block of a document that has mark in it, with
// replacements made, each of which must be there.
func docBlock(t *testing.T, doc, mark string, oldnew ...string) string {
	t.Helper()
	text, err := os.ReadFile("../" + doc)
	require.NoError(t, err)
	var found []string
	for _, after := range strings.Split(string(text), "\n```go\n")[1:] {
		block, _, ended := strings.Cut(after, "\n```\n")
		require.True(t, ended, "a block of %s has no end", doc)
		if strings.Contains(block, mark) {
			found = append(found, block+"\n")
		}
	}
	require.Len(t, found, 1, "Go blocks of %s with %q", doc, mark)
	for i := 0; i < len(oldnew); i += 2 {
		require.Contains(t, found[0], oldnew[i])
	}
	return strings.NewReplacer(oldnew...).Replace(found[0])
}

// startTLS starts a server and returns its certificate, to be trusted.
func startTLS(t *testing.T) (certificate, addr string) {
	t.Helper()
	server, config := memcachedtest.StartTLS(t)
	conn, err := tls.Dial("tcp", server.Addr(), config)
	require.NoError(t, err)
	defer conn.Close()
	leaf := conn.ConnectionState().PeerCertificates[0]
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})), server.Addr()
}
