package pipeline

import (
	"strconv"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// Item is a value to store.
type Item struct {
	Key   string
	Value []byte
}

// Expiration is an expiration time (protocol.txt, "Expiration times") on a
// server with the meta protocol, and on one without.
type Expiration struct{ Meta, Classic int32 }

// Mode is the M flag of a meta set; 0 is a plain set.
type Mode byte

const (
	ModeAdd     Mode = 'E'
	ModeReplace Mode = 'R'
)

// Set is a storage command (protocol.txt, "Storage commands" and "Meta Set").
type Set struct {
	Item
	Flags      uint32
	Expiration Expiration
	Mode       Mode
	CAS        uint64 // compared unless 0; not together with a Mode
}

// Status is what became of a Set.
type Status int

const (
	StatusRefused   Status = iota // with SetResult.Err
	StatusStored                  // by any Set
	StatusNotStored               // by one with a Mode or a CAS number
	StatusExists                  // changed meanwhile, by one with a CAS number
	StatusNotFound                // by one with a CAS number
)

// SetResult is the answer to a Set.
type SetResult struct {
	Status Status
	CAS    uint64 // of the stored value; 0 where the server does not tell it
	Err    error  // the refusal
}

// SetAll does sets and calls answered for each that has its answer, as soon as it
// has come, in their order.
func SetAll(c *pool.Conn, sets []Set, answered func(i int, r SetResult)) error {
	return do(c, func(x *exchange) error {
		_, err := x.setAll(sets, answered)
		return err
	})
}

// Store does one Set by the classic command: a meta set that is refused removes the value
// that is there, whatever its mode.
func Store(c *pool.Conn, s Set) (r SetResult, err error) {
	err = do(c, func(x *exchange) error {
		if err := x.set(&s); err != nil {
			return err
		}
		if err := x.flush(); err != nil {
			return err
		}
		r, err = x.setResult(&s, (*Set).ClassicResult)
		return err
	})
	return r, err
}

// setAll returns how many answers there were.
func (x *exchange) setAll(sets []Set, answered func(i int, r SetResult)) (int, error) {
	write, result := x.set, (*Set).ClassicResult
	if x.conn.Meta() {
		write, result = func(s *Set) error { return x.metaSet(s, " c") }, (*Set).metaLine
	}
	return x.run(len(sets), shortWindow, func(i int) error {
		return write(&sets[i])
	}, func(i int) error {
		r, err := x.setResult(&sets[i], result)
		if err == nil {
			answered(i, r)
		}
		return err
	})
}

// setResult reads the reply to s.
func (x *exchange) setResult(s *Set, result func(*Set, []byte) (SetResult, error)) (r SetResult, err error) {
	line, err := protocol.Line(x.r)
	if err != nil {
		return r, err
	}
	r, err = result(s, line)
	if x.refusal(err) {
		r.Err, err = err, nil
	}
	return r, err
}

// has reports whether s can have that answer: what a broken proxy did not store
// must not pass for stored.
func (s *Set) has(status Status) bool {
	switch status {
	case StatusNotStored:
		return s.Mode != 0 || s.CAS != 0
	case StatusExists, StatusNotFound:
		return s.CAS != 0
	}
	return true
}

var (
	metaStatuses = map[string]Status{
		"HD": StatusStored, "NS": StatusNotStored, "EX": StatusExists, "NF": StatusNotFound,
	}
	classicStatuses = map[string]Status{
		"STORED": StatusStored, "NOT_STORED": StatusNotStored, "EXISTS": StatusExists, "NOT_FOUND": StatusNotFound,
	}
)

// MetaResult reads the reply to a meta set.
func (s *Set) MetaResult(m protocol.Meta) (SetResult, error) {
	status, ok := metaStatuses[m.Code]
	if !ok || !s.has(status) {
		return SetResult{}, protocol.ErrUnexpected
	}
	return SetResult{Status: status, CAS: m.CAS}, nil
}

func (s *Set) metaLine(line []byte) (SetResult, error) {
	m, err := protocol.ParseMeta(line)
	if err != nil {
		return SetResult{}, err
	}
	return s.MetaResult(m)
}

// ClassicResult reads the reply to a classic command.
func (s *Set) ClassicResult(line []byte) (SetResult, error) {
	status, ok := classicStatuses[string(line)]
	switch {
	case !ok:
		return SetResult{}, protocol.LineError(line)
	case !s.has(status):
		return SetResult{}, protocol.ErrUnexpected
	}
	return SetResult{Status: status}, nil
}

// metaSet appends s as a meta set, with flags beside those that it needs itself.
func (x *exchange) metaSet(s *Set, flags string) error {
	x.out = s.AppendMeta(x.out)
	x.line(flags)
	return x.data(s.Value)
}

// set appends s as a classic command.
func (x *exchange) set(s *Set) error {
	x.out = s.AppendClassic(x.out)
	x.line()
	return x.data(s.Value)
}

// AppendMeta appends the line of a meta set, but for its end.
func (s *Set) AppendMeta(b []byte) []byte {
	b = append(append(append(b, "ms "...), s.Key...), ' ')
	b = strconv.AppendInt(b, int64(len(s.Value)), 10)
	b = strconv.AppendInt(append(b, " T"...), int64(s.Expiration.Meta), 10)
	if s.Flags != 0 {
		b = strconv.AppendUint(append(b, " F"...), uint64(s.Flags), 10)
	}
	if s.CAS != 0 {
		b = strconv.AppendUint(append(b, " C"...), s.CAS, 10)
	}
	if s.Mode != 0 {
		b = append(b, ' ', 'M', byte(s.Mode))
	}
	return b
}

// AppendClassic appends the line of a classic command, but for its end.
func (s *Set) AppendClassic(b []byte) []byte {
	verb := "set "
	switch {
	case s.CAS != 0:
		verb = "cas "
	case s.Mode == ModeAdd:
		verb = "add "
	case s.Mode == ModeReplace:
		verb = "replace "
	}
	b = append(append(append(b, verb...), s.Key...), ' ')
	b = append(strconv.AppendUint(b, uint64(s.Flags), 10), ' ')
	b = append(strconv.AppendInt(b, int64(s.Expiration.Classic), 10), ' ')
	b = strconv.AppendInt(b, int64(len(s.Value)), 10)
	if s.CAS != 0 {
		b = strconv.AppendUint(append(b, ' '), s.CAS, 10)
	}
	return b
}
