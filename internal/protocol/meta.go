package protocol

import (
	"bytes"
	"strconv"
)

// Meta is the first line of a reply to a meta command (protocol.txt, "Meta
// Commands"): a two-letter code and the flags that were asked for.
type Meta struct {
	Code  string // "HD", "VA", "EN", "NF", "NS", "EX", "MN"
	Size  int    // of the data block after VA
	TTL   int64  // t: seconds, -1 for none
	CAS   uint64 // c
	Flags uint32 // f
	Token []byte // O: the request's own, valid until the next read
}

// metaCodes are all that a reply may begin with.
var metaCodes = [...]string{"HD", "VA", "EN", "NF", "NS", "EX", "MN"}

// ParseMeta parses the first line of a reply to a meta command.
func ParseMeta(line []byte) (m Meta, err error) {
	code, rest, _ := bytes.Cut(line, []byte(" "))
	for _, known := range metaCodes {
		if string(code) == known {
			m.Code = known
		}
	}
	if m.Code == "" {
		return m, LineError(line)
	}
	if m.Code == "VA" {
		var size []byte
		size, rest, _ = bytes.Cut(rest, []byte(" "))
		if m.Size, err = parseSize(size); err != nil {
			return m, err
		}
	}
	for len(rest) > 0 {
		var flag []byte
		flag, rest, _ = bytes.Cut(rest, []byte(" "))
		if len(flag) == 0 {
			continue
		}
		token := flag[1:]
		ok := true
		switch flag[0] {
		case 't':
			m.TTL, err = strconv.ParseInt(string(token), 10, 64)
			ok = err == nil
		case 'c':
			m.CAS, ok = parseUint(token)
		case 'f':
			var n uint64
			n, ok = parseUint(token)
			ok = ok && n <= 1<<32-1
			m.Flags = uint32(n)
		case 'O':
			m.Token = token
		}
		if !ok {
			return m, ErrUnexpected
		}
	}
	return m, nil
}
