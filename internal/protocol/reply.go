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

	// step is how much of a value is made room for before any of it has come.
	step = 1 << 20

	// end is that of every line and data block.
	end = "\r\n"
)

// ReplyError is an error line of the server's: ERROR, CLIENT_ERROR or
// SERVER_ERROR (protocol.txt, "Error strings").
type ReplyError struct{ Line string }

func (e *ReplyError) Error() string { return "the server answered " + strconv.Quote(e.Line) }

// InStep reports whether the next reply can still be told: a server that
// refused a request by SERVER_ERROR has read it to its end.
func (e *ReplyError) InStep() bool { return strings.HasPrefix(e.Line, "SERVER_ERROR") }

// TooLarge reports whether the server refused the size of a value.
func (e *ReplyError) TooLarge() bool {
	return e.InStep() && strings.Contains(e.Line, "too large")
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
// not nil. A small one is made room for in the arena.
func Data(r *bufio.Reader, size int, arena *Arena) ([]byte, error) {
	if size+len(end) <= r.Buffered() {
		data, _ := r.Peek(size + len(end))
		if string(data[size:]) != end {
			return nil, ErrUnexpected
		}
		value := arena.Copy(data[:size])
		r.Discard(size + len(end))
		return value, nil
	}
	// An announcement costs a hostile server nothing: room grows with what comes.
	value := make([]byte, min(size, step))
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

// Arena makes room for the small values of one batch: making it for each would
// cost more than all else that is done with them. A value that is kept keeps at
// most arenaSize bytes.
type Arena struct{ room []byte }

const (
	arenaSize  = 1024
	arenaValue = 256 // the largest value in an arena
)

// Copy returns a copy of data. A nil Arena makes room for it alone.
func (a *Arena) Copy(data []byte) []byte {
	n := len(data)
	if a == nil || n == 0 || n > arenaValue { // one of no bytes must not be nil
		value := make([]byte, n)
		copy(value, data)
		return value
	}
	if n > len(a.room) {
		a.room = make([]byte, arenaSize)
	}
	value := a.room[:n:n]
	a.room = a.room[n:]
	copy(value, data)
	return value
}

// SkipData reads over a data block of size bytes and its end.
func SkipData(r *bufio.Reader, size int) error {
	if _, err := r.Discard(size); err != nil {
		return midReply(err)
	}
	return dataEnd(r)
}

func dataEnd(r *bufio.Reader) error {
	data, err := r.Peek(len(end))
	if err != nil {
		return midReply(err)
	}
	if string(data) != end {
		return ErrUnexpected
	}
	r.Discard(len(end))
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
	Key  []byte // valid until the next read
	Size int
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
	rest := line[len(prefix):]
	key := bytes.IndexByte(rest, ' ')
	if key <= 0 {
		return v, false, ErrUnexpected
	}
	v.Key, rest = rest[:key], rest[key+1:]
	flags := bytes.IndexByte(rest, ' ')
	if flags <= 0 {
		return v, false, ErrUnexpected
	}
	rest = rest[flags+1:]
	if size := bytes.IndexByte(rest, ' '); size >= 0 {
		rest = rest[:size]
	}
	v.Size, err = parseSize(rest)
	return v, err == nil, err
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

// CutValue cuts key's VALUE line and data block off b and returns the data and
// the length of both; 0 where b does not begin with the whole of them, which is
// then for [ParseValue] and [Data] to make sense of.
func CutValue(b []byte, key string) (data []byte, n int) {
	const prefix = "VALUE "
	i := len(prefix) + len(key)
	if len(b) <= i || string(b[:len(prefix)]) != prefix || string(b[len(prefix):i]) != key || b[i] != ' ' {
		return nil, 0
	}
	_, flags := digits(b[i+1:])
	i += 1 + flags
	if flags == 0 || len(b) <= i || b[i] != ' ' {
		return nil, 0
	}
	size, length := digits(b[i+1:])
	if length == 0 || size > len(b) {
		return nil, 0
	}
	i += 1 + length
	i += len(end)
	n = i + size + len(end)
	if len(b) < n || string(b[i-len(end):i]) != end || string(b[n-len(end):n]) != end {
		return nil, 0
	}
	return b[i : i+size], n
}

// digits reads the number that b begins with, as far as any int holds it, and
// its length.
func digits(b []byte) (n, length int) {
	for length < len(b) && length < 9 && '0' <= b[length] && b[length] <= '9' {
		n = n*10 + int(b[length]-'0')
		length++
	}
	return n, length
}

// ParseStat parses "STAT <name> <value>".
func ParseStat(line []byte) (name, value string, ok bool) {
	rest, ok := strings.CutPrefix(string(line), "STAT ")
	if !ok {
		return "", "", false
	}
	return strings.Cut(rest, " ")
}
