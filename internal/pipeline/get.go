package pipeline

import (
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// Get gets keys and calls found for each that the server holds, with its index
// in keys and its value. A key that is named twice may be found once.
func Get(c *pool.Conn, keys []string, found func(i int, value []byte)) error {
	return doRead(c, func(x *exchange) error {
		return x.get(keys, func(i, size int) error {
			value, err := protocol.Data(x.r, size)
			if err == nil {
				found(i, value)
			}
			return err
		})
	})
}

// get splits keys into commands and calls data to read each value that comes.
func (x *exchange) get(keys []string, data func(i, size int) error) error {
	bounds := []int{0} // of each command's keys
	for size, i := 0, 0; i < len(keys); i++ {
		size += len(keys[i]) + 1
		if i == len(keys)-1 || size+len(keys[i+1]) >= getBytes {
			bounds = append(bounds, i+1)
			size = 0
		}
	}
	m := matcher{keys: keys}
	_, err := x.run(len(bounds)-1, getWindow, func(i int) error {
		x.out = append(x.out, "get"...)
		for _, key := range keys[bounds[i]:bounds[i+1]] {
			x.out = append(append(x.out, ' '), key...)
		}
		return x.line()
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
			x.values = true
			at, err := m.find(v.Key)
			if err != nil {
				return err
			}
			if err := data(at, v.Size); err != nil {
				return err
			}
			if values > 0 { // values without end must not go on without end
				x.conn.Progress()
			}
		}
	})
	return err
}

// matcher finds the index of a key in a request. A server answers in the order
// of the keys and leaves out misses; a proxy may answer in any order.
type matcher struct {
	keys    []string
	next    int            // keys before it were answered or missed, if all is in order
	indexes map[string]int // of all keys, once one was out of order
}

func (m *matcher) find(key []byte) (int, error) {
	if m.indexes == nil {
		for i := m.next; i < len(m.keys); i++ {
			if string(key) == m.keys[i] {
				m.next = i + 1
				return i, nil
			}
		}
		m.indexes = make(map[string]int, len(m.keys))
		for i, k := range m.keys {
			m.indexes[k] = i
		}
	}
	i, ok := m.indexes[string(key)]
	if !ok {
		return 0, protocol.ErrUnexpected
	}
	return i, nil
}
