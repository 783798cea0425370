package pipeline

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"syscall"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// SpeaksMeta reports whether the server speaks the meta protocol. That it does
// is found out for each connection, before a value is sent on it that another
// server behind the same address would take for commands; that it does not, once
// per server. It is asked for its version and for nothing ("mn"). A memcached
// before 1.6 answers ERROR. twemproxy closes the connection, as a server that
// stops does: only what does so again, after it has answered to "version" alone,
// has refused.
func SpeaksMeta(c *pool.Conn) (bool, error) {
	server := c.Server()
	if server.MetaRefused.Load() {
		return false, nil
	}
	if spoken, err := c.Meta(); err != nil || spoken {
		return spoken, err
	}
	err := askMeta(c)
	if closed(err) {
		if _, err := Version(c); err != nil {
			return false, err
		}
		err = askMeta(c)
	}
	switch {
	case err == nil:
		c.SetMeta()
		return true, nil
	case closed(err), err == errRefused:
		server.MetaRefused.Store(true)
		return false, nil
	}
	return false, err
}

// errRefused means that the server does not speak the meta protocol, or another
// one than ours.
var errRefused = errors.New("no meta protocol")

// closed reports whether the server ended the connection.
func closed(err error) bool {
	var at *pool.Error
	return errors.As(err, &at) &&
		(errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE))
}

// askMeta asks for the version and for nothing. That the server closes the
// connection is an answer, not a failure of its.
func askMeta(c *pool.Conn) error {
	c.MayClose = true
	defer func() { c.MayClose = false }()
	version := ""
	return do(c, func(x *exchange) error {
		_, err := x.run(2, 2, func(i int) error {
			x.out = append(x.out, [...]string{"version\r\n", "mn\r\n"}[i]...)
			return nil
		}, func(i int) (err error) {
			if i == 0 {
				version, err = x.version()
				return err
			}
			line, err := protocol.Line(x.r)
			if err != nil {
				return err
			}
			m, err := protocol.ParseMeta(line)
			var reply *protocol.ReplyError
			switch {
			case errors.As(err, &reply) && !reply.InStep():
				return errRefused
			case err != nil:
				return err
			case m.Code != "MN" || beforeMeta(version):
				return errRefused
			}
			return nil
		})
		return err
	})
}

// beforeMeta reports whether a memcached is older than 1.6.10, before which its
// meta commands had another form.
func beforeMeta(version string) bool {
	var minor, patch int
	n, _ := fmt.Sscanf(version, "1.%d.%d", &minor, &patch)
	return n == 2 && (minor < 6 || minor == 6 && patch < 10)
}

// metaRun sends n meta commands and hands the first line of each reply to read.
func metaRun(c *pool.Conn, n int, write func(x *exchange, i int) error, read func(x *exchange, i int, m protocol.Meta) error) error {
	return do(c, func(x *exchange) error {
		_, err := x.run(n, shortWindow, func(i int) error {
			return write(x, i)
		}, func(i int) error {
			line, err := protocol.Line(x.r)
			if err != nil {
				return err
			}
			m, err := protocol.ParseMeta(line)
			if err != nil {
				return err
			}
			return read(x, i, m)
		})
		return err
	})
}

// Exists calls found for each of keys that the server holds, without fetching a
// value.
func Exists(c *pool.Conn, keys []string, found func(i int)) error {
	return metaRun(c, len(keys), func(x *exchange, i int) error {
		x.out = append(x.out, "mg "...)
		x.out = append(x.out, keys[i]...)
		x.out = append(x.out, "\r\n"...)
		return nil
	}, func(_ *exchange, i int, m protocol.Meta) error {
		switch m.Code {
		case "HD":
			found(i)
		case "EN":
		default:
			return protocol.ErrUnexpected
		}
		return nil
	})
}

// Found is an item with all that the server knows of it.
type Found struct {
	Value []byte
	Flags uint32
	CAS   uint64
	TTL   int64 // seconds, -1 for none
}

// Fetch gets an item with its flags, CAS number and TTL; nil for a miss.
func Fetch(c *pool.Conn, key string) (found *Found, err error) {
	err = metaRun(c, 1, func(x *exchange, _ int) error {
		x.out = append(append(append(x.out, "mg "...), key...), " t c f v\r\n"...)
		return nil
	}, func(x *exchange, _ int, m protocol.Meta) error {
		switch m.Code {
		case "EN":
			return nil
		case "VA":
		default:
			return protocol.ErrUnexpected
		}
		value, err := protocol.Data(x.r, m.Size, nil)
		found = &Found{value, m.Flags, m.CAS, m.TTL}
		return err
	})
	return found, err
}

// TTL returns the seconds that key has left, -1 for no expiry; ok is false for a
// miss. It does not count as a use of the item.
func TTL(c *pool.Conn, key string) (ttl int64, ok bool, err error) {
	err = metaRun(c, 1, func(x *exchange, _ int) error {
		x.out = append(append(append(x.out, "mg "...), key...), " t u\r\n"...)
		return nil
	}, func(_ *exchange, _ int, m protocol.Meta) error {
		switch m.Code {
		case "EN":
		case "HD":
			ttl, ok = m.TTL, true
		default:
			return protocol.ErrUnexpected
		}
		return nil
	})
	return ttl, ok, err
}

