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
			if err = protocol.LineError(line); x.refusal(err) {
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

// DeleteCAS removes those of values that their keys still have, and that live for
// another ttl seconds at most: CAS numbers begin again when a server is restarted,
// so that the number alone may be another value's.
func DeleteCAS(c *pool.Conn, values []KeyCAS, ttl int64) error {
	// Nothing of md has been written where it is sent again.
	return doRead(c, func(x *exchange) error {
		var there []KeyCAS
		next := values
		err := x.runMeta(len(values), func(i int) error {
			return x.line("mg ", values[i].Key, " c t u")
		}, func(m protocol.Meta) error {
			hit, err := IsHit(m)
			if hit && m.CAS == next[0].CAS && m.TTL >= 0 && m.TTL <= ttl {
				there = append(there, next[0])
			}
			next = next[1:]
			return err
		})
		if err != nil {
			return err
		}
		return x.runMeta(len(there), func(i int) error {
			return x.line("md ", there[i].Key, " C", strconv.FormatUint(there[i].CAS, 10))
		}, func(m protocol.Meta) error {
			switch m.Code {
			case "HD", "NF", "EX":
				return nil
			}
			return protocol.ErrUnexpected
		})
	})
}
