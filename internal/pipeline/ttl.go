package pipeline

import (
	"strconv"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// TTL returns the seconds that key has left, -1 for no expiry and 0 for a miss.
// It does not count as a use of the item. It needs the meta protocol.
func TTL(c *pool.Conn, key string) (seconds int64, err error) {
	err = do(c, func(x *exchange) error {
		if !x.conn.Meta() {
			return ErrNoMeta
		}
		_, err := x.run(1, 1, func(int) error {
			return x.askTTL(key)
		}, func(int) error {
			seconds, err = x.ttl()
			return err
		})
		return err
	})
	return seconds, err
}

func (x *exchange) askTTL(key string) error { return x.line("mg ", key, " t u") }

// ttl reads the reply to askTTL.
func (x *exchange) ttl() (int64, error) {
	m, err := x.meta()
	if err != nil {
		return 0, err
	}
	hit, err := isHit(m)
	if !hit {
		return 0, err
	}
	return m.TTL, nil
}

// Touch gives key another expiration. It returns its CAS number, 0 where only
// the meta protocol tells it; ok is false for a miss.
func Touch(c *pool.Conn, key string, expiration Expiration) (cas uint64, ok bool, err error) {
	err = do(c, func(x *exchange) error {
		if !x.conn.Meta() {
			ok, err = x.touch(key, expiration.Classic)
			return err
		}
		_, err := x.runMeta(1, func(int) error {
			return x.line("mg ", key, " c T", strconv.Itoa(int(expiration.Meta)))
		}, func(_ int, m protocol.Meta) error {
			ok, err = isHit(m)
			cas = m.CAS
			return err
		})
		return err
	})
	return cas, ok, err
}

func (x *exchange) touch(key string, expiration int32) (ok bool, err error) {
	_, err = x.run(1, 1, func(int) error {
		return x.line("touch ", key, " ", strconv.Itoa(int(expiration)))
	}, func(int) error {
		line, err := protocol.Line(x.r)
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
	return ok, err
}

// isHit reads the reply to an mg that asks for no value.
func isHit(m protocol.Meta) (bool, error) {
	switch m.Code {
	case "HD":
		return true, nil
	case "EN":
		return false, nil
	}
	return false, protocol.ErrUnexpected
}
