package pipeline

import (
	"strconv"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// Item is a value to store.
type Item struct {
	Key   string
	Value []byte
}

// Small reports whether no memcached can refuse the item for its size: the
// smallest limit that one can be given (-I) is 1 KB, with all that it keeps
// beside the value.
func (it Item) Small() bool { return len(it.Key)+len(it.Value) <= 512 }

// segment is how many small items are stored between two signs of the server,
// and segmentWindow how many segments are sent ahead: their replies, if each
// item's were an error, must fit into the smallest socket buffers.
const (
	segment       = 64
	segmentWindow = shortWindow / segment
)

// Set stores items. refused is called for those that the server refused, with
// their places; answered says how many it answered for, from the first on.
func Set(c *pool.Conn, items []Item, expiration int32, refused func(from, to int, err error)) (answered int, err error) {
	err = do(c, func(x *exchange) error {
		answered, err = x.set(items, expiration, refused)
		return err
	})
	return answered, err
}

// SetQuietly is Set on a server that speaks the meta protocol, with the small
// items in front. It answers for each of them only if it refuses it, which saves
// it, and us, most of the work. That reply does not say which it was: all of the
// segment count as refused.
func SetQuietly(c *pool.Conn, items []Item, expiration int32, refused func(from, to int, err error)) (answered int, err error) {
	small := 0
	for small < len(items) && items[small].Small() {
		small++
	}
	flags := append(strconv.AppendInt([]byte(" T"), int64(expiration), 10), " q\r\n"...)
	err = do(c, func(x *exchange) error {
		n, err := x.run((small+segment-1)/segment, segmentWindow, func(i int) error {
			for _, it := range items[i*segment : min((i+1)*segment, small)] {
				x.out = append(append(append(x.out, "ms "...), it.Key...), ' ')
				x.out = append(strconv.AppendInt(x.out, int64(len(it.Value)), 10), flags...)
				x.out = append(append(x.out, it.Value...), "\r\n"...)
				if len(x.out) >= flushAt {
					if err := x.flush(); err != nil {
						return err
					}
				}
			}
			x.out = append(x.out, "mn\r\n"...)
			return nil
		}, func(i int) error {
			refusal, err := x.untilNoop()
			if refusal != nil {
				refused(i*segment, min((i+1)*segment, small), refusal)
			}
			return err
		})
		answered = min(n*segment, small)
		if err != nil {
			return err
		}
		n, err = x.set(items[small:], expiration, func(from, to int, err error) { refused(small+from, small+to, err) })
		answered += n
		return err
	})
	return answered, err
}

// untilNoop reads up to the reply to "mn" and returns the last refusal before
// it.
func (x *exchange) untilNoop() (refused, err error) {
	for {
		line, err := protocol.Line(x.r)
		if err != nil {
			return refused, err
		}
		m, err := protocol.ParseMeta(line)
		switch {
		case refusal(err):
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

// set stores items by the classic command.
func (x *exchange) set(items []Item, expiration int32, refused func(from, to int, err error)) (answered int, err error) {
	flags := append(strconv.AppendInt([]byte(" 0 "), int64(expiration), 10), ' ')
	return x.run(len(items), shortWindow, func(i int) error {
		it := &items[i]
		x.out = append(append(append(x.out, "set "...), it.Key...), flags...)
		x.out = append(strconv.AppendInt(x.out, int64(len(it.Value)), 10), "\r\n"...)
		return x.data(it.Value)
	}, func(i int) error {
		line, err := protocol.Line(x.r)
		if err != nil || string(line) == "STORED" {
			return err
		}
		if err = protocol.LineError(line); refusal(err) {
			refused(i, i+1, err)
			return nil
		}
		return err
	})
}
