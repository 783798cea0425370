package memcacheddriver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// errInFlight means that somebody else does it already, or has just tried.
var errInFlight = errors.New("it is under way")

// cooling is how long nobody tries again what who does not join has failed to do.
const cooling = time.Second

// flights let callers of the same key share one load. Unlike x/sync's singleflight they
// know contexts: a load ends when nobody waits for it any more, and not with the caller
// that it began for; and one that panics does so in its callers, who can recover.
type flights struct {
	mu    sync.Mutex
	byKey map[string]*flight
}

type flight struct {
	cancel  context.CancelFunc
	cools   bool // it is remembered for a while if it fails
	waiting int  // under flights.mu

	done     chan struct{}
	value    []byte
	err      error
	panicked *loadPanic
}

// loadPanic is what callers panic with whose load has.
type loadPanic struct {
	value any
	stack []byte
}

func (p *loadPanic) Error() string { return fmt.Sprintf("%v\n\n%s", p.value, p.stack) }

func (p *loadPanic) Unwrap() error {
	err, _ := p.value.(error)
	return err
}

// do returns what fn returns, which is called once for all that ask for key meanwhile. Who
// does not join where that is under way already gets errInFlight.
func (fs *flights) do(ctx context.Context, key string, join bool, fn func(context.Context) ([]byte, error)) ([]byte, error) {
	fs.mu.Lock()
	f := fs.byKey[key]
	switch {
	case f == nil || join && f.landed():
		f = &flight{done: make(chan struct{}), cools: !join}
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		f.cancel = cancel
		if fs.byKey == nil {
			fs.byKey = make(map[string]*flight)
		}
		fs.byKey[key] = f
		go func() {
			defer fs.land(key, f)
			f.run(ctx, fn)
		}()
	case !join:
		fs.mu.Unlock()
		return nil, errInFlight
	}
	f.waiting++
	fs.mu.Unlock()
	select {
	case <-f.done:
	case <-ctx.Done():
		fs.leave(key, f)
		return nil, ctx.Err()
	}
	if f.panicked != nil {
		panic(f.panicked)
	}
	return bytes.Clone(f.value), f.err // each has his own
}

func (f *flight) landed() bool {
	select {
	case <-f.done:
		return true
	default:
		return false
	}
}

func (f *flight) run(ctx context.Context, fn func(context.Context) ([]byte, error)) {
	f.err = errPanic // until it returns
	defer func() {
		if p := recover(); p != nil {
			f.panicked = &loadPanic{p, debug.Stack()}
		}
	}()
	f.value, f.err = fn(ctx)
}

// land ends a flight.
func (fs *flights) land(key string, f *flight) {
	if f.cools && f.err != nil {
		time.AfterFunc(cooling, func() { fs.forgetFlight(key, f) })
	} else {
		fs.forgetFlight(key, f)
	}
	f.cancel()
	close(f.done)
}

// leave is for a caller that does not wait any longer.
func (fs *flights) leave(key string, f *flight) {
	fs.mu.Lock()
	f.waiting--
	last := f.waiting == 0
	if last && fs.byKey[key] == f {
		delete(fs.byKey, key) // who comes next wants one that goes on
	}
	fs.mu.Unlock()
	if last {
		f.cancel()
	}
}

// forget lets who asks for key from now on not join what is under way.
func (fs *flights) forget(key string) {
	fs.mu.Lock()
	delete(fs.byKey, key)
	fs.mu.Unlock()
}

// forgetFlight is forget, unless there is another one by now.
func (fs *flights) forgetFlight(key string, f *flight) {
	fs.mu.Lock()
	if fs.byKey[key] == f {
		delete(fs.byKey, key)
	}
	fs.mu.Unlock()
}
