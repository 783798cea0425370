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

// setAll returns how many answers there were.
func (x *exchange) setAll(sets []Set, answered func(i int, r SetResult)) (int, error) {
	write, status := x.set, classicStatus
	if x.conn.Meta() {
		write, status = func(s *Set) error { return x.metaSet(s, " c") }, metaStatus
	}
	return x.run(len(sets), shortWindow, func(i int) error {
		return write(&sets[i])
	}, func(i int) error {
		r, err := x.setResult(&sets[i], status)
		if err == nil {
			answered(i, r)
		}
		return err
	})
}

// setResult reads the reply to s.
func (x *exchange) setResult(s *Set, status func(line []byte) (SetResult, error)) (r SetResult, err error) {
	line, err := protocol.Line(x.r)
	if err != nil {
		return r, err
	}
	r, err = status(line)
	switch {
	case x.refusal(err):
		r.Err, err = err, nil
	case err == nil && !s.has(r.Status):
		err = protocol.ErrUnexpected
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

func metaStatus(line []byte) (r SetResult, err error) {
	m, err := protocol.ParseMeta(line)
	if err != nil {
		return r, err
	}
	status, ok := metaStatuses[m.Code]
	if !ok {
		return r, protocol.ErrUnexpected
	}
	return SetResult{Status: status, CAS: m.CAS}, nil
}

func classicStatus(line []byte) (r SetResult, err error) {
	status, ok := classicStatuses[string(line)]
	if !ok {
		return r, protocol.LineError(line)
	}
	return SetResult{Status: status}, nil
}

// metaSet appends s as a meta set, with flags beside those that it needs itself.
func (x *exchange) metaSet(s *Set, flags string) error {
	x.out = append(append(append(x.out, "ms "...), s.Key...), ' ')
	x.out = strconv.AppendInt(x.out, int64(len(s.Value)), 10)
	x.out = strconv.AppendInt(append(x.out, " T"...), int64(s.Expiration.Meta), 10)
	if s.Flags != 0 {
		x.out = strconv.AppendUint(append(x.out, " F"...), uint64(s.Flags), 10)
	}
	if s.CAS != 0 {
		x.out = strconv.AppendUint(append(x.out, " C"...), s.CAS, 10)
	}
	if s.Mode != 0 {
		x.out = append(x.out, ' ', 'M', byte(s.Mode))
	}
	x.line(flags)
	return x.data(s.Value)
}

// set appends s as a classic command.
func (x *exchange) set(s *Set) error {
	verb := "set "
	switch {
	case s.CAS != 0:
		verb = "cas "
	case s.Mode == ModeAdd:
		verb = "add "
	case s.Mode == ModeReplace:
		verb = "replace "
	}
	x.out = append(append(append(x.out, verb...), s.Key...), ' ')
	x.out = append(strconv.AppendUint(x.out, uint64(s.Flags), 10), ' ')
	x.out = append(strconv.AppendInt(x.out, int64(s.Expiration.Classic), 10), ' ')
	x.out = strconv.AppendInt(x.out, int64(len(s.Value)), 10)
	if s.CAS != 0 {
		x.out = strconv.AppendUint(append(x.out, ' '), s.CAS, 10)
	}
	x.line()
	return x.data(s.Value)
}
