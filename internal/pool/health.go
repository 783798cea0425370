package pool

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// ErrServerDown is in the chain of every call's error while its server is known
// to be down.
var ErrServerDown = errors.New("server is down")

// State is a server's health.
type State string

const (
	Up      State = "up"
	Down    State = "down"
	Probing State = "probing" // down, and a call has tried again without a verdict yet
)

// health is a circuit breaker: after enough failures in a row calls are refused,
// but for one every so often, which probes.
type health struct {
	limit      int           // failures in a row until the server is down; 0 means never
	retryAfter time.Duration // from one probe to the next

	// failures in a row. Only 0 is looked at without mu: a healthy server costs
	// one atomic load.
	failures atomic.Int32

	mu      sync.Mutex
	retryAt time.Time // while down: when the next call may probe
	probing bool      // a call was let through and no verdict has come
	refusal error     // what refused calls get
}

// down needs mu.
func (h *health) down() bool { return h.limit > 0 && int(h.failures.Load()) >= h.limit }

// admit refuses a call to a server that is down, unless a probe is due: the call
// is then that probe. What comes of it decides nothing about the next one, which
// is due in its time, so a probe that never ends cannot keep a server down.
func (h *health) admit() error {
	if h.failures.Load() == 0 {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.down() {
		return nil
	}
	now := time.Now()
	if now.Before(h.retryAt) {
		return h.refusal
	}
	h.retryAt = now.Add(h.retryAfter)
	h.probing = true
	return nil
}

// failed counts a failure and reports whether the server is down by it.
func (h *health) failed(cause error) (wentDown bool) {
	if h.limit == 0 {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failures.Add(1)
	if !h.down() {
		return false
	}
	h.probing = false
	h.refusal = fmt.Errorf("%w (tried again every %v); last failure: %w", ErrServerDown, h.retryAfter, cause)
	if int(h.failures.Load()) > h.limit {
		return false
	}
	h.retryAt = time.Now().Add(h.retryAfter)
	return true
}

// succeeded forgets all failures and reports whether the server was down.
func (h *health) succeeded() (cameUp bool) {
	if h.failures.Load() == 0 {
		return false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	cameUp = h.down()
	h.failures.Store(0)
	h.probing = false
	return cameUp
}

// refused is what refused calls get.
func (h *health) refused() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.refusal
}

func (h *health) state() State {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !h.down():
		return Up
	case h.probing:
		return Probing
	}
	return Down
}

// silence adds up for how long replies have been due that callers gave up on, since
// the server last said a byte to anybody. The server's mu guards it.
type silence struct {
	due   time.Duration
	until time.Duration // when the last of them gave up
}

// add counts the time from sent to now, where it has not been counted yet and nothing
// was heard, and returns the sum.
func (s *silence) add(sent, heard, now time.Duration) time.Duration {
	if heard > s.until {
		s.due = 0
		s.until = heard
	}
	s.due += now - max(sent, s.until)
	s.until = now
	return s.due
}
