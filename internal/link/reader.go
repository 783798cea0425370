package link

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"strconv"
	"time"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

const readBuffer = 32 << 10

// reader reads the replies of a stream, in the order of the requests. It is always
// reading, so that it notices at once when the server closes the connection.
type reader struct {
	link    *link
	stream  *pool.Stream
	r       *bufio.Reader
	silence time.Duration // after which the server is given up that has replies due
	heard   time.Time     // when the last byte came
	replied time.Time     // when the last reply was complete

	due      []*request // from next on
	next     int
	begun    bool // the first of due has got a byte of its reply
	answered bool // any has
	tokens   bool // the server gives a miss its token

	finished, bytes int // what link.inFlight and link.bytes do not know of yet
	token           []byte
}

func newReader(l *link, t *pool.Stream) *reader {
	r := &reader{link: l, stream: t, heard: time.Now()}
	_, r.silence = l.server.Timeouts()
	r.r = bufio.NewReaderSize(r, readBuffer)
	t.SetReadDeadline(r.heard.Add(min(linger, r.silence)))
	return r
}

func (r *reader) run() error {
	for {
		if _, err := r.r.Peek(1); err != nil {
			return err
		}
		q := r.first()
		if q == nil { // nobody asked
			line, err := protocol.Line(r.r)
			if err == nil {
				err = protocol.LineError(line)
			}
			return err
		}
		r.begun = true
		if err := r.reply(q); err != nil {
			return err
		}
	}
}

// first returns the request whose reply comes next, nil where none is due.
func (r *reader) first() *request {
	if r.next == len(r.due) {
		l := r.link
		l.mu.Lock()
		r.due, l.sent = l.sent, r.due[:0]
		l.mu.Unlock()
		r.next = 0
		if len(r.due) == 0 {
			return nil
		}
	}
	return r.due[r.next]
}

// Read is what the replies are read by. It goes on when its deadline passes unless
// there is a reason to end.
func (r *reader) Read(p []byte) (int, error) {
	if err := r.account(); err != nil {
		return 0, err
	}
	for {
		n, err := r.stream.Read(p)
		if n > 0 {
			r.heard = time.Now()
			return n, nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, err
		}
		if err := r.tick(); err != nil {
			return 0, err
		}
	}
}

// account makes room for what is to be written next, and ends a stream that is drained.
func (r *reader) account() error {
	if r.finished == 0 {
		return nil
	}
	r.answered = true
	r.replied = r.heard
	r.stream.Answered()
	l := r.link
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inFlight -= r.finished
	l.bytes -= r.bytes
	r.finished, r.bytes = 0, 0
	if l.draining && l.inFlight == 0 {
		l.ended, l.err = true, errIdle
		return errIdle
	}
	l.work.Signal()
	return nil
}

// tick ends the calls whose time is over. It returns an error where the server has been
// silent for too long, or has not got a reply done, or there is nothing to do, and else
// sets the next deadline: no later than any of these, or the next call's end, can be.
func (r *reader) tick() error {
	l := r.link
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.inFlight == 0 && l.queue.first == nil {
		if now.Sub(r.heard) >= linger {
			l.ended, l.err = true, errIdle // before anything more is taken
			return errIdle
		}
	}
	l.expireQueue(now)
	l.draining = l.draining || r.stream.Retires(now)
	next := min(linger, r.silence)
	if l.inFlight > 0 {
		quiet := now.Sub(latest(r.heard, l.dueSince))
		if quiet >= r.silence || now.Sub(latest(r.replied, l.dueSince)) >= l.expiry {
			return os.ErrDeadlineExceeded
		}
		next = min(next, r.silence-quiet)
	}
	for _, due := range [][]*request{r.due[r.next:], l.sent} {
		for _, q := range due {
			for ; q != nil; q = q.more {
				switch left := q.by.Sub(now); {
				case q.left.Load():
				case left > 0:
					next = min(next, left)
				default:
					q.left.Store(true)
					q.complete(l.server.TimedOut())
				}
			}
		}
	}
	if q := l.queue.first; q != nil {
		next = min(next, q.by.Sub(now))
	}
	r.stream.SetReadDeadline(now.Add(next))
	return nil
}

