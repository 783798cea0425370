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

// Get gets keys and calls found for each that the server holds, with its place
// in keys and its value. A key that is named twice may be found once.
func Get(c *pool.Conn, keys []string, found func(i int, value []byte)) error {
	m := matcher{keys: keys}
	var arena protocol.Arena
	return get(c, keys, func(x *exchange, v protocol.Value) error {
		i, err := m.find(v.Key)
		if err != nil {
			return err
		}
		value, err := protocol.Data(x.r, v.Size, &arena)
		if err != nil {
			return err
		}
		found(i, value)
		return nil
	})
}

// Count gets keys, throws the values away and calls found for each that the
// server holds.
func Count(c *pool.Conn, keys []string, found func(i int)) error {
	m := matcher{keys: keys}
	return get(c, keys, func(x *exchange, v protocol.Value) error {
		i, err := m.find(v.Key)
		if err != nil {
			return err
		}
		found(i)
		return protocol.SkipData(x.r, v.Size)
	})
}

// get splits keys into commands; value reads the data block behind a VALUE line.
func get(c *pool.Conn, keys []string, value func(*exchange, protocol.Value) error) error {
	bounds := []int{0} // of each command's keys
	for size, i := 0, 0; i < len(keys); i++ {
		size += len(keys[i]) + 1
		if i == len(keys)-1 || size+len(keys[i+1]) >= getBytes {
			bounds = append(bounds, i+1)
			size = 0
		}
	}
	return do(c, func(x *exchange) error {
		_, err := x.run(len(bounds)-1, getWindow, func(i int) error {
			x.out = append(x.out, "get"...)
			for _, key := range keys[bounds[i]:bounds[i+1]] {
				x.out = append(x.out, ' ')
				x.out = append(x.out, key...)
			}
			x.out = append(x.out, "\r\n"...)
			return nil
		}, func(i int) error {
			for values := bounds[i+1] - bounds[i]; ; values-- {
				line, err := protocol.Line(x.r)
				if err != nil {
					return err
				}
				v, ok, err := protocol.ParseValue(line)
				if err != nil || !ok {
					return err
				}
				if err := value(x, v); err != nil {
					return err
				}
				if values > 0 { // values without end must not go on without end
					x.conn.Progress()
				}
			}
		})
		return err
	})
}

// matcher finds the place of a key in a request. A server answers in the order
// of the keys and leaves out misses; a proxy may answer in any order.
type matcher struct {
	keys   []string
	next   int            // keys before it were answered or missed, if all is in order
	places map[string]int // of all keys, once one was out of order
}

func (m *matcher) find(key []byte) (int, error) {
	if m.places == nil {
		for i := m.next; i < len(m.keys); i++ {
			if string(key) == m.keys[i] {
				m.next = i + 1
				return i, nil
			}
		}
		m.places = make(map[string]int, len(m.keys))
		for i, k := range m.keys {
			m.places[k] = i
		}
	}
	i, ok := m.places[string(key)]
	if !ok {
		return 0, protocol.ErrUnexpected
	}
	return i, nil
}

// Set stores items. refused is called for each that the server refused; the
// count is of those that it answered for, in the order of items.
func Set(c *pool.Conn, items []Item, expiration int32, refused func(i int, err error)) (answered int, err error) {
	var exp [12]byte
	suffix := append(append([]byte(" 0 "), strconv.AppendInt(exp[:0], int64(expiration), 10)...), ' ')
	err = do(c, func(x *exchange) error {
		answered, err = x.run(len(items), shortWindow, func(i int) error {
			it := &items[i]
			x.out = append(x.out, "set "...)
			x.out = append(x.out, it.Key...)
			x.out = append(x.out, suffix...)
			x.out = strconv.AppendInt(x.out, int64(len(it.Value)), 10)
			x.out = append(x.out, "\r\n"...)
			return x.data(it.Value)
		}, func(i int) error {
			line, err := protocol.Line(x.r)
			if err != nil || string(line) == "STORED" {
				return err
			}
			if err = protocol.LineError(line); refusal(err) {
				refused(i, err)
				return nil
			}
			return err
		})
		return err
	})
	return answered, err
}

// Delete deletes keys and counts those that were there; refused and answered
// are as Set's.
func Delete(c *pool.Conn, keys []string, refused func(i int, err error)) (deleted int64, answered int, err error) {
	err = do(c, func(x *exchange) error {
		answered, err = x.run(len(keys), shortWindow, func(i int) error {
			x.out = append(x.out, "delete "...)
			x.out = append(x.out, keys[i]...)
			x.out = append(x.out, "\r\n"...)
			return nil
		}, func(i int) error {
			line, err := protocol.Line(x.r)
			switch {
			case err != nil:
				return err
			case string(line) == "DELETED":
				deleted++
				return nil
			case string(line) == "NOT_FOUND":
				return nil
			}
			if err = protocol.LineError(line); refusal(err) {
				refused(i, err)
				return nil
			}
			return err
		})
		return err
	})
	return deleted, answered, err
}

// Version asks for the server's version, which every server and proxy answers.
func Version(c *pool.Conn) (version string, err error) {
	err = do(c, func(x *exchange) error {
		_, err := x.run(1, 1, func(int) error {
			x.out = append(x.out, "version\r\n"...)
			return nil
		}, func(int) error {
			line, err := protocol.Line(x.r)
			if err != nil {
				return err
			}
			if len(line) < len("VERSION ") || string(line[:len("VERSION ")]) != "VERSION " {
				return protocol.LineError(line)
			}
			version = string(line[len("VERSION "):])
			return nil
		})
		return err
	})
	return version, err
}
