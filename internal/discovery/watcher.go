package discovery

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// retryAfter is for how long calls that need the first list fail at once after a
// look-up that failed, so that they do not all wait for an endpoint that is down.
const retryAfter = time.Second

// patience is how long a look-up has to say why it ended with its context.
const patience = time.Second

// Config says what a [Watcher] watches.
type Config struct {
	// Sources are where the list comes from. All are asked at the same time, and the
	// first good answer counts.
	Sources []Source
	Timeout time.Duration

	// Apply installs a list, which it must not change. An error refuses the list. It
	// is called by one goroutine at a time, which Close waits for.
	Apply func(servers []string) error

	// Interval is greater than 0. It is kept to within a tenth.
	Interval time.Duration

	Infof, Warnf func(format string, args ...any)
}

// Source is asked for the list.
type Source struct {
	Name string // for errors and the log

	// Lookup asks once. Its context ends after the timeout, and with Close; nobody waits
	// for it any longer.
	Lookup func(context.Context) (Answer, error)
}

// Watcher keeps a list of servers as its source has it. It is safe for concurrent
// use. Until it is first waited for it does nothing, and it has a goroutine only
// while it looks for the first list, and once it has that.
//
// Nothing but a good list that is newer replaces one: one with a greater version, or
// with other servers where the source counts no versions. One of the same version is
// the same list whatever is in it.
type Watcher struct {
	cfg   Config
	ready atomic.Bool // there is a list, and the Watcher is not closed

	closing context.Context // ends with Close
	cancel  context.CancelFunc
	done    sync.WaitGroup // of the goroutine

	mu      sync.Mutex
	first   *attempt // at the first list: the one under way, or the last
	status  Status
	trouble trouble // what was last warned of; none since the last success

	servers []string // the last that were applied. Of the goroutine only
}

// attempt is a look-up that callers wait for.
type attempt struct {
	done    chan struct{}
	err     error     // under mu until done is closed
	retryAt time.Time // when the next one may begin if this one failed; under mu
}

// Status is what has become of the look-ups.
type Status struct {
	Version     int64     // of the list in use; NoVersion where there is none
	LastSuccess time.Time // the last answer that was applied, or in use already
	LastError   error     // of the last look-up
}

// trouble is a kind of failure. The log has each but once: the text would not do to
// tell them apart, as it may have a port that is another one each time.
type trouble int

const (
	none     trouble = iota
	noAnswer         // or one that makes no sense
	outdated         // a version less than the one in use
	refused          // by Apply
)

// New returns a Watcher, which is to be closed.
func New(cfg Config) *Watcher {
	w := &Watcher{cfg: cfg, status: Status{Version: NoVersion}}
	w.closing, w.cancel = context.WithCancel(context.Background())
	return w
}

// Wait returns when there is a list. Who needs the first one shares one look-up,
// which no caller's context ends, and the failure that it comes to. Until ctx ends
// it waits, with an error that is ctx's.
func (w *Watcher) Wait(ctx context.Context) error {
	if w.ready.Load() {
		return nil
	}
	return w.waitForFirst(ctx)
}

func (w *Watcher) waitForFirst(ctx context.Context) error {
	if ctx.Err() != nil {
		return w.error(ctx.Err())
	}
	a := w.join()
	if a == nil {
		return ErrClosed
	}
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
		return w.error(ctx.Err())
	case <-w.closing.Done():
		return ErrClosed
	}
}

// join returns the attempt to wait for, which it begins where there is none; nil
// after Close.
func (w *Watcher) join() *attempt {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closing.Err() != nil {
		return nil
	}
	if w.first == nil || w.first.err != nil && !time.Now().Before(w.first.retryAt) {
		a := &attempt{done: make(chan struct{})}
		w.first = a
		w.done.Go(func() { w.run(a) })
	}
	return w.first
}

// Name names all sources.
func (w *Watcher) Name() string {
	var names []string
	for _, s := range w.cfg.Sources {
		names = append(names, s.Name)
	}
	return strings.Join(names, ",")
}

// Status returns what has become of the look-ups so far.
func (w *Watcher) Status() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status
}

// Close ends a look-up that is under way, and returns when the goroutine is gone.
// Those who wait get [ErrClosed]. Apply must not call it.
func (w *Watcher) Close() {
	w.mu.Lock()
	w.cancel() // under mu, so that nothing begins, or is ready, after it
	w.ready.Store(false)
	w.mu.Unlock()
	w.done.Wait()
}

