package systemtest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/stretchr/testify/assert"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

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
		dbs = append(dbs, drivertest.Open(t, addr))
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	operations, cut, unknown := 0, 0, 0
	for round, deadline := 0, time.Now().Add(d); time.Now().Before(deadline) || operations < 3000; round++ {
		h := &history{start: time.Now()}
		keys := drivertest.Keys(keysOfRound)
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

func TestHistoriesAreLinearizable(t *testing.T) {
	t.Parallel()
	linearizableFor(t, 4*time.Second)
}

func TestSoakHistoriesAreLinearizable(t *testing.T) {
	t.Parallel()
	linearizableFor(t, drivertest.Soak(t))
}
