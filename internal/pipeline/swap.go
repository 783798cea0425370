package pipeline

import "github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"

// Swap does a Set with a CAS number, by the classic command: a meta set that is
// refused for its size removes the value that is there. left is what the key had
// left to live just before, as TTL tells it; -1 without the meta protocol.
func Swap(c *pool.Conn, s Set) (left int64, r SetResult, err error) {
	left = -1
	err = do(c, func(x *exchange) (err error) {
		meta := x.conn.Meta()
		if meta {
			x.line("mg ", s.Key, " t u")
		}
		if err := x.set(&s); err != nil {
			return err
		}
		if err := x.flush(); err != nil {
			return err
		}
		if meta {
			if left, err = x.ttl(); err != nil {
				return err
			}
		}
		r, err = x.setResult(&s, (*Set).ClassicResult)
		return err
	})
	return left, r, err
}
