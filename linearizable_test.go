package memcacheddriver_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
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

// history records operations of several clients.
type history struct {
	start time.Time
	mu    sync.Mutex
	ops   []porcupine.Operation
}

func (h *history) now() int64 { return int64(time.Since(h.start)) }

// add records an operation that was called at call and has just returned. One
// that only would have read, and failed, tells nothing.
func (h *history) add(client int, call int64, op registerOp, r registerResult) {
	end := h.now()
	if r.unknown {
		if op.name == "get" {
			return
		}
		end = math.MaxInt64
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: op, Call: call, Output: r, Return: end})
}

// randomCalls makes n random calls on keys, of which some are cut off, and records
// them.
func (h *history) randomCalls(t *testing.T, db *memcacheddriver.MemcachedDB, client, n int, keys []string, rnd *rand.Rand) (cut int) {
	took := 200 * time.Microsecond // by the last call that was not cut
	for i := range n {
		ctx, cancel := t.Context(), context.CancelFunc(func() {})
		if rnd.IntN(5) == 0 {
			ctx, cancel = context.WithTimeout(ctx, time.Duration(rnd.Int64N(int64(2*took))))
		}
		key := keys[rnd.IntN(len(keys))]
		value := fmt.Sprintf("%d-%d", client, i)
		// Some values are written and read in several pieces.
		if rnd.IntN(10) == 0 {
			value += fmt.Sprintf("-%0*d", 10_000, i)
		}
		call := h.now()
		var err error
		switch rnd.IntN(8) {
		case 0, 1:
			var v []byte
			v, err = db.Get(ctx, key)
			r := registerResult{found: err == nil, value: string(v)}
			if err == kv.ErrNotFound {
				err = nil
			}
			r.unknown = err != nil
			h.add(client, call, registerOp{name: "get", key: key}, r)
		case 2, 3:
			err = db.Set(ctx, key, []byte(value), 0)
			h.add(client, call, registerOp{name: "set", key: key, value: value}, registerResult{unknown: err != nil})
		case 4:
			var ok bool
			ok, err = db.SetNX(ctx, key, []byte(value), 0)
			h.add(client, call, registerOp{name: "setnx", key: key, value: value}, registerResult{found: ok, unknown: err != nil})
		case 5:
			var ok bool
			ok, err = db.SetXX(ctx, key, []byte(value), 0)
			h.add(client, call, registerOp{name: "setxx", key: key, value: value}, registerResult{found: ok, unknown: err != nil})
		case 6:
			var deleted int64
			deleted, err = db.Delete(ctx, key)
			h.add(client, call, registerOp{name: "delete", key: key}, registerResult{found: deleted == 1, unknown: err != nil})
		case 7:
			err = h.swap(ctx, db, client, call, key, value)
		}
		cancel()
		switch {
		case err == nil:
			took = max(time.Duration(h.now()-call), 50*time.Microsecond)
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil:
			cut++
		default:
			t.Error(err)
			return cut
		}
	}
	return cut
}

// swap is two operations: the read that update is called with, and the swap of
// that value.
func (h *history) swap(ctx context.Context, db *memcacheddriver.MemcachedDB, client int, call int64, key, value string) error {
	was, called, swapping := "", false, int64(0)
	err := db.CompareAndSwap(ctx, key, func(current []byte) ([]byte, error) {
		was, called = string(current), true
		h.add(client, call, registerOp{name: "get", key: key}, registerResult{found: true, value: was})
		swapping = h.now()
		return []byte(value), nil
	})
	op := registerOp{name: "swap", key: key, value: value, was: was}
	switch {
	case !called && err == kv.ErrNotFound:
		h.add(client, call, registerOp{name: "get", key: key}, registerResult{})
		return nil
	case !called:
		return err // nothing was read, and nothing written
	case err == nil:
		h.add(client, swapping, op, registerResult{found: true})
	case errors.Is(err, kv.ErrConflict):
		h.add(client, swapping, op, registerResult{})
		return nil
	case err == kv.ErrNotFound:
		h.add(client, swapping, op, registerResult{absent: true})
		return nil
	default:
		h.add(client, swapping, op, registerResult{unknown: true})
	}
	return err
}

// linearizableFor makes histories of 3 drivers for a time, each on keys of its
// own, since what is cut off stays a possibility to the end of its history.
func linearizableFor(t *testing.T, d time.Duration) {
	const drivers, clients, keysOfRound, callsOfClient = 3, 6, 6, 50
	addr := memcachedtest.Start(t).Addr()
	var dbs []*memcacheddriver.MemcachedDB
	for range drivers {
		dbs = append(dbs, batchDB(t, addr))
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	operations, cut, unknown := 0, 0, 0
	for round, deadline := 0, time.Now().Add(d); time.Now().Before(deadline) || operations < 3000; round++ {
		h := &history{start: time.Now()}
		keys := batchKeys(fmt.Sprint("round-", round), keysOfRound)
		cuts := make([]int, clients)
		var all sync.WaitGroup
		for c := range clients {
			all.Go(func() {
				rnd := rand.New(rand.NewPCG(seed+uint64(round), uint64(c)))
				cuts[c] = h.randomCalls(t, dbs[c%drivers], c, callsOfClient, keys, rnd)
			})
		}
		all.Wait()
		if t.Failed() {
			return
		}
		result, info := porcupine.CheckOperationsVerbose(registerModel, h.ops, time.Minute)
		if result != porcupine.Ok {
			path := ""
			if f, err := os.CreateTemp("", "history-*.html"); err == nil {
				_ = porcupine.Visualize(registerModel, info, f)
				path = f.Name()
				f.Close()
			}
			t.Fatalf("round %d: %s: the history is in %s", round, result, path)
		}
		operations += len(h.ops)
		for _, op := range h.ops {
			if op.Output.(registerResult).unknown {
				unknown++
			}
		}
		for _, n := range cuts {
			cut += n
		}
	}
	t.Logf("%d operations, %d calls were cut, of %d writes the outcome is not known", operations, cut, unknown)
	assert.NotZero(t, unknown, "no write was cut")
}

func TestLinearizable(t *testing.T) {
	t.Parallel()
	linearizableFor(t, 4*time.Second)
}

func TestSoakLinearizable(t *testing.T) {
	t.Parallel()
	linearizableFor(t, soakTime(t))
}

// soakTime is how long a soak test runs: for MEMCACHED_SOAK, and only for a
// moment where that is not set.
func soakTime(t *testing.T) time.Duration {
	t.Helper()
	s := os.Getenv("MEMCACHED_SOAK")
	if s == "" {
		return 100 * time.Millisecond
	}
	d, err := time.ParseDuration(s)
	require.NoError(t, err, "MEMCACHED_SOAK")
	return d
}

// TestCheckerRefusesBrokenHistories: what is shown to the checker above would
// count for nothing if it took everything.
func TestCheckerRefusesBrokenHistories(t *testing.T) {
	t.Parallel()
	at := int64(0)
	// done is an operation behind all others.
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
	db := batchDB(t, memcachedtest.Start(t).Addr())
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
