package memcacheddriver

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// The errors that calls return, to be asked for by [errors.Is]. A miss is
// kv.ErrNotFound, a lost race in CompareAndSwap kv.ErrConflict, and the end
// of a call's context [context.Canceled] or [context.DeadlineExceeded]; the text
// alone tells the context's cause.
var (
	// ErrNotOpen means that Open has not been called yet, or Close has. A call that
	// is in flight when Close is called gets it too.
	ErrNotOpen = pool.ErrClosed

	// ErrAlreadyOpen means that Open was called twice without a Close.
	ErrAlreadyOpen = errors.New("the driver is open already; Close it first")

	// ErrInvalidDSN means that a DSN cannot be understood; the text says which
	// part of it. It quotes nothing of the DSN but the names of known parameters, as
	// a password may stand anywhere in one that is written wrongly.
	ErrInvalidDSN = errors.New("invalid DSN")

	// ErrInvalidOption means that an option, one of [Fetch] as well, has a value that
	// makes no sense, such as a negative timeout, or that credentials would go to another
	// machine without TLS; see [WithCredentials].
	ErrInvalidOption = errors.New("invalid option")

	// ErrInvalidKey means that a key is longer than 250 bytes, those of [WithKeyPrefix]
	// and of a [Fetch]'s lease included, or has a space or a control character in it
	// (protocol.txt, "Keys"). Nothing was sent. It is gomemcache's
	// [memcache.ErrMalformedKey] as well. An empty key is kv.ErrKeyEmpty.
	ErrInvalidKey error = invalidKey{}

	// ErrValueTooLarge means that the server refused a value for its size: 1 MB,
	// unless memcached was started with another limit (-I). After a Set, an MSet or
	// a write with a TTL under a second, memcached has also removed the value that
	// the key had.
	ErrValueTooLarge = errors.New("value too large for the server (its limit is 1 MB unless memcached runs with -I)")

	// ErrServerDown means that the server has failed several times in a row, and
	// that the call was refused at once, without waiting for it again. The last
	// failure is in the chain. See [WithServerFailureLimit].
	ErrServerDown = pool.ErrServerDown

	// ErrPoolTimeout means that all connections that the server may have, by
	// [WithMaxOpenConns], were in use, and none became free for the call within the
	// dial timeout. It counts against no server. Nothing was sent.
	ErrPoolTimeout = pool.ErrPoolTimeout

	// ErrTooManyConns means that the server refused a connection, as it has as many
	// as it may have (memcached -c), all its clients together. The driver does with
	// those that it has, waits before it tries again, and does not count it as a
	// failure of the server.
	ErrTooManyConns = pool.ErrTooManyConns

	// ErrAuth means that the server refused the user or the password, or asks for
	// them and was given none. See [WithCredentials].
	ErrAuth = pool.ErrAuth

	// ErrProtocol means that the server's answer is not memcached's protocol:
	// another kind of server listens there, or a proxy is broken. The connection
	// is closed. The answer is not quoted, as it may hold a value.
	ErrProtocol = protocol.ErrUnexpected
)

// maxKey is the longest key that memcached takes (protocol.txt, "Keys").
const maxKey = 250

type invalidKey struct{}

func (invalidKey) Error() string {
	return "invalid key: 1 to 250 bytes without spaces and control characters are allowed"
}
func (invalidKey) Is(target error) bool { return target == memcache.ErrMalformedKey }

// OpError says which call failed, at which server and for which keys. It is what
// every failure of the driver's own calls is; a miss is kv.ErrNotFound itself,
// and errors inside Do and of Client are gomemcache's. Ask for it by
// [errors.As]. The error of a batch holds one for each server that failed and
// each kind of refusal.
type OpError struct {
	// Op is the call: "get", "set", "mset", "cas", "fetch" …; for a [Tracer] also "dial".
	Op string

	// Server is the address as the list of servers has it; empty where no server is to
	// blame, as for an invalid key or a cancelled call.
	Server string

	// Keys are those that were not served. For a write they may or may not have
	// been written, unless the server refused them.
	Keys []string

	// Err says what went wrong.
	Err error
}

// How many keys of a batch an error text names, and how much of one that is too
// long.
const (
	shownKeys  = 3
	shownBytes = 40
)

// Error returns the failure in one line, with the first keys.
func (e *OpError) Error() string {
	var b strings.Builder
	b.WriteString("memcacheddriver: ")
	b.WriteString(e.Op)
	for i, key := range e.Keys {
		if i == shownKeys {
			fmt.Fprintf(&b, " and %d more", len(e.Keys)-i)
			break
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteByte(' ')
		if len(key) > maxKey {
			key = key[:shownBytes] + "…"
		}
		b.WriteString(strconv.Quote(key))
	}
	if e.Server != "" {
		b.WriteString(" on ")
		b.WriteString(e.Server)
	}
	b.WriteString(": ")
	b.WriteString(e.Err.Error())
	return b.String()
}

// Unwrap returns Err.
func (e *OpError) Unwrap() error { return e.Err }

// opError wraps err, which a call on a server returned for keys.
func opError(op string, on *pool.Server, err error, keys ...string) error {
	server := on.String()
	var at *pool.Error
	var reply *protocol.ReplyError
	switch {
	case errors.As(err, &at):
		server, err = at.Server, at.Err
	case errors.As(err, &reply) && reply.TooLarge():
		err = ErrValueTooLarge
	case errors.As(err, &reply) && reply.TooManyConns():
		err = ErrTooManyConns
	case isOurs(err):
		server = ""
	default:
		on.HideCredentials(err)
	}
	return &OpError{op, server, keys, err}
}

// isOurs reports whether a call ended on this side: by its context or by Close.
func isOurs(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrNotOpen)
}

// batchError joins the errors of several servers in one line.
type batchError []error

func (e batchError) Error() string {
	texts := make([]string, len(e))
	for i, err := range e {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (e batchError) Unwrap() []error { return e }

func joinErrors(errs []error) error {
	switch len(errs) {
	case 0:
		return nil
	case 1:
		return errs[0]
	}
	return batchError(errs)
}

// replyError turns an error of gomemcache's about a reply, which may quote what
// came, into one that does not.
func replyError(err error) error {
	text := err.Error()
	if !strings.HasPrefix(text, "memcache: unexpected ") {
		return ErrProtocol
	}
	_, quoted, _ := strings.Cut(text, `: "`)
	if line, err := strconv.Unquote(`"` + quoted); err == nil {
		return protocol.LineError([]byte(line))
	}
	return ErrProtocol
}
