package pool

import (
	"context"
	"time"
)

// withoutDeadline is a caller's context as the network gets it, which would see the
// deadline pass before the context says so, or where it never does. What ends a
// call is the context's end.
type withoutDeadline struct{ context.Context }

func (withoutDeadline) Deadline() (deadline time.Time, ok bool) { return time.Time{}, false }

// contextError says why a context ended. Its Cause is in the text alone, as it may
// be the failure of another call, or that one's miss: it is not what this one came
// to.
type contextError struct{ ctx context.Context }

func (e *contextError) Error() string {
	if cause := context.Cause(e.ctx); cause != e.ctx.Err() {
		return e.ctx.Err().Error() + ": " + cause.Error()
	}
	return e.ctx.Err().Error()
}

func (e *contextError) Unwrap() error { return e.ctx.Err() }
