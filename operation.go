package memcacheddriver

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// errPanic stands for what a function of the caller's returns until it has.
var errPanic = errors.New("a function of the caller's panicked, or called runtime.Goexit")

// operation is what is counted and traced: a call, one server's part of it, or a dial.
type operation struct {
	ctx   context.Context
	trace *trace // nil where nobody is told

	// As in Result.
	hits, misses, stores, bytesRead, bytesWritten int
}

// trace is what a tracer is told of an operation.
type trace struct {
	Operation
	tracer   Tracer
	withKeys bool
	began    time.Time
}

// begin begins an operation on a server, empty where that is not known or not one, with
// the keys as the caller has them.
func (s *session) begin(ctx context.Context, name, server string, part bool, keys ...string) operation {
	if s == nil || s.cfg.tracer == nil {
		return operation{ctx: ctx}
	}
	t := &trace{
		Operation: Operation{Name: name, Server: server, Part: part, KeyCount: len(keys)},
		tracer:    s.cfg.tracer,
		withKeys:  s.cfg.tracedKeys,
		began:     time.Now(),
	}
	if t.withKeys {
		t.Keys = slices.Clone(keys) // or the keys of every call would be on the heap
	}
	return operation{ctx: t.tracer.Start(ctx, t.Operation), trace: t}
}

// end ends it with the error that its caller gets. n, which may be nil, counts it.
func (o *operation) end(n *node, err error) {
	switch err {
	case kv.ErrNotFound:
		o.hits, o.bytesRead, o.misses, err = 0, 0, 1, nil
	case memcache.ErrCacheMiss, memcache.ErrNotStored: // of a Do
		err = nil
	}
	if n != nil {
		n.server.Count(o.hits, o.misses, o.stores)
		if err != nil && isServers(err) {
			n.server.CountError()
		}
	}
	if o.trace != nil {
		o.tell(n, err)
	}
}

// tell tells the tracer of the end.
func (o *operation) tell(n *node, err error) {
	r := Result{
		Operation:    o.trace.Operation,
		Duration:     time.Since(o.trace.began),
		Hits:         o.hits,
		Misses:       o.misses,
		Stores:       o.stores,
		BytesRead:    o.bytesRead,
		BytesWritten: o.bytesWritten,
	}
	if n != nil {
		r.Server = n.server.Address
	}
	if err != nil {
		if strings.HasPrefix(err.Error(), "memcache: unexpected ") { // of a Do; it may quote a value
			err = replyError(err)
		}
		r.ErrorType = errorType(err)
		if r.Err = err; !o.trace.withKeys {
			r.Err = withoutKeys(err)
		}
	}
	o.trace.tracer.End(o.ctx, r)
}

// dialing traces a dial, as [pool.Config] has it.
func (s *session) dialing() func(server string) func(error) {
	if s.cfg.tracer == nil {
		return nil
	}
	return func(server string) func(error) {
		o := s.begin(context.Background(), "dial", server, false)
		return func(err error) {
			if err != nil {
				err = &OpError{Op: "dial", Server: server, Err: err}
			}
			o.end(nil, err)
		}
	}
}

// found counts a key that was there, with a value of that size.
func (o *operation) found(size int) {
	o.hits++
	o.bytesRead += size
}

// stored counts a value that was stored.
func (o *operation) stored(size int) {
	o.stores++
	o.bytesWritten += size
}

// add counts what a part has.
func (o *operation) add(part *operation) {
	o.hits += part.hits
	o.misses += part.misses
	o.stores += part.stores
	o.bytesRead += part.bytesRead
	o.bytesWritten += part.bytesWritten
}

// isServers reports whether a server has failed a call, or refused it.
func isServers(err error) bool {
	var op *OpError
	return errors.As(err, &op) && op.Server != "" && !errors.Is(err, kv.ErrConflict)
}

func withoutKeys(err error) error {
	switch e := err.(type) {
	case *OpError:
		return &OpError{Op: e.Op, Server: e.Server, Err: e.Err}
	case batchError:
		errs := make(batchError, len(e))
		for i, err := range e {
			errs[i] = withoutKeys(err)
		}
		return errs
	}
	return err
}

// errorType returns the class of an error, as [Result] has them.
func errorType(err error) string {
	for _, class := range []struct {
		name string
		err  error
	}{
		{"canceled", context.Canceled},
		{"deadline_exceeded", context.DeadlineExceeded},
		{"server_down", ErrServerDown},
		{"pool_timeout", ErrPoolTimeout},
		{"too_many_conns", ErrTooManyConns},
		{"auth", ErrAuth},
		{"timeout", os.ErrDeadlineExceeded},
		{"value_too_large", ErrValueTooLarge},
		{"protocol", ErrProtocol},
		{"conflict", kv.ErrConflict},
		{"conflict", memcache.ErrCASConflict},
		{"not_supported", kv.ErrNotSupported},
		{"invalid_key", memcache.ErrMalformedKey},
		{"invalid_key", kv.ErrKeyEmpty},
		{"not_open", ErrNotOpen},
		{"panic", errPanic},
	} {
		if errors.Is(err, class.err) {
			return class.name
		}
	}
	var reply *protocol.ReplyError
	var at *pool.Error
	var network net.Error
	var op *OpError
	switch {
	case errors.As(err, &reply) && reply.TooLarge():
		return "value_too_large"
	case errors.As(err, &reply), errors.Is(err, memcache.ErrServerError):
		return "server_error"
	case errors.As(err, &at), errors.As(err, &network), errors.As(err, &op) && op.Server != "":
		return "network"
	}
	return "_OTHER"
}
