package pipeline

import (
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// smallItem is what no memcached can refuse for its size, key and value
// together: the smallest limit that one can be given (-I) is 1 KB, with all that
// it keeps beside the value.
const smallItem = 512

// segment is how many small items are stored between two signs of the server,
// and segmentWindow how many segments are sent ahead: their replies, if each
// item's were an error, must fit into the smallest socket buffers.
const (
	segment       = 64
	segmentWindow = shortWindow / segment
)

// MSet stores items, which it may reorder. refused is called for those that the
// server refused; unanswered are those that it did not answer for.
//
// With the meta protocol the server answers for a small item only if it refuses
// it, which saves it, and us, most of the work. That reply does not say which it
// was: all of the segment count as refused.
func MSet(c *pool.Conn, items []Item, expiration int32, refused func(items []Item, err error)) (unanswered []Item, err error) {
	unanswered = items
	err = do(c, func(x *exchange) error {
		small := 0
		if x.conn.Meta() {
			small = smallFirst(items)
		}
		n, err := x.setQuietly(items[:small], expiration, refused)
		unanswered = items[n:]
		if err != nil {
			return err
		}
		sets := make([]Set, len(items)-small)
		for i, it := range items[small:] {
			sets[i] = Set{Item: it, Expiration: Expiration{expiration, expiration}}
		}
		n, err = x.setAll(sets, func(i int, r SetResult) {
			if r.Err != nil {
				refused(items[small+i:small+i+1], r.Err)
			}
		})
		unanswered = items[small+n:]
		return err
	})
	return unanswered, err
}

// smallFirst puts the small items before the others and returns their number.
func smallFirst(items []Item) (small int) {
	for i := range items {
		if len(items[i].Key)+len(items[i].Value) <= smallItem {
			items[small], items[i] = items[i], items[small]
			small++
		}
	}
	return small
}

// setQuietly returns how many of items the server answered for.
func (x *exchange) setQuietly(items []Item, expiration int32, refused func([]Item, error)) (answered int, err error) {
	segmentOf := func(i int) []Item { return items[i*segment : min((i+1)*segment, len(items))] }
	n, err := x.run((len(items)+segment-1)/segment, segmentWindow, func(i int) error {
		for _, it := range segmentOf(i) {
			if err := x.metaSet(&Set{Item: it, Expiration: Expiration{Meta: expiration}}, " q"); err != nil {
				return err
			}
			if err := x.flushFull(); err != nil {
				return err
			}
		}
		return x.line("mn")
	}, func(i int) error {
		refusal, err := x.untilNoop()
		if refusal != nil {
			refused(segmentOf(i), refusal)
		}
		return err
	})
	return min(n*segment, len(items)), err
}

// untilNoop reads up to the reply to "mn" and returns the last refusal before
// it.
func (x *exchange) untilNoop() (refused, err error) {
	for {
		m, err := x.meta()
		switch {
		case x.refusal(err):
			refused = err
		case err != nil:
			return refused, err
		case m.Code == "MN":
			return refused, nil
		default:
			return refused, protocol.ErrUnexpected
		}
	}
}
