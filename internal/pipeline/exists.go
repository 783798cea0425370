package pipeline

import (
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// Exists returns how many of keys the server holds; one that is named twice
// counts twice. Without the meta protocol it gets their values, and throws them
// away.
func Exists(c *pool.Conn, keys []string) (n int64, err error) {
	err = doRead(c, func(x *exchange) error {
		if !x.conn.Meta() {
			n, err = x.existsByGet(keys)
			return err
		}
		return x.runMeta(len(keys), func(i int) error {
			return x.line("mg ", keys[i], " s") // some versions before 1.6.18 refuse one without a flag
		}, func(m protocol.Meta) error {
			hit, err := IsHit(m)
			if hit {
				n++
			}
			return err
		})
	})
	return n, err
}

func (x *exchange) existsByGet(keys []string) (n int64, err error) {
	there := make(map[string]bool)
	err = x.get(keys, func(i, size int) error {
		there[keys[i]] = true
		return protocol.SkipData(x.r, size)
	})
	for _, key := range keys {
		if there[key] {
			n++
		}
	}
	return n, err
}
