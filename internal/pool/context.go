package pool

import (
	"context"
	"errors"
	"time"
)

// ended reports whether ctx has. Its deadline passes a moment before it says
// so, and the network knows the deadline.
func ended(ctx context.Context) bool {
	if deadline, ok := ctx.Deadline(); ok && ctx.Done() != nil && !time.Now().Before(deadline) {
		<-ctx.Done()
	}
	return ctx.Err() != nil
}

// contextError says why a context ended. It is its Err and its Cause, but only
// the Err for errors.As: a cause may be the failure of another call.
type contextError struct{ ctx context.Context }

func (e *contextError) Error() string {
	if cause := context.Cause(e.ctx); cause != e.ctx.Err() {
		return e.ctx.Err().Error() + ": " + cause.Error()
	}
	return e.ctx.Err().Error()
}

func (e *contextError) Unwrap() error        { return e.ctx.Err() }
func (e *contextError) Is(target error) bool { return errors.Is(context.Cause(e.ctx), target) }
