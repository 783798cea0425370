package pool

import (
	"bytes"
	"context"
	"net"
	"strconv"

	"github.com/bradfitz/gomemcache/memcache"
)

// newNative makes the client of Native. No lane says when its calls end, so its
// connections read along and give their socket back when a reply is complete.
func (p *Pool) newNative() *memcache.Client {
	c := memcache.NewFromSelector((*selector)(p))
	c.MaxIdleConns = p.cfg.MaxIdle
	// gomemcache's own timeout has no effect, as ours are set below it; but it is
	// what a reader of the client sees.
	c.Timeout = p.cfg.ReadTimeout
	c.DialContext = func(_ context.Context, _, address string) (net.Conn, error) {
		return &Conn{server: p.server(address)}, nil
	}
	return c
}

// nativeRead looks for the end of the reply in what was read.
func (c *Conn) nativeRead(p []byte) {
	switch c.reply.read(p) {
	case replyPartial:
	case replyComplete:
		c.settle(true)
	case replyOutOfStep:
		c.server.succeeded()
		c.probe = false
		c.Drop()
	}
}

type replyState int

const (
	replyPartial   replyState = iota
	replyComplete             // the next byte belongs to the next reply
	replyOutOfStep            // nobody knows what the next byte belongs to
)

// replyScan finds the end of one reply of the classic protocol, in pieces as
// they come.
type replyScan struct {
	retrieval bool   // values may come before the last line
	skip      int    // bytes of a value and its CR LF still to come
	line      []byte // an incomplete line
}

// maxLine is longer than any line of a reply: memcached's are a key of 250
// bytes and a few numbers.
const maxLine = 2048

func (r *replyScan) begin(request []byte) {
	r.retrieval = bytes.HasPrefix(request, []byte("get")) || bytes.HasPrefix(request, []byte("gat"))
	r.skip = 0
	r.line = r.line[:0]
}

func (r *replyScan) read(p []byte) replyState {
	for len(p) > 0 {
		if r.skip > 0 {
			n := min(r.skip, len(p))
			r.skip -= n
			p = p[n:]
			continue
		}
		i := bytes.IndexByte(p, '\n')
		if i < 0 {
			r.line = append(r.line, p...)
			if len(r.line) > maxLine {
				return replyOutOfStep
			}
			return replyPartial
		}
		line := append(r.line, p[:i+1]...)
		r.line = line[:0]
		p = p[i+1:]
		if r.retrieval && bytes.HasPrefix(line, []byte("VALUE ")) {
			fields := bytes.Fields(line)
			if len(fields) < 4 {
				return replyOutOfStep
			}
			size, err := strconv.ParseUint(string(fields[3]), 10, 31)
			if err != nil {
				return replyOutOfStep
			}
			r.skip = int(size) + len("\r\n")
			continue
		}
		if len(p) > 0 || bytes.HasPrefix(line, []byte("ERROR")) || bytes.HasPrefix(line, []byte("CLIENT_ERROR")) {
			return replyOutOfStep
		}
		return replyComplete
	}
	return replyPartial
}

var _ net.Conn = (*Conn)(nil)