// run looks for the first list, and then for newer ones.
func (w *Watcher) run(a *attempt) {
	err := w.lookUp()
	w.mu.Lock()
	a.err, a.retryAt = err, time.Now().Add(retryAfter)
	w.mu.Unlock()
	close(a.done)
	if err != nil {
		return
	}
	interval := min(w.cfg.Interval, math.MaxInt64/2) // which a tenth can be added to
	for {
		// With jitter, as clients that were started together would ask together.
		timer := time.NewTimer(interval - interval/10 + rand.N(interval/5+1))
		select {
		case <-timer.C:
			_ = w.lookUp() // which says what there is to say
		case <-w.closing.Done():
			timer.Stop()
			return
		}
	}
}

// lookUp asks once, does what the answer calls for, and keeps account of it.
func (w *Watcher) lookUp() error {
	kind := noAnswer
	answer, err := w.ask()
	if err == nil {
		kind, err = w.take(answer)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closing.Err() != nil {
		return ErrClosed
	}
	before := w.trouble
	w.trouble, w.status.LastError = kind, nil
	if err == nil {
		w.ready.Store(true)
		w.status.LastSuccess = time.Now()
		w.status.Version = max(w.status.Version, answer.Version)
		if before != none {
			w.cfg.Infof("memcacheddriver: the discovery of servers by %s works again", w.Name())
		}
		return nil
	}
	err = w.error(err)
	w.status.LastError = err
	if kind != before {
		inUse := ""
		if w.servers != nil {
			inUse = "; the servers in use stay"
		}
		w.cfg.Warnf("memcacheddriver: %v%s", err, inUse)
	}
	return err
}

// ask asks all sources within the timeout.
func (w *Watcher) ask() (Answer, error) {
	ctx, cancel := context.WithTimeout(w.closing, w.cfg.Timeout)
	defer cancel()
	type result struct {
		source int
		answer Answer
		err    error
	}
	results := make(chan result, len(w.cfg.Sources))
	for i, s := range w.cfg.Sources {
		go func() { // which a callback of the user's TLS may hold up, or end
			r := result{source: i, err: errors.New("the look-up ended its goroutine")}
			defer func() { results <- r }()
			r.answer, r.err = s.Lookup(ctx)
		}()
	}
	deaf := time.NewTimer(w.cfg.Timeout + patience)
	defer deaf.Stop()
	errs := make([]error, len(w.cfg.Sources))
	for range w.cfg.Sources {
		var r result
		select {
		case r = <-results:
		case <-w.closing.Done():
			return Answer{}, ErrClosed
		case <-deaf.C:
			return Answer{}, w.timedOut(context.DeadlineExceeded)
		}
		switch {
		case r.err == nil && len(r.answer.Servers) > 0:
			return r.answer, nil
		case r.err == nil:
			r.err = errors.New("the list is empty")
		case errors.Is(r.err, context.DeadlineExceeded), errors.Is(r.err, context.Canceled):
			r.err = w.timedOut(r.err)
		}
		errs[r.source] = r.err
	}
	return Answer{}, w.oneOf(errs)
}

// oneOf makes one error, in one line, of those of the sources.
func (w *Watcher) oneOf(errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	var named []any
	for i, err := range errs {
		named = append(named, fmt.Errorf("%s: %w", w.cfg.Sources[i].Name, err))
	}
	return fmt.Errorf(strings.Repeat("; %w", len(named))[2:], named...)
}

// take applies an answer if it is newer than the list in use.
func (w *Watcher) take(answer Answer) (trouble, error) {
	// Only this goroutine changes it.
	inUse := w.status.Version
	switch {
	case w.servers == nil:
	case answer.Version == NoVersion && slices.Equal(answer.Servers, w.servers):
		return none, nil
	case answer.Version == NoVersion:
	case answer.Version == inUse:
		return none, nil
	case answer.Version < inUse:
		return outdated, fmt.Errorf("version %d of the list is not newer than %d, which is in use (if the cluster was created anew under its old name, open the driver anew)", answer.Version, inUse)
	}
	if w.closing.Err() != nil {
		return none, ErrClosed
	}
	if err := w.cfg.Apply(answer.Servers); err != nil {
		return refused, err
	}
	w.servers = answer.Servers
	return none, nil
}

func (w *Watcher) error(err error) error {
	return fmt.Errorf("discovery of servers by %s: %w", w.Name(), err)
}

// timeoutError is a look-up that took too long. Its chain has no context's end, which
// would pass for that of the caller's own.
type timeoutError struct {
	after time.Duration
	err   error
}

func (w *Watcher) timedOut(err error) error { return &timeoutError{w.cfg.Timeout, err} }

func (e *timeoutError) Error() string { return fmt.Sprintf("no answer within %v: %v", e.after, e.err) }

func (e *timeoutError) Unwrap() error { return os.ErrDeadlineExceeded }
