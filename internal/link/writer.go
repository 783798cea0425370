package link

import (
	"math"
	"runtime"
	"strconv"
	"time"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

const (
	// overhead is what a request has beside its key and its value, at most.
	overhead = 64

	// maxGet is how long a merged get may be: a longer one keeps the server from its
	// other connections.
	maxGet = 4 << 10
)

// never is a token that no request has.
const never = math.MaxUint64

// writer writes all that is queued, at once and behind what is in flight.
type writer struct {
	link   *link
	stream *pool.Stream
	meta   bool

	batch     []*request
	out       []byte
	sent      []*request // those of batch that are in out, one for each reply
	at        []int      // where each of sent begins in out
	token     uint64     // the last one
	unwritten uint64     // the token of the first of which no byte was written
}

func (w *writer) run() {
	for w.take() {
		if err := w.write(); err != nil {
			w.link.end(w.stream, err, true)
			return
		}
	}
}

// take waits for requests and encodes them; false where the stream has ended.
func (w *writer) take() bool {
	l := w.link
	l.mu.Lock()
	for !l.ended && (l.queue.first == nil || l.draining || l.inFlight >= maxRequests || l.bytes >= maxBytes) {
		l.work.Wait()
	}
	ended := l.ended
	l.mu.Unlock()
	if ended {
		return false
	}
	// Who has just been woken with a reply asks for the next: waiting for those that can
	// run halves the cost of a call, as more go at once.
	runtime.Gosched()
	l.encoding.Lock()
	defer l.encoding.Unlock()
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return false
	}
	if l.inFlight == 0 {
		l.dueSince = time.Now()
	}
	w.batch = w.batch[:0]
	for size := 0; l.inFlight < maxRequests && l.queue.first != nil; l.inFlight++ {
		r := l.queue.first
		if size += len(r.key) + len(r.set.Value) + overhead; size > protocol.MaxRecord && len(w.batch) > 0 {
			break
		}
		l.queue.remove(r)
		w.batch = append(w.batch, r)
	}
	l.mu.Unlock()
	w.encode()
	return true
}

// write gives what was encoded to the reader, then to the server.
func (w *writer) write() error {
	l := w.link
	l.mu.Lock()
	l.sent = append(l.sent, w.sent...)
	for _, r := range w.batch {
		if r == nil { // nobody waited for it any more
			l.inFlight--
		}
	}
	l.bytes += len(w.out)
	l.mu.Unlock()
	if len(w.out) == 0 {
		return nil
	}
	n, err := w.stream.Write(w.out)
	if err != nil {
		for i, at := range w.at {
			if at >= n {
				w.unwritten = w.token - uint64(len(w.at)-1-i)
				break
			}
		}
	}
	return err
}

// encode puts the batch into out. Without meta, the reads follow the others, as they
// are merged: no order is promised to calls that run at the same time.
func (w *writer) encode() {
	w.out, w.sent, w.at = w.out[:0], w.sent[:0], w.at[:0]
	merge := false
	for i, r := range w.batch {
		switch {
		case r.left.Load():
			w.batch[i] = nil
		case !w.meta && r.isRead():
			merge = true
		default:
			w.begin(r)
			w.command(r)
			r.size = len(w.out) - w.at[len(w.at)-1]
		}
	}
	if merge {
		w.merge()
	}
}

// begin gives r the next reply.
func (w *writer) begin(r *request) {
	w.token++
	r.token, r.more = w.token, nil
	w.sent = append(w.sent, r)
	w.at = append(w.at, len(w.out))
}

func (w *writer) command(r *request) {
	// An ms that is refused for lack of memory removes the value that it was not to
	// replace, which add and replace do not.
	r.meta = w.meta && (r.set.Mode == 0 || r.wantCAS)
	if !r.meta {
		w.classic(r)
		return
	}
	b := w.out
	switch r.kind {
	case get:
		b = append(append(append(b, "mg "...), r.key...), " v"...)
		if r.wantTTL {
			b = append(b, " t"...)
		}
	case exists:
		b = append(append(b, "mg "...), r.key...)
	case remove:
		b = append(append(b, "md "...), r.key...)
	case touch:
		b = append(append(append(b, "mg "...), r.key...), " c T"...)
		b = strconv.AppendInt(b, int64(r.set.Expiration.Meta), 10)
	case set:
		b = r.set.AppendMeta(b)
		if r.wantCAS {
			b = append(b, " c"...)
		}
	}
	b = append(strconv.AppendUint(append(b, " O"...), r.token, 10), "\r\n"...)
	if r.kind == set {
		b = append(append(b, r.set.Value...), "\r\n"...)
	}
	w.out = b
}

func (w *writer) classic(r *request) {
	b := w.out
	switch r.kind {
	case remove:
		b = append(append(append(b, "delete "...), r.key...), "\r\n"...)
	case touch:
		b = append(append(append(b, "touch "...), r.key...), ' ')
		b = append(strconv.AppendInt(b, int64(r.set.Expiration.Classic), 10), "\r\n"...)
	case set:
		b = append(r.set.AppendClassic(b), "\r\n"...)
		b = append(append(b, r.set.Value...), "\r\n"...)
	}
	w.out = b
}

// merge makes the reads of the batch one get, or a few.
func (w *writer) merge() {
	var first, last *request
	close := func() {
		if first != nil {
			w.out = append(w.out, "\r\n"...)
			first.size = len(w.out) - w.at[len(w.at)-1]
			first = nil
		}
	}
	for _, r := range w.batch {
		if r == nil || !r.isRead() {
			continue
		}
		if first != nil && (r.single || first.single || len(w.out)-w.at[len(w.at)-1]+len(r.key) > maxGet) {
			close()
		}
		if first == nil {
			w.begin(r)
			w.out = append(w.out, "get"...)
			first = r
		} else {
			r.token, r.more = first.token, nil
			last.more = r
		}
		r.meta = false
		w.out = append(append(w.out, ' '), r.key...)
		last = r
	}
	close()
}
