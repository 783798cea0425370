package memcacheddriver_test

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/log"

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
func startContainer(t *testing.T, image string, args ...string) node {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c, err := testcontainers.Run(ctx, image,
		testcontainers.WithCmd(args...),
		testcontainers.WithExposedPorts(port),
		testcontainers.WithLogger(log.TestLogger(t)),
	)
	t.Cleanup(func() {
		assert.NoError(t, testcontainers.TerminateContainer(c, testcontainers.StopTimeout(0)))
	})
	n := &container{Container: c}
	if assert.NoError(t, err, "a container of %s does not start", image) {
		n.find(t)
	}
	return n
}

// find waits until the container's server answers. Docker's own proxy accepts
// connections before, and where the tests run in a container themselves the
// ports may be on the loopback address instead of where testcontainers looks.
func (c *container) find(t *testing.T) {
	at, err := c.PortEndpoint(t.Context(), port, "")
	if !assert.NoError(t, err) {
		return
	}
	_, mapped, err := net.SplitHostPort(at)
	if !assert.NoError(t, err) {
		return
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for _, c.at = range []string{at, net.JoinHostPort("127.0.0.1", mapped)} {
			client := memcache.New(c.at)
			err = client.Ping()
			client.Close()
			if err == nil {
				return
			}
		}
	}
	t.Errorf("the container's memcached does not answer at %s: set TESTCONTAINERS_HOST_OVERRIDE to the host that has Docker's ports (%v)", at, err)
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

// The images where MEMCACHED_IMAGE names none: the official one, and the one that
// scripts/memcached-image.sh makes of the local memcached.
const (
	officialImage = "memcached:1.6-alpine"
	localImage    = "memcacheddriver-test:local"
)

// nodeStarter returns what starts nodes: containers where testcontainers finds a
// Docker, which it may where the docker command does not.
func nodeStarter(t *testing.T) func(t *testing.T, args ...string) node {
	t.Helper()
	docker, err := testcontainers.NewDockerProvider(testcontainers.WithLogger(log.TestLogger(t)))
	if err == nil {
		defer docker.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		err = docker.Health(ctx)
	}
	if err != nil {
		if image := os.Getenv("MEMCACHED_IMAGE"); image != "" {
			t.Fatalf("MEMCACHED_IMAGE=%s asks for containers, but Docker does not run: %v", image, err)
		}
		t.Logf("Docker does not run (%v): the cases run against local memcached processes instead", err)
		return startProcess
	}
	where := docker.Client().DaemonHost()
	image := memcachedImage(t, docker)
	if !docker.Config().Config.RyukDisabled {
		if err := requireImage(t, docker, reaperImage); err != nil {
			t.Fatalf("Docker at %s has no %s, with which testcontainers removes the containers of tests that were killed, and cannot pull it: set TESTCONTAINERS_RYUK_DISABLED=true (%v)", where, reaperImage, err)
		}
	}
	t.Logf("the cases run against containers of %s, by Docker at %s", image, where)
	return func(t *testing.T, args ...string) node { return startContainer(t, image, args...) }
}

func memcachedImage(t *testing.T, docker *testcontainers.DockerProvider) string {
	t.Helper()
	image := os.Getenv("MEMCACHED_IMAGE")
	if image == "" {
		image = officialImage
		for _, present := range []string{officialImage, localImage} {
			if _, err := docker.Client().ImageInspect(t.Context(), present); err == nil {
				return present
			}
		}
	}
	if err := requireImage(t, docker, image); err != nil {
		t.Fatalf("Docker at %s has no image %s and cannot pull it: set MEMCACHED_IMAGE to one that it has, or make %s by scripts/memcached-image.sh, with DOCKER_HOST=%[1]s if the docker command does not find it (%[4]v)",
			docker.Client().DaemonHost(), image, localImage, err)
	}
	return image
}

// requireImage pulls an image that is not there, but not for a quarter of an hour
// as testcontainers does.
func requireImage(t *testing.T, docker *testcontainers.DockerProvider, image string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := docker.Client().ImageInspect(ctx, image); err == nil {
		return nil
	}
	return docker.PullImage(ctx, image)
}

//lint:ignore SA1019 it has no other name
var reaperImage = testcontainers.ReaperDefaultImage

func TestScriptsLookForTheReaperOfTestcontainers(t *testing.T) {
	t.Parallel()
	script, err := os.ReadFile("scripts/test-env.sh")
	require.NoError(t, err)
	assert.Contains(t, string(script), reaperImage)
}
