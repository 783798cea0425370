package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/keyspace"
)

const (
	sessionTTL = 30 * time.Minute
	reportTTL  = time.Minute
)

// session is what the service knows of a visitor.
type session struct {
	User string `json:"user"`
}

// report is what takes long to make.
type report struct {
	Title string `json:"title"`
	Body  string `json:"body"`
}

type service struct {
	store    *kv.Store
	sessions *keyspace.Keyspace[session]

	makeReport func(ctx context.Context, name string) (report, error)
	newID      func() string
	logf       func(format string, args ...any)
}

func newService(store *kv.Store) *service {
	return &service{
		store: store,
		// Keys are "session:ID"; values are the structs, as JSON.
		sessions:   keyspace.New[session](store, "session", keyspace.WithTTL(sessionTTL)),
		makeReport: slowly,
		newID:      rand.Text,
		logf:       log.Printf,
	}
}

func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", s.login)
	mux.HandleFunc("GET /{$}", s.home)
	mux.HandleFunc("GET /report/{name}", s.report)
	return mux
}

// login begins a session. Without a cache there is none: that is an error.
func (s *service) login(w http.ResponseWriter, r *http.Request) {
	id := s.newID()
	if err := s.sessions.Set(r.Context(), id, session{User: r.FormValue("user")}); err != nil {
		s.cacheFailed("login", err)
		http.Error(w, "try again later", http.StatusServiceUnavailable)
		return
	}
	http.SetCookie(w, &http.Cookie{Name: "session", Value: id, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int(sessionTTL.Seconds())})
	s.logf("login: a session for %q, for %v", r.FormValue("user"), sessionTTL)
	fmt.Fprintln(w, "welcome")
}

// home greets the visitor and counts the view.
func (s *service) home(w http.ResponseWriter, r *http.Request) {
	user := s.visitor(r)
	views, err := s.countView(r.Context(), "views:home")
	if err != nil {
		// The page matters more than its counter.
		s.cacheFailed("home: not counted", err)
		fmt.Fprintf(w, "Hello %s.\n", user)
		return
	}
	s.logf("home: view %d, by %s", views, user)
	fmt.Fprintf(w, "Hello %s. This page was seen %d times.\n", user, views)
}

// visitor returns who has the session of the request's cookie, and lets the
// session live on from now.
func (s *service) visitor(r *http.Request) string {
	const stranger = "stranger"
	cookie, err := r.Cookie("session")
	if err != nil {
		return stranger
	}
	found, err := s.sessions.Get(r.Context(), cookie.Value)
	if err != nil {
		// A session that is over is a miss; a key that no session can have is
		// ErrInvalidKey; anything else is worth a line.
		if !errors.Is(err, kv.ErrNotFound) {
			s.cacheFailed("session", err)
		}
		return stranger
	}
	if err := s.sessions.Store().Expire(r.Context(), s.sessions.Prefix()+":"+cookie.Value, sessionTTL); err != nil {
		s.cacheFailed("session", err)
	}
	return found.User
}

// countView adds one to a counter. Memcached increments only what is there, so
// the first view adds the counter, unless another first view was faster.
func (s *service) countView(ctx context.Context, key string) (views uint64, err error) {
	err = memcacheddriver.Unwrap(s.store).Do(ctx, func(client *memcache.Client) error {
		views, err = client.Increment(key, 1)
		if !errors.Is(err, memcache.ErrCacheMiss) {
			return err
		}
		views = 1
		err = client.Add(&memcache.Item{Key: key, Value: []byte("1")})
		if !errors.Is(err, memcache.ErrNotStored) {
			return err
		}
		views, err = client.Increment(key, 1)
		return err
	})
	return views, err
}

// report answers from the cache. Of all that ask for a report that is not there one makes
// it, and so it is while the cache does not answer.
func (s *service) report(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	var made atomic.Bool
	found, err := memcacheddriver.Fetch(r.Context(), s.store, "report:"+name, reportTTL, func(ctx context.Context) (report, error) {
		made.Store(true)
		return s.makeReport(ctx, name)
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	from := "cache"
	if made.Load() {
		from = "source"
	}
	s.logf("report: %q, from the %s", name, from)
	w.Header().Set("X-From", from)
	fmt.Fprintf(w, "%s\n\n%s\n", found.Title, found.Body)
}

// cacheFailed logs what went wrong in the cache. The driver's logger tells when a server
// goes down and when it is back: to tell of each call in between would fill the log when
// there is trouble enough.
func (s *service) cacheFailed(what string, err error) {
	if !errors.Is(err, memcacheddriver.ErrServerDown) {
		s.logf("%s: %v", what, err)
	}
}

// slowly stands for a query over a large table.
func slowly(ctx context.Context, name string) (report, error) {
	select {
	case <-time.After(2 * time.Second):
		return report{Title: "Report " + name, Body: "All is well, as of " + time.Now().Format(time.TimeOnly) + "."}, nil
	case <-ctx.Done():
		return report{}, ctx.Err()
	}
}
