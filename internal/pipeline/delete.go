package pipeline

import (
	"strconv"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// Delete deletes keys and counts those that were there. refused is called for
// each that the server refused; answered says how many it answered for, from the
// first on.
func Delete(c *pool.Conn, keys []string, refused func(i int, err error)) (deleted int64, answered int, err error) {
	err = do(c, func(x *exchange) error {
		answered, err = x.run(len(keys), shortWindow, func(i int) error {
			return x.line("delete ", keys[i])
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

// KeyCAS is one of the values that a key has had.
type KeyCAS struct {
	Key string
	CAS uint64
}

// DeleteCAS removes those of values that their keys still have.
func DeleteCAS(c *pool.Conn, values []KeyCAS) error {
	return do(c, func(x *exchange) error {
		return x.runMeta(len(values), func(i int) error {
			return x.line("md ", values[i].Key, " C", strconv.FormatUint(values[i].CAS, 10))
		}, func(m protocol.Meta) error {
			switch m.Code {
			case "HD", "NF", "EX":
				return nil
			}
			return protocol.ErrUnexpected
		})
	})
}
