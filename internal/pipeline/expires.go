package pipeline

import (
	"errors"
	"strconv"
	"strings"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// ErrNoClock means that the clock that a key lives by cannot be read: a proxy
// answers for the server.
var ErrNoClock = errors.New("the server's clock cannot be read")

// ticks is how often ExpiresAt tries anew because the clock ticked meanwhile,
// which it does once a second.
const ticks = 5

// ExpiresAt returns the Unix time, by the server's clock, at which key expires, and
// the seconds that it has left, as TTL does; at is of no meaning unless left is
// positive. It needs the meta protocol. With ErrNoClock it returns left alone.
//
// The server tells its clock in its statistics and a key's TTL by mg, both in
// whole seconds. TTLs that are the same before and after the statistics were
// read in the same second as they.
func ExpiresAt(c *pool.Conn, key string) (at, left int64, err error) {
	for range ticks {
		before, clock, after, err := ttlAroundClock(c, key)
		left = after
		switch {
		case err != nil:
			return 0, 0, err
		case before == 0:
			return 0, 0, nil
		case before < 0 || after <= 0:
			return 0, after, nil
		case clock == 0:
			return 0, after, ErrNoClock
		case before == after:
			return clock + after, after, nil
		}
	}
	return 0, left, ErrNoClock
}

func ttlAroundClock(c *pool.Conn, key string) (before, clock, after int64, err error) {
	err = do(c, func(x *exchange) error {
		if !x.conn.Meta() {
			return ErrNoMeta
		}
		x.line("mg ", key, " t u")
		x.line("stats")
		x.line("mg ", key, " t u")
		if err := x.flush(); err != nil {
			return err
		}
		if before, err = x.ttl(); err != nil {
			return err
		}
		if clock, err = x.clock(); err != nil {
			return err
		}
		after, err = x.ttl()
		return err
	})
	return before, clock, after, err
}

func (x *exchange) ttl() (int64, error) {
	m, err := x.meta()
	if err != nil {
		return 0, err
	}
	return ttl(m)
}

// clock reads the reply to "stats" and returns the server's Unix time, 0 where
// it does not tell or it is that of memcached's own proxy.
func (x *exchange) clock() (unix int64, err error) {
	proxy := false
	for {
		line, err := protocol.Line(x.r)
		if err != nil {
			return 0, err
		}
		name, value, ok := protocol.ParseStat(line)
		switch {
		case string(line) == "END":
			if proxy {
				return 0, nil
			}
			return unix, nil
		case !ok:
			err := protocol.LineError(line)
			if x.refusal(err) {
				return 0, nil
			}
			return 0, err
		case name == "time":
			unix, err = strconv.ParseInt(value, 10, 64)
			if err != nil {
				return 0, protocol.ErrUnexpected
			}
		case strings.HasPrefix(name, "proxy_"):
			proxy = true
		}
	}
}
