package pipeline

import (
	"bufio"
	"bytes"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// Get gets keys and calls found for each that the server holds, with its place
// in keys and its value. A key that is named twice may be found once.
func Get(c *pool.Conn, keys []string, found func(i int, value []byte)) error {
	var arena protocol.Arena
	return get(c, keys, func(i int, data []byte) {
		found(i, arena.Copy(data))
	}, func(x *exchange, i, size int) error {
		value, err := protocol.Data(x.r, size, &arena)
		if err == nil {
			found(i, value)
		}
		return err
	})
}

// Count gets keys, throws the values away and calls found for each that the
// server holds.
func Count(c *pool.Conn, keys []string, found func(i int)) error {
	return get(c, keys, func(i int, _ []byte) {
		found(i)
	}, func(x *exchange, i, size int) error {
		found(i)
		return protocol.SkipData(x.r, size)
	})
}

// get splits keys into commands. For each value that has come, whole is called
// where it is all in the buffer, with the value as it stands there; otherwise
// data, to read it.
func get(c *pool.Conn, keys []string, whole func(i int, data []byte), data func(x *exchange, i, size int) error) error {
	bounds := []int{0} // of each command's keys
	for size, i := 0, 0; i < len(keys); i++ {
		size += len(keys[i]) + 1
		if i == len(keys)-1 || size+len(keys[i+1]) >= getBytes {
			bounds = append(bounds, i+1)
			size = 0
		}
	}
	m := matcher{keys: keys}
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
				if n := m.inOrder(x.r, whole); n > 0 {
					values -= n
					x.conn.Progress()
				}
				line, err := protocol.Line(x.r)
				if err != nil {
					return err
				}
				v, ok, err := protocol.ParseValue(line)
				if err != nil || !ok {
					return err
				}
				at, err := m.find(v.Key)
				if err != nil {
					return err
				}
				if err := data(x, at, v.Size); err != nil {
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

// inOrder takes the values from the buffer that are the next ones asked for, and
// returns how many. It does nothing that find cannot, but in half the time.
func (m *matcher) inOrder(r *bufio.Reader, whole func(i int, data []byte)) (values int) {
	if m.places != nil {
		return 0
	}
	b, _ := r.Peek(r.Buffered())
	taken := 0
	for m.next < len(m.keys) {
		data, n := protocol.CutValue(b[taken:], m.keys[m.next])
		if n == 0 {
			break
		}
		whole(m.next, data)
		taken += n
		values++
		m.next++
	}
	r.Discard(taken)
	return values
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

// Delete deletes keys and counts those that were there. refused is called for
// each that the server refused; answered says how many it answered for, from the
// first on.
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

// Version asks for the server's version, which every server and proxy tells.
func Version(c *pool.Conn) (version string, err error) {
	err = do(c, func(x *exchange) error {
		_, err := x.run(1, 1, func(int) error {
			x.out = append(x.out, "version\r\n"...)
			return nil
		}, func(int) error {
			version, err = x.version()
			return err
		})
		return err
	})
	return version, err
}

func (x *exchange) version() (string, error) {
	line, err := protocol.Line(x.r)
	if err != nil {
		return "", err
	}
	version, ok := bytes.CutPrefix(line, []byte("VERSION "))
	if !ok {
		return "", protocol.LineError(line)
	}
	return string(version), nil
}