// Touch gives key another TTL and returns its CAS number; ok is false for a
// miss.
func Touch(c *pool.Conn, key string, expiration int32) (cas uint64, ok bool, err error) {
	err = metaRun(c, 1, func(x *exchange, _ int) error {
		x.out = append(append(append(x.out, "mg "...), key...), " c T"...)
		x.out = append(strconv.AppendInt(x.out, int64(expiration), 10), "\r\n"...)
		return nil
	}, func(_ *exchange, _ int, m protocol.Meta) error {
		switch m.Code {
		case "EN":
		case "HD":
			cas, ok = m.CAS, true
		default:
			return protocol.ErrUnexpected
		}
		return nil
	})
	return cas, ok, err
}

// Revision is one of the values that a key has had.
type Revision struct {
	Key string
	CAS uint64
}

// DeleteRevisions removes those of revisions that their keys still have.
func DeleteRevisions(c *pool.Conn, revisions []Revision) error {
	return metaRun(c, len(revisions), func(x *exchange, i int) error {
		x.out = append(append(append(x.out, "md "...), revisions[i].Key...), " C"...)
		x.out = append(strconv.AppendUint(x.out, revisions[i].CAS, 10), "\r\n"...)
		return nil
	}, func(_ *exchange, _ int, m protocol.Meta) error {
		switch m.Code {
		case "HD", "NF", "EX":
			return nil
		}
		return protocol.ErrUnexpected
	})
}

// Mode is the M flag of a meta set.
type Mode byte

const (
	ModeSet     Mode = 'S'
	ModeAdd     Mode = 'E'
	ModeReplace Mode = 'R'
)

// Store is a meta set.
type Store struct {
	Item
	Flags      uint32
	Expiration int32
	Mode       Mode
	CAS        uint64 // compared if not 0
}

// Outcome is what became of a Store.
type Outcome struct {
	Code string // "HD" stored, "NS" not stored, "EX" changed meanwhile, "NF" absent, "" refused
	CAS  uint64 // of the stored value
	Err  error  // the refusal
}

// StoreAll does a meta set for each of stores and returns their outcomes in
// their order, as many as were answered.
func StoreAll(c *pool.Conn, stores []Store) (outcomes []Outcome, err error) {
	outcomes = make([]Outcome, 0, len(stores))
	err = do(c, func(x *exchange) error {
		_, err := x.run(len(stores), shortWindow, func(i int) error {
			return x.store(&stores[i])
		}, func(i int) error {
			line, err := protocol.Line(x.r)
			if err != nil {
				return err
			}
			m, err := protocol.ParseMeta(line)
			if err != nil && !refusal(err) {
				return err
			}
			outcomes = append(outcomes, Outcome{m.Code, m.CAS, err})
			return nil
		})
		return err
	})
	return outcomes, err
}

func (x *exchange) store(s *Store) error {
	x.out = append(append(append(x.out, "ms "...), s.Key...), ' ')
	x.out = strconv.AppendInt(x.out, int64(len(s.Value)), 10)
	x.out = strconv.AppendInt(append(x.out, " c T"...), int64(s.Expiration), 10)
	if s.Flags != 0 {
		x.out = strconv.AppendUint(append(x.out, " F"...), uint64(s.Flags), 10)
	}
	if s.CAS != 0 {
		x.out = strconv.AppendUint(append(x.out, " C"...), s.CAS, 10)
	}
	if s.Mode != ModeSet {
		x.out = append(x.out, " M"...)
		x.out = append(x.out, byte(s.Mode))
	}
	x.out = append(x.out, "\r\n"...)
	return x.data(s.Value)
}

// ErrNoClock means that the clock that a key lives by cannot be read: a proxy
// answers for the server.
var ErrNoClock = errors.New("the server's clock cannot be read")

// ticks is how often Death tries anew because the clock ticked meanwhile, which
// it does once a second.
const ticks = 5

// Death returns the Unix time, by the server's clock, at which key expires; -1
// for one that does not, and 0 for one that is absent.
//
// The server tells its clock in its statistics and a key's TTL by mg, both in
// whole seconds. TTLs that are the same before and behind the statistics were
// read in the same second as they.
func Death(c *pool.Conn, key string) (int64, error) {
	for range ticks {
		var before, behind, clock int64
		err := do(c, func(x *exchange) error {
			_, err := x.run(3, 3, func(i int) error {
				if i == 1 {
					x.out = append(x.out, "stats\r\n"...)
				} else {
					x.out = append(append(append(x.out, "mg "...), key...), " t u\r\n"...)
				}
				return nil
			}, func(i int) (err error) {
				switch i {
				case 0:
					before, err = x.ttl()
				case 1:
					clock, err = x.clock()
				case 2:
					behind, err = x.ttl()
				}
				return err
			})
			return err
		})
		switch {
		case err != nil:
			return 0, err
		case before == 0 || behind == 0:
			return 0, nil
		case before < 0 || behind < 0:
			return -1, nil
		case clock == 0:
			return 0, ErrNoClock
		case before == behind:
			return clock + before, nil
		}
	}
	return 0, ErrNoClock
}

// ttl reads the reply to "mg <key> t": 0 for a miss.
func (x *exchange) ttl() (int64, error) {
	line, err := protocol.Line(x.r)
	if err != nil {
		return 0, err
	}
	m, err := protocol.ParseMeta(line)
	if err != nil || m.Code == "EN" {
		return 0, err
	}
	if m.Code != "HD" {
		return 0, protocol.ErrUnexpected
	}
	return m.TTL, nil
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
			if refusal(err) {
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
