package pool

import (
	"bytes"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// replyState is how far a reply has come.
type replyState int

const (
	replyPartial   replyState = iota
	replyComplete             // the next byte belongs to the next reply
	replyOutOfStep            // complete, but what comes next is anybody's guess
	replyMalformed            // no reply that gomemcache should see
	replyLarge                // a value whose bytes are to be collected comes next
)

// replyScan follows a reply to gomemcache to its end, in pieces as they come.
// gomemcache would keep what a server sends too much, and take it for the reply
// to its next request.
type replyScan struct {
	on        bool
	retrieval bool   // values may come before the last line
	skip      int    // bytes of a value still to come
	valueEnd  bool   // the next line is the CR LF behind a value
	line      []byte // an incomplete line
}

func (r *replyScan) begin(request []byte) {
	r.on = true
	r.retrieval = bytes.HasPrefix(request, []byte("get")) || bytes.HasPrefix(request, []byte("gat"))
	r.skip = 0
	r.valueEnd = false
	r.line = r.line[:0]
}

// read returns how many bytes of p belong to the reply; where it is replyLarge,
// how many of them are in front of the value's line. All of p belongs to it then.
func (r *replyScan) read(p []byte) (n int, state replyState) {
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
		if r.retrieval {
			if v, ok, err := protocol.ParseValue(line); ok {
				r.skip, r.valueEnd = v.Size, true
				if v.Size > protocol.GrowBy && v.Size > len(p)-n {
					r.skip -= len(p) - n
					return begin, replyLarge
				}
				continue
			} else if err == protocol.ErrUnexpected {
				return 0, replyMalformed
			}
		}
		if n < len(p) || bytes.HasPrefix(line, []byte("ERROR")) || bytes.HasPrefix(line, []byte("CLIENT_ERROR")) {
			return n, replyOutOfStep
		}
		return n, replyComplete
	}
	return n, replyPartial
}
