package systemtest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// registerOp is an operation on one key. No two writes of a history write the
// same value, so that equal values are the same write.
type registerOp struct {
	name  string // get, set, setnx, setxx, delete, swap
	key   string
	value string // written
	was   string // by swap: the value that it replaces
}

// registerResult is what an operation returned.
type registerResult struct {
	found   bool   // get: a hit; setnx, setxx, delete, swap: done
	value   string // get: the value
	absent  bool   // swap: the key was not there
	unknown bool   // the call failed: a write may happen any time after its call, or never
}

// absent is the state of a key that is not there; no value is empty.
const absent = ""

// registerModel is what a key is to one who knows nothing of connections. A
// write whose outcome is not known has an end in eternity, so that the checker
// may place it there, where nobody sees it: as if it had never happened.
var registerModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		byKey := make(map[string][]porcupine.Operation)
		for _, op := range history {
			key := op.Input.(registerOp).key
			byKey[key] = append(byKey[key], op)
		}
		for _, part := range byKey {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return absent },
	Step: func(state, input, output any) (bool, any) {
		s, op, r := state.(string), input.(registerOp), output.(registerResult)
		there := s != absent
		switch op.name {
		case "get":
			if there {
				return r.found && r.value == s, s
			}
			return !r.found, s
		case "set":
			return true, op.value
		case "setnx":
			if there {
				return r.unknown || !r.found, s
			}
			return r.unknown || r.found, op.value
		case "setxx":
			if !there {
				return r.unknown || !r.found, s
			}
			return r.unknown || r.found, op.value
		case "delete":
			return r.unknown || r.found == there, absent
		case "swap":
			switch {
			case !there:
				return r.unknown || r.absent, s
			case s != op.was: // a conflict
				return r.unknown || !r.found && !r.absent, s
			}
			return r.unknown || r.found, op.value
		}
		panic(op.name)
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v: %+v", input, output) },
}

// What is shown to the checker would count for nothing if it took everything.
func TestCheckerRefusesBrokenHistories(t *testing.T) {
	t.Parallel()
	at := int64(0)
	// done is an operation after all others.
	done := func(op registerOp, r registerResult) porcupine.Operation {
		op.key = "k"
		at += 10
		return porcupine.Operation{Input: op, Call: at, Output: r, Return: at + 5}
	}
	lost := func(op registerOp) porcupine.Operation {
		o := done(op, registerResult{unknown: true})
		o.Return = math.MaxInt64
		return o
	}
	get := func(value string) porcupine.Operation {
		return done(registerOp{name: "get"}, registerResult{found: value != absent, value: value})
	}
	set := func(value string) porcupine.Operation {
		return done(registerOp{name: "set", value: value}, registerResult{})
	}
	swap := func(was, value string, r registerResult) porcupine.Operation {
		return done(registerOp{name: "swap", was: was, value: value}, r)
	}
	ok, no := registerResult{found: true}, registerResult{}
	for name, c := range map[string]struct {
		ops  []porcupine.Operation
		want bool
	}{
		"in order":                     {[]porcupine.Operation{get(absent), set("1"), get("1"), set("2"), get("2")}, true},
		"a stale value":                {[]porcupine.Operation{set("1"), set("2"), get("1")}, false},
		"a value of nowhere":           {[]porcupine.Operation{set("1"), get("2")}, false},
		"a false miss":                 {[]porcupine.Operation{set("1"), get(absent)}, false},
		"a value after its deletion":   {[]porcupine.Operation{set("1"), done(registerOp{name: "delete"}, ok), get("1")}, false},
		"a deletion of nothing":        {[]porcupine.Operation{done(registerOp{name: "delete"}, ok)}, false},
		"a deletion that did nothing":  {[]porcupine.Operation{set("1"), done(registerOp{name: "delete"}, no)}, false},
		"two winners of SetNX":         {[]porcupine.Operation{done(registerOp{name: "setnx", value: "1"}, ok), done(registerOp{name: "setnx", value: "2"}, ok)}, false},
		"no winner of SetNX":           {[]porcupine.Operation{done(registerOp{name: "setnx", value: "1"}, no)}, false},
		"SetXX of nothing":             {[]porcupine.Operation{done(registerOp{name: "setxx", value: "1"}, ok)}, false},
		"SetXX refused":                {[]porcupine.Operation{set("1"), done(registerOp{name: "setxx", value: "2"}, no)}, false},
		"a lost update":                {[]porcupine.Operation{set("1"), swap("1", "2", ok), swap("1", "3", ok)}, false},
		"a conflict with nobody":       {[]porcupine.Operation{set("1"), swap("1", "2", no)}, false},
		"absent, but it is there":      {[]porcupine.Operation{set("1"), swap("1", "2", registerResult{absent: true})}, false},
		"a swap":                       {[]porcupine.Operation{set("1"), swap("1", "2", ok), swap("1", "3", no), get("2")}, true},
		"a lost write that was none":   {[]porcupine.Operation{set("1"), lost(registerOp{name: "set", value: "2"}), get("1"), get("1")}, true},
		"a lost write, late":           {[]porcupine.Operation{set("1"), lost(registerOp{name: "set", value: "2"}), get("1"), get("2")}, true},
		"a lost write, twice":          {[]porcupine.Operation{lost(registerOp{name: "set", value: "2"}), get("2"), set("1"), get("1"), get("2")}, false},
		"a lost write before its call": {[]porcupine.Operation{set("1"), get("2"), lost(registerOp{name: "set", value: "2"})}, false},
		"a lost swap":                  {[]porcupine.Operation{set("1"), done(registerOp{name: "swap", was: "1", value: "2"}, registerResult{unknown: true}), get("2")}, true},
		"a lost swap of another":       {[]porcupine.Operation{set("1"), done(registerOp{name: "swap", was: "0", value: "2"}, registerResult{unknown: true}), get("2")}, false},
	} {
		assert.Equal(t, c.want, porcupine.CheckOperations(registerModel, c.ops), name)
	}

	// A true history into which one reply of another time is mixed: what a client
	// that mixes up replies would record.
	db := drivertest.Open(t, memcachedtest.Start(t).Addr())
	h := &history{start: time.Now()}
	h.randomCalls(t, db, 0, 300, []string{"a", "b"}, rand.New(rand.NewPCG(1, 2)))
	require.True(t, porcupine.CheckOperations(registerModel, h.ops))
	broken := 0
	for i, op := range h.ops {
		r := op.Output.(registerResult)
		if op.Input.(registerOp).name != "get" || !r.found {
			continue
		}
		for _, earlier := range h.ops[:i] {
			if e := earlier.Output.(registerResult); e.found && e.value != "" && e.value != r.value {
				ops := slices.Clone(h.ops)
				ops[i].Output = registerResult{found: true, value: e.value}
				assert.False(t, porcupine.CheckOperations(registerModel, ops), "operation %d read %.20q, %.20q was taken", i, r.value, e.value)
				broken++
				break
			}
		}
	}
	assert.Greater(t, broken, 10)
}
