package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log"
	"net/http"
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
	db       *memcacheddriver.MemcachedDB
	sessions *keyspace.Keyspace[session]
	reports  *keyspace.Keyspace[report]

	makeReport func(ctx context.Context, name string) (report, error)
	newID      func() string
	logf       func(format string, args ...any)
}

func newService(store *kv.Store) *service {
	return &service{
		db: memcacheddriver.Unwrap(store),
		// Keys are "session:ID" and "report:NAME"; values are the structs, as JSON.
		sessions:   keyspace.New[session](store, "session", keyspace.WithTTL(sessionTTL)),
		reports:    keyspace.New[report](store, "report", keyspace.WithTTL(reportTTL)),
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
		s.logf("login: %v", err)
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
		s.logf("home: not counted: %v", err)
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
			s.logf("session: %v", err)
		}
		return stranger
	}
	if err := s.sessions.Store().Expire(r.Context(), s.sessions.Prefix()+":"+cookie.Value, sessionTTL); err != nil {
		s.logf("session: %v", err)
	}
	return found.User
}

// countView adds one to a counter. Memcached increments only what is there, so
// the first view adds the counter, unless another first view was faster.
func (s *service) countView(ctx context.Context, key string) (views uint64, err error) {
	err = s.db.Do(ctx, func(client *memcache.Client) error {
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

// report answers from the cache, and makes the report where it is not there or
// the cache does not answer.
func (s *service) report(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	found, err := s.reports.Get(r.Context(), name)
	from := "hit"
	if err != nil {
		from = "miss"
		if !errors.Is(err, kv.ErrNotFound) {
			from = "down"
			s.logf("report: %v", err)
		}
		if found, err = s.makeReport(r.Context(), name); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if from == "miss" {
			if err := s.reports.Set(r.Context(), name, found); err != nil {
				s.logf("report: not cached: %v", err)
			}
		}
	}
	s.logf("report: %q, cache %s", name, from)
	w.Header().Set("X-Cache", from)
	fmt.Fprintf(w, "%s\n\n%s\n", found.Title, found.Body)
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
