// Package protocol reads and writes memcached's text protocol: the classic
// commands that every server and proxy speaks, and the meta commands of
// memcached 1.6 (protocol.txt in memcached's source).
package protocol

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

const (
	// MaxLine is longer than any line of a reply: a key of 250 bytes and a few
	// numbers.
	MaxLine = 2048

	// maxValue is the largest item that a memcached can be made to hold (-I).
	maxValue = 1 << 30

	// GrowBy is how much of a value is made room for before any of it has come.
	GrowBy = 1 << 20

	// MaxRecord is how much is written at once of several commands, all of each: one
	// TLS record holds it, and one read of memcached's.
	MaxRecord = 15 << 10

	// crlf ends every line and data block.
	crlf = "\r\n"
)

// ReplyError is an error line of the server's: ERROR, CLIENT_ERROR or
// SERVER_ERROR (protocol.txt, "Error strings").
type ReplyError struct{ Line string }

func (e *ReplyError) Error() string { return "the server answered " + strconv.Quote(e.Line) }

// InStep reports whether the next reply can still be told: a server that
// refused a request by SERVER_ERROR has read it to its end. One that says ERROR or
// CLIENT_ERROR may still take the rest of the request for commands, unless the
// request was oneLine. "ERROR <text>" is said by one that closes the connection,
// and who wants credentials will be given them on the next one.
func (e *ReplyError) InStep(oneLine bool) bool {
	if strings.HasPrefix(e.Line, "SERVER_ERROR") {
		return true
	}
	return oneLine && !strings.HasPrefix(e.Line, "ERROR ") && !e.Unauthenticated()
}

// InStep is [ReplyError.InStep] of an error; one that is no reply is not.
func InStep(err error, oneLine bool) bool {
	var reply *ReplyError
	return errors.As(err, &reply) && reply.InStep(oneLine)
}

// TooLarge reports whether the server refused the size of a value.
func (e *ReplyError) TooLarge() bool {
	return e.InStep(false) && strings.Contains(e.Line, "too large")
}

// TooManyConns reports whether the server has as many connections as it may have, and
// closes this one.
func (e *ReplyError) TooManyConns() bool {
	return strings.HasPrefix(e.Line, "ERROR Too many open connections")
}

// Unauthenticated reports whether the server wants credentials first.
func (e *ReplyError) Unauthenticated() bool {
	return strings.HasPrefix(e.Line, "CLIENT_ERROR") && strings.Contains(e.Line, "authentica")
}

// ErrUnexpected is in the chain when a reply is none of those that the protocol
// allows. The reply is not quoted: it may be part of a value.
var ErrUnexpected = errors.New("unexpected reply (is this a memcached?)")

// LineError says what a line means that is no reply to the command. Its CR LF
// may be gone or not.
func LineError(line []byte) error {
	line = bytes.TrimRight(line, "\r\n")
	for _, prefix := range []string{"SERVER_ERROR", "CLIENT_ERROR", "ERROR"} {
		if rest, ok := bytes.CutPrefix(line, []byte(prefix)); ok && (len(rest) == 0 || rest[0] == ' ') {
			return &ReplyError{string(line)}
		}
	}
	return ErrUnexpected
}

// Line reads a line and returns it without its end. It is valid until the next
// read.
func Line(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	switch {
	case err == bufio.ErrBufferFull || len(line) > MaxLine:
		return nil, fmt.Errorf("a line too long: %w", ErrUnexpected)
	case err == io.EOF:
		return nil, io.ErrUnexpectedEOF
	case err != nil:
		return nil, err
	case len(line) < 2 || line[len(line)-2] != '\r':
		return nil, ErrUnexpected
	}
	return line[:len(line)-2], nil
}

// Data reads a data block of size bytes and its end. A value of no bytes is
// not nil.
func Data(r *bufio.Reader, size int) ([]byte, error) {
	if block := size + len(crlf); block <= r.Buffered() {
		data, _ := r.Peek(block)
		if string(data[size:]) != crlf {
			return nil, ErrUnexpected
		}
		value := append(make([]byte, 0, size), data[:size]...)
		r.Discard(block)
		return value, nil
	}
	// An announcement costs a hostile server nothing: room grows with what comes.
	value := make([]byte, min(size, GrowBy))
	for read := 0; ; {
		n, err := io.ReadFull(r, value[read:])
		if err != nil {
			return nil, midReply(err)
		}
		if read += n; read == size {
			break
		}
		value = append(value, make([]byte, min(size-read, read))...)
	}
	if err := dataEnd(r); err != nil {
		return nil, err
	}
	return value, nil
}

// SkipData reads over a data block of size bytes and its end.
func SkipData(r *bufio.Reader, size int) error {
	if _, err := r.Discard(size); err != nil {
		return midReply(err)
	}
	return dataEnd(r)
}

func dataEnd(r *bufio.Reader) error {
	data, err := r.Peek(len(crlf))
	if err != nil {
		return midReply(err)
	}
	if string(data) != crlf {
		return ErrUnexpected
	}
	r.Discard(len(crlf))
	return nil
}

func midReply(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Value is the line in front of a data block.
type Value struct {
	Key   []byte // valid until the next read
	Flags uint64 // 32 bits, unless the server was built for more
	Size  int
	CAS   uint64 // 0 where it was not asked for
}

// ParseValue parses "VALUE <key> <flags> <bytes> [<cas unique>]". ok is false
// for END; everything else is an error.
func ParseValue(line []byte) (v Value, ok bool, err error) {
	const prefix = "VALUE "
	if len(line) < len(prefix) || string(line[:len(prefix)]) != prefix {
		if string(line) == "END" {
			return v, false, nil
		}
		return v, false, LineError(line)
	}
	key, rest, _ := cutSpace(line[len(prefix):])
	flags, rest, _ := cutSpace(rest)
	size, cas, hasCAS := cutSpace(rest)
	if v.Key = key; len(key) == 0 {
		return v, false, ErrUnexpected
	}
	if v.Flags, ok = parseUint(flags); !ok {
		return v, false, ErrUnexpected
	}
	if hasCAS {
		if v.CAS, ok = parseUint(cas); !ok {
			return v, false, ErrUnexpected
		}
	}
	v.Size, err = parseSize(size)
	return v, err == nil, err
}

// cutSpace is bytes.Cut at a space, which is near.
func cutSpace(b []byte) (before, after []byte, found bool) {
	for i, c := range b {
		if c == ' ' {
			return b[:i], b[i+1:], true
		}
	}
	return b, nil, false
}

func parseSize(b []byte) (int, error) {
	n, ok := parseUint(b)
	if !ok || n > maxValue {
		return 0, ErrUnexpected
	}
	return int(n), nil
}

// parseUint is strconv.ParseUint for bytes, without a copy.
func parseUint(b []byte) (n uint64, ok bool) {
	if len(b) == 0 || len(b) > 20 {
		return 0, false
	}
	for _, d := range b {
		if d < '0' || d > '9' {
			return 0, false
		}
		next := n*10 + uint64(d-'0')
		if n > (1<<64-1)/10 || next < n {
			return 0, false
		}
		n = next
	}
	return n, true
}

// ParseStat parses "STAT <name> <value>".
func ParseStat(line []byte) (name, value string, ok bool) {
	rest, ok := strings.CutPrefix(string(line), "STAT ")
	if !ok {
		return "", "", false
	}
	return strings.Cut(rest, " ")
}
