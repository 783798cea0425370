package pipeline

import (
	"math"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// Found is an item with all that the server tells of it.
type Found struct {
	Value []byte
	Flags uint32
	CAS   uint64
	TTL   int64 // seconds; -1 for none, and where only the meta protocol tells it
}

// Fetch gets an item with its flags and CAS number, and with its TTL where the
// server speaks the meta protocol; nil is a miss.
func Fetch(c *pool.Conn, key string) (found *Found, err error) {
	err = do(c, func(x *exchange) error {
		if x.conn.Meta() {
			found, err = x.metaFetch(key)
		} else {
			found, err = x.fetch(key)
		}
		return err
	})
	return found, err
}

func (x *exchange) metaFetch(key string) (*Found, error) {
	m, err := x.askMeta("mg ", key, " t c f v")
	if err != nil || m.Code == "EN" {
		return nil, err
	}
	if m.Code != "VA" {
		return nil, protocol.ErrUnexpected
	}
	value, err := protocol.Data(x.r, m.Size)
	return &Found{value, m.Flags, m.CAS, m.TTL}, err
}

// fetch looks whether it is key's value that comes: some proxies err.
func (x *exchange) fetch(key string) (*Found, error) {
	line, err := x.ask("gets ", key)
	if err != nil {
		return nil, err
	}
	v, ok, err := protocol.ParseValue(line)
	if err != nil || !ok {
		return nil, err
	}
	if string(v.Key) != key || v.Flags > math.MaxUint32 {
		return nil, protocol.ErrUnexpected
	}
	found := &Found{Flags: uint32(v.Flags), CAS: v.CAS, TTL: -1}
	if found.Value, err = protocol.Data(x.r, v.Size); err != nil {
		return nil, err
	}
	line, err = protocol.Line(x.r)
	if err == nil && string(line) != "END" {
		err = protocol.ErrUnexpected
	}
	return found, err
}
