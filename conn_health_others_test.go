package memcacheddriver_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// Not parallel: it measures time.
func TestHealthOtherServersDoNotNotice(t *testing.T) {
	well, hung := memcachedtest.Start(t), memcachedtest.Start(t)
	db := connOpen(t, well.Addr()+","+hung.Addr(), memcacheddriver.WithTimeout(200*time.Millisecond))
	var wellKey, hungKey string
	for i := 0; wellKey == "" || hungKey == ""; i++ {
		key := fmt.Sprint("k", i)
		require.NoError(t, db.Set(context.Background(), key, []byte("v"), 0))
		if well.Stats(t)["curr_items"] != "0" && wellKey == "" {
			wellKey = key
		}
		if hung.Stats(t)["curr_items"] != "0" && hungKey == "" {
			hungKey = key
		}
	}
	median := func() time.Duration {
		var took []time.Duration
		for range 300 {
			start := time.Now()
			_, err := db.Get(context.Background(), wellKey)
			require.NoError(t, err)
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		return took[len(took)/2]
	}
	for range 4 { // a busy machine gets another chance
		before := median()
		hung.Stop()
		stop := make(chan struct{})
		var callers sync.WaitGroup
		for range 4 {
			callers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						_, _ = db.Get(context.Background(), hungKey)
						time.Sleep(time.Millisecond)
					}
				}
			})
		}
		during := median() // first into timeouts, then while it is down
		connPoll(t, "the other one is down", func() bool { return db.Stats()[1].State != memcacheddriver.ServerUp })
		during = max(during, median())
		close(stop)
		callers.Wait()
		hung.Cont()
		if during < 3*before+time.Millisecond {
			return
		}
		t.Logf("median %v, with a hung server beside it %v", before, during)
		connPoll(t, "it comes back", func() bool {
			_, err := db.Get(context.Background(), hungKey)
			return err == nil
		})
	}
	t.Error("a hung server slows down the others")
}

// A batch serves what the other servers hold.
func TestHealthBatchBesideADownServer(t *testing.T) {
	t.Parallel()
	well, dead := memcachedtest.Start(t), memcachedtest.Start(t)
	db := connOpen(t, well.Addr()+","+dead.Addr())
	pairs := make(map[string][]byte)
	var keys []string
	for i := range 40 {
		keys = append(keys, fmt.Sprint("k", i))
		pairs[keys[i]] = []byte(keys[i])
	}
	require.NoError(t, db.MSet(context.Background(), pairs, 0))
	dead.Kill()
	time.Sleep(connRest)
	for i := range 6 {
		values, err := db.MGet(context.Background(), keys)
		require.Error(t, err)
		require.Equal(t, i >= 3, errors.Is(err, memcacheddriver.ErrServerDown), "%v", err)
		var op *memcacheddriver.OpError
		require.ErrorAs(t, err, &op)
		require.Equal(t, dead.Addr(), op.Server)
		for j, v := range values {
			require.Equal(t, v == nil, slices.Contains(op.Keys, keys[j]))
		}
	}
	require.Equal(t, memcacheddriver.ServerUp, db.Stats()[0].State)
	require.Equal(t, memcacheddriver.ServerDown, db.Stats()[1].State)
}
