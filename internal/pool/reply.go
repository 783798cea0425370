package pool

import (
	"bytes"
	"strconv"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// replyState is how far a reply has come.
type replyState int

const (
	replyPartial   replyState = iota
	replyComplete             // the next byte belongs to the next reply
	replyRefused              // the same, by an error line
	replyOutOfStep            // complete, but what comes next is anybody's guess
	replyMalformed            // no reply that gomemcache should see
	replyLarge                // a value whose bytes are to be collected comes next
)

// command is a command of gomemcache's, or several that are answered alike.
type command int

const (
	otherCommand command = iota
	retrieval            // values may come before the last line
	storage              // a data block follows the line
	deletion
	touch
	arithmetic
	flush
	version
)

func commandOf(request []byte) command {
	switch string(request[:max(0, bytes.IndexAny(request, " \r"))]) {
	case "get", "gets", "gat":
		return retrieval
	case "set", "add", "replace", "append", "prepend", "cas":
		return storage
	case "delete":
		return deletion
	case "touch":
		return touch
	case "incr", "decr":
		return arithmetic
	case "flush_all":
		return flush
	case "version":
		return version
	}
	return otherCommand
}

// lengthOf returns how long the request is that begins with p, 0 where p does not tell.
func lengthOf(p []byte) int {
	line, _, ok := bytes.Cut(p, []byte("\r\n"))
	length := len(line) + 2
	switch {
	case !ok:
		return 0
	case commandOf(p) != storage:
		return length
	}
	for range 4 { // command, key, flags, exptime
		_, line, _ = bytes.Cut(line, []byte(" "))
	}
	number, _, _ := bytes.Cut(line, []byte(" "))
	size, err := strconv.Atoi(string(number))
	if err != nil {
		return 0
	}
	return length + size + 2
}

// countKeys counts the keys of gomemcache's request.
func countKeys(request []byte) int {
	if !bytes.HasPrefix(request, []byte("gets ")) {
		return 1
	}
	return bytes.Count(request, []byte(" "))
}

// endsWell reports whether line is a reply's last one, and no error.
func (c command) endsWell(line []byte) bool {
	switch string(line) {
	case "END":
		return c == retrieval
	case "STORED", "NOT_STORED", "EXISTS":
		return c == storage
	case "NOT_FOUND":
		return c == storage || c == deletion || c == touch || c == arithmetic
	case "DELETED":
		return c == deletion
	case "TOUCHED":
		return c == touch
	case "OK":
		return c == flush
	}
	switch c {
	case arithmetic:
		return len(line) > 0 && '0' <= line[0] && line[0] <= '9'
	case version:
		return bytes.HasPrefix(line, []byte("VERSION "))
	}
	return false
}

// isHit reports whether p is one value and the end of the reply, which most replies to
// a retrieval are, in half the time that following it takes.
func isHit(p []byte) bool {
	const end = "\r\nEND\r\n"
	i := bytes.IndexByte(p, '\r')
	if i < 0 || !bytes.HasSuffix(p, []byte(end)) {
		return false
	}
	v, ok, _ := protocol.ParseValue(p[:i])
	return ok && i+len("\r\n")+v.Size+len(end) == len(p) && p[i+1] == '\n'
}

// replyScan follows a reply to gomemcache to its end, in pieces as they come.
// gomemcache would keep what a server sends too much, and take it for the reply
// to its next request.
type replyScan struct {
	on       bool
	command  command
	oneLine  bool   // of the request
	keys     int    // that are asked for
	values   int    // how many have come
	skip     int    // bytes of a value still to come
	valueEnd bool   // the next line is the CR LF behind a value
	line     []byte // an incomplete line
	stored   bool   // the last line said so
}

func (r *replyScan) begin(request []byte) {
	r.on = true
	r.command = commandOf(request)
	r.oneLine = r.command != storage && len(request) <= protocol.MaxLine // who is to read more may split it
	r.skip = 0
	r.keys, r.values = countKeys(request), 0
	r.valueEnd = false
	r.line = r.line[:0]
}

// read returns how many bytes of p belong to the reply. Where it is replyLarge, all
// of p does, and those from the line of the value on, or what is left of it where
// that began in an earlier piece, are to be held back.
func (r *replyScan) read(p []byte) (n int, state replyState) {
	if r.command == retrieval && r.values == 0 && len(r.line) == 0 && isHit(p) {
		r.values = 1
		return len(p), replyComplete
	}
	for n < len(p) {
		if r.skip > 0 {
			step := min(r.skip, len(p)-n)
			r.skip -= step
			n += step
			continue
		}
		begin := n
		i := bytes.IndexByte(p[n:], '\n')
		if i < 0 {
			r.line = append(r.line, p[n:]...)
			if len(r.line) > protocol.MaxLine {
				return 0, replyMalformed
			}
			return len(p), replyPartial
		}
		line := p[n : n+i+1]
		if len(r.line) > 0 {
			line = append(r.line, line...)
			r.line = line[:0]
		}
		n += i + 1
		line, ok := bytes.CutSuffix(line, []byte("\r\n"))
		if !ok {
			return 0, replyMalformed
		}
		if r.valueEnd {
			if len(line) > 0 {
				return 0, replyMalformed
			}
			r.valueEnd = false
			continue
		}
		if r.command == retrieval {
			if v, ok, err := protocol.ParseValue(line); ok {
				r.skip, r.valueEnd = v.Size, true
				r.values++
				if v.Size > protocol.GrowBy && v.Size > len(p)-n {
					r.skip -= len(p) - n
					return begin, replyLarge
				}
				continue
			} else if err == protocol.ErrUnexpected {
				return 0, replyMalformed
			}
		}
		switch {
		case n < len(p):
			return n, replyOutOfStep
		case r.command.endsWell(line):
			r.stored = string(line) == "STORED"
			return n, replyComplete
		}
		if r.values == 0 && protocol.InStep(protocol.LineError(line), r.oneLine) {
			return n, replyRefused
		}
		return n, replyOutOfStep
	}
	return n, replyPartial
}

// counts returns what a complete reply says of its keys: found, not found, stored.
func (r *replyScan) counts() (hits, misses, stores int) {
	switch {
	case r.command == retrieval:
		return r.values, r.keys - r.values, 0
	case r.command == storage && r.stored:
		return 0, 0, 1
	}
	return 0, 0, 0
}