func latest(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// reply reads a reply. Its error is one after which the next cannot be told.
func (r *reader) reply(q *request) error {
	if q.isRead() && !q.meta {
		return r.values(q)
	}
	line, err := protocol.Line(r.r)
	if err == nil {
		if q.meta {
			err = r.metaReply(q, line)
		} else {
			err = classicReply(q, line)
		}
	}
	if err != nil && !isReply(err) {
		return err
	}
	oneLine := q.kind != set && q.size <= protocol.MaxLine
	var out error
	if err != nil && !protocol.InStep(err, oneLine) {
		out = err
		r.link.end(r.stream, out, false) // before the caller goes on to its next call
	}
	r.finish(q)
	complete(q, r.refusal(err))
	return out
}

// finish says that all of q's reply has come.
func (r *reader) finish(q *request) {
	r.begun = false
	r.next++
	r.bytes += q.size
	for ; q != nil; q = q.more {
		r.finished++
	}
}

// complete is for a call that may have left.
func complete(q *request, err error) {
	if !q.left.Load() {
		q.complete(err)
	}
}

// refusal makes an error of a reply the caller's.
func (r *reader) refusal(err error) error {
	if errors.Is(err, protocol.ErrUnexpected) {
		return r.link.server.Lost(protocol.ErrUnexpected)
	}
	return err
}

func (r *reader) metaReply(q *request, line []byte) error {
	m, err := protocol.ParseMeta(line)
	if err != nil {
		return err
	}
	r.token = strconv.AppendUint(r.token[:0], q.token, 10)
	// A memcached of early 2022 (1.6.14) or before leaves the token out of a miss. Who
	// has shown that it does not is not let off.
	miss := m.Code == "EN" || m.Code == "NF"
	switch {
	case bytes.Equal(m.Token, r.token):
		r.tokens = r.tokens || miss
	case !miss || len(m.Token) > 0 || r.tokens:
		return protocol.ErrUnexpected
	}
	switch q.kind {
	case get:
		switch {
		case m.Code == "EN":
			return nil
		case m.Code != "VA":
			return protocol.ErrUnexpected
		}
		q.found = true
		if q.wantTTL {
			q.ttl = m.TTL
		}
		return r.data(q, m.Size)
	case remove:
		if q.found = m.Code == "HD"; q.found || m.Code == "NF" {
			return nil
		}
		return protocol.ErrUnexpected
	case set:
		q.result, err = q.set.MetaResult(m)
		return err
	}
	q.result.CAS = m.CAS
	q.found, err = pipeline.IsHit(m)
	return err
}

// data reads a value, or over it where nobody wants it: neither q's caller nor another
// one's of the same merged get.
func (r *reader) data(q *request, size int) (err error) {
	wanted := false
	for o := q; o != nil && !wanted; o = o.more {
		wanted = o.kind == get && o.key == q.key && !o.left.Load()
	}
	if !wanted {
		return protocol.SkipData(r.r, size)
	}
	q.value, err = protocol.Data(r.r, size)
	return err
}

func classicReply(q *request, line []byte) (err error) {
	if q.kind == set {
		q.result, err = q.set.ClassicResult(line)
		return err
	}
	yes := "DELETED"
	if q.kind == touch {
		yes = "TOUCHED"
	}
	if q.found = string(line) == yes; q.found || string(line) == "NOT_FOUND" {
		return nil
	}
	return protocol.LineError(line)
}

// values reads the reply to a get of one key or more.
func (r *reader) values(first *request) error {
	came := 0
	for next := first; ; came++ {
		line, err := protocol.Line(r.r)
		var v protocol.Value
		more := false
		if err == nil {
			v, more, err = protocol.ParseValue(line)
		}
		var q *request
		if more {
			if q = find(first, next, v.Key); q == nil {
				err = protocol.ErrUnexpected
			}
		}
		switch {
		case err != nil:
			return r.refused(first, came, err)
		case !more:
			r.fillDuplicates(first, came)
			r.finish(first)
			completeAll(first)
			return nil
		}
		next = q.more
		q.found = true
		if err := r.data(q, v.Size); err != nil {
			return r.refused(first, came, err)
		}
	}
}

// find returns the request that key's value is for: one of those from next on, if the
// server answers in the order of the keys.
func find(first, next *request, key []byte) *request {
	for _, from := range []*request{next, first} {
		for q := from; q != nil; q = q.more {
			if !q.found && q.key == string(key) {
				return q
			}
		}
	}
	return nil
}

// fillDuplicates is for a server that answers a key once which was asked for twice.
func (r *reader) fillDuplicates(first *request, came int) {
	if came == 0 {
		return
	}
	for q := first; q != nil; q = q.more {
		if q.found {
			continue
		}
		for o := first; o != nil; o = o.more {
			if o.found && o.key == q.key && (o.value != nil || q.kind == exists) {
				q.found = true
				q.value = append([]byte{}, o.value...)
				break
			}
		}
	}
}

func completeAll(first *request) {
	for q := first; q != nil; {
		next := q.more
		q.more = nil
		complete(q, nil)
		q = next
	}
}

// refused ends a get whose reply was an error. Those that it was merged of are asked for
// again, each by itself: it may be the error of one.
func (r *reader) refused(first *request, came int, err error) error {
	if !isReply(err) {
		return err
	}
	var out error
	if came > 0 || !protocol.InStep(err, first.size <= protocol.MaxLine) {
		out = err
		r.link.end(r.stream, out, false)
	}
	r.finish(first)
	if first.more == nil {
		complete(first, r.refusal(err))
	} else {
		r.askAgain(first)
	}
	return out
}

func (r *reader) askAgain(first *request) {
	l := r.link
	l.mu.Lock()
	defer l.mu.Unlock()
	for q := first; q != nil; {
		next := q.more
		q.more = nil
		q.found, q.value = false, nil
		if !q.left.Load() {
			q.single = true
			l.queue.pushFront(q)
		}
		q = next
	}
	l.work.Signal()
}
