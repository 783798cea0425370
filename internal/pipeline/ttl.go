package pipeline

import (
	"strconv"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// TTL returns the seconds that key has left, -1 for no expiry and 0 for a miss.
// It does not count as a use of the item. It needs the meta protocol.
func TTL(c *pool.Conn, key string) (seconds int64, err error) {
	err = doRead(c, func(x *exchange) error {
		if !x.conn.Meta() {
			return ErrNoMeta
		}
		m, err := x.askMeta("mg ", key, " t u")
		if err == nil {
			seconds, err = ttl(m)
		}
		return err
	})
	return seconds, err
}

// ttl reads the reply to an mg with the flag t.
func ttl(m protocol.Meta) (int64, error) {
	hit, err := IsHit(m)
	if !hit {
		return 0, err
	}
	return m.TTL, nil
}

// IsHit reads the reply to an mg that asks for no value.
func IsHit(m protocol.Meta) (bool, error) {
	switch m.Code {
	case "HD":
		return true, nil
	case "EN":
		return false, nil
	}
	return false, protocol.ErrUnexpected
}

// Touch gives key another expiration. It returns its CAS number, 0 where only
// the meta protocol tells it; ok is false for a miss.
func Touch(c *pool.Conn, key string, expiration Expiration) (cas uint64, ok bool, err error) {
	err = do(c, func(x *exchange) error {
		if x.conn.Meta() {
			m, err := x.askMeta("mg ", key, " c T", strconv.Itoa(int(expiration.Meta)))
			if err == nil {
				cas = m.CAS
				ok, err = IsHit(m)
			}
			return err
		}
		line, err := x.ask("touch ", key, " ", strconv.Itoa(int(expiration.Classic)))
		switch {
		case err != nil:
			return err
		case string(line) == "TOUCHED":
			ok = true
			return nil
		case string(line) == "NOT_FOUND":
			return nil
		}
		return protocol.LineError(line)
	})
	return cas, ok, err
}
