package memcacheddriver

import (
	"context"
	"time"
)

// Tracer is told of all that the driver does, as it begins and as it ends; see
// [WithTracer]. The module memcacheddriver/otel has one for OpenTelemetry. Its methods
// are called by many goroutines at once, and the caller waits for them; those for a dial
// also after Close. They may use the driver, but not while they are told of a dial, which
// would wait for itself.
type Tracer interface {
	// Start is called with the context of the call that begins, and returns the one
	// that the call goes on with: what the tracer puts into it comes back in End, and
	// is there when a part of the call begins. That of a part or of a dial only comes
	// back.
	Start(ctx context.Context, op Operation) context.Context

	// End is called once for each Start, with the context that that returned; also
	// where a function of the caller's panics.
	End(ctx context.Context, result Result)
}

// Operation is what a [Tracer] is told of as it begins: a call of the driver, one
// server's part of a call, or a dial.
type Operation struct {
	// Name is the call as in [OpError]: "get", "set", "mset", "cas", "do", "ping" …, and
	// "fetch" for each of the exchanges by which a [Fetch] that misses agrees with others.
	// It is "dial" for a connection that is made, which is nobody's call: as
	// whoever comes next gets it, its context is the driver's own.
	Name string

	// Server is the address as the list of servers has it. It is empty for a call that
	// asks several servers (a batch, Ping), of which each is a part, for Do, and for a
	// call that got to none, as its key was invalid or [WithDiscovery] has not found
	// them. Where it has not found them yet, only the Result knows the server.
	Server string

	// Part means that this is what a batch or a Ping asks of one server. The call's
	// own operation, of the same name, is in the context.
	Part bool

	// KeyCount is how many keys are asked for.
	KeyCount int

	// Keys are the keys, which are not to be changed; nil without [WithTracedKeys].
	Keys []string
}

// Result is what has become of an [Operation].
type Result struct {
	Operation

	// Duration is how long it took, with all that it waited for.
	Duration time.Duration

	// Hits and Misses count the keys that were found, and that were not, by Get, MGet,
	// Exists, TTL, Expire and CompareAndSwap. Stores counts the values that were stored,
	// without those of which nobody knows.
	Hits, Misses, Stores int

	// BytesRead and BytesWritten are how long the values were together that came and
	// that were stored.
	BytesRead, BytesWritten int

	// Err is nil for what went well, a miss and a SetNX that did not store included.
	// Without [WithTracedKeys] the driver's own text has no keys, and no [OpError] has;
	// an error line of the server's is quoted, and so is what a function of the caller's
	// has returned, in Do and CompareAndSwap.
	Err error

	// ErrorType is the class of Err, empty where that is nil: "canceled" and
	// "deadline_exceeded" (the caller's context, or a dial that was given up),
	// "server_down", "pool_timeout", "too_many_conns", "auth", "timeout" (one of the
	// driver's), "value_too_large", "protocol", "conflict", "not_supported",
	// "invalid_key", "not_open" (Close in the middle), "panic" (of a function of the
	// caller's), "server_error" (an error line), "network" (no connection, a reset, TLS),
	// and "_OTHER" for what such a function has returned, and a discovery that finds no
	// servers. Of a batch that failed in several ways it is the first of these; the
	// text has the others, too.
	ErrorType string
}
