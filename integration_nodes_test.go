package memcacheddriver_test

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/log"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

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
