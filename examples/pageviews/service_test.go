package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestMain(m *testing.M) { memcachedtest.Main(m) }

// site is the service on a memcached of its own, and a browser that visits it.
type site struct {
	*service
	t         *testing.T
	memcached *memcachedtest.Server
	url       string
	browser   *http.Client
}

func newSite(t *testing.T) *site {
	t.Helper()
	memcached := memcachedtest.Start(t)
	store, err := memcacheddriver.OpenStore(t.Context(), memcached.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, store.Close()) })

	s := newService(store)
	s.logf = t.Logf
	server := httptest.NewServer(s.handler())
	t.Cleanup(server.Close)
	browser := server.Client()
	browser.Jar, err = cookiejar.New(nil)
	require.NoError(t, err)
	return &site{service: s, t: t, memcached: memcached, url: server.URL, browser: browser}
}

func (s *site) get(path string) (body string, header http.Header) {
	s.t.Helper()
	r, err := s.browser.Get(s.url + path)
	require.NoError(s.t, err)
	return s.read(r, http.StatusOK), r.Header
}

func (s *site) login(user string, status int) {
	s.t.Helper()
	r, err := s.browser.PostForm(s.url+"/login", url.Values{"user": {user}})
	require.NoError(s.t, err)
	s.read(r, status)
}

func (s *site) read(r *http.Response, status int) string {
	s.t.Helper()
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	require.NoError(s.t, err)
	require.Equal(s.t, status, r.StatusCode, "%s", body)
	return string(body)
}

func TestSession(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	home, _ := s.get("/")
	assert.Equal(t, "Hello stranger. This page was seen 1 times.\n", home)

	s.newID = func() string { return "id" }
	s.login("Ada", http.StatusOK)
	home, _ = s.get("/")
	assert.Contains(t, home, "Hello Ada.")

	// As when its 30 minutes are over.
	require.NoError(t, s.sessions.Delete(t.Context(), "id"))
	home, _ = s.get("/")
	assert.Contains(t, home, "Hello stranger.")
}

func TestForgedCookie(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/", nil)
	require.NoError(t, err)
	r.AddCookie(&http.Cookie{Name: "session", Value: "x y", Quoted: true})
	response, err := s.browser.Do(r)
	require.NoError(t, err)
	assert.Contains(t, s.read(response, http.StatusOK), "Hello stranger.")
}

func TestEveryViewCounts(t *testing.T) {
	t.Parallel()
	const visitors, views = 8, 10
	s := newSite(t)
	var all sync.WaitGroup
	for range visitors {
		all.Go(func() {
			for range views {
				s.get("/")
			}
		})
	}
	all.Wait()
	home, _ := s.get("/")
	assert.Contains(t, home, fmt.Sprintf("seen %d times", visitors*views+1))
}

func TestReportIsMadeOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	var made atomic.Int32
	s.makeReport = func(_ context.Context, name string) (report, error) {
		return report{Title: name, Body: strings.Repeat("x", int(made.Add(1)))}, nil
	}
	first, header := s.get("/report/q3")
	assert.Equal(t, "source", header.Get("X-From"))
	second, header := s.get("/report/q3")
	assert.Equal(t, "cache", header.Get("X-From"))
	assert.Equal(t, first, second)
	assert.EqualValues(t, 1, made.Load())
}

func TestWithoutMemcached(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.makeReport = func(context.Context, string) (report, error) { return report{Title: "made anew"}, nil }
	s.memcached.Kill()
	home, _ := s.get("/")
	assert.Equal(t, "Hello stranger.\n", home)
	body, header := s.get("/report/q3")
	assert.Contains(t, body, "made anew")
	assert.Equal(t, "source", header.Get("X-From"))
	s.login("Ada", http.StatusServiceUnavailable)

	// Not a line for each call that the server is down for.
	var lines atomic.Int32
	s.logf = func(format string, args ...any) {
		if strings.Contains(fmt.Sprintf(format, args...), s.memcached.Addr()) {
			lines.Add(1)
		}
	}
	for range 100 {
		s.get("/")
	}
	assert.Less(t, lines.Load(), int32(20))

	s.memcached.Restart()
	require.Eventually(t, func() bool {
		home, _ := s.get("/")
		return strings.Contains(home, "seen")
	}, 20*time.Second, 50*time.Millisecond)
}
