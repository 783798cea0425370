package pool

import "context"

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
