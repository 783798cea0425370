package pool_test

import (
	"io"
	"math"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestDownServerRefusesEveryCall(t *testing.T) {
	t.Parallel()
	server := memcachedtest.StartFake(t, nil)
	log := drivertest.NewLog()
	db := drivertest.Open(t, server.Addr(), driver.WithLogger(log), memcacheddriver.WithTTLQuery(),
		memcacheddriver.WithServerFailureLimit(4, drivertest.Never))
	server.Close()
	for range 4 {
		require.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
		err := db.Ping(t.Context())
		require.ErrorIs(t, err, syscall.ECONNREFUSED)
		require.NotErrorIs(t, err, memcacheddriver.ErrServerDown)
	}
	before := drivertest.ConnStats(db)
	require.Equal(t, memcacheddriver.ServerDown, before[0].State)
	require.EqualValues(t, 4, before[0].DialErrors)
	for _, call := range append(nativeCalls, drivertest.Calls...) {
		err := call.Run(t.Context(), db, "k")
		assert.ErrorIs(t, err, memcacheddriver.ErrServerDown, call.Name)
		assert.ErrorIs(t, err, syscall.ECONNREFUSED, call.Name)
		assert.ErrorContains(t, err, server.Addr(), call.Name)
	}
	require.Equal(t, before, drivertest.ConnStats(db), "a refused call dialled")
	log.Await(t, 1, "warn: ", "is down", server.Addr())
	require.Len(t, log.Lines(), 1)
}

func TestServerComesBackAfterTheRetryTimeout(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(addr string, opts ...driver.Option) *memcacheddriver.MemcachedDB{
		"by option": func(addr string, opts ...driver.Option) *memcacheddriver.MemcachedDB {
			return drivertest.Open(t, addr, append(opts, memcacheddriver.WithServerFailureLimit(4, 300*time.Millisecond))...)
		},
		"by DSN": func(addr string, opts ...driver.Option) *memcacheddriver.MemcachedDB {
			return drivertest.Open(t, addr+"?server_failure_limit=4&server_retry_timeout=300ms", opts...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, log := memcachedtest.StartFake(t, nil), drivertest.NewLog()
			db := open(server.Addr(), driver.WithLogger(log), memcacheddriver.WithTTLQuery())
			require.NoError(t, db.Ping(t.Context()))
			require.Empty(t, log.Lines(), "nothing is wrong")
			patient := drivertest.Open(t, server.Addr(), memcacheddriver.WithServerFailureLimit(1, time.Hour))
			server.Close()
			require.Error(t, patient.Ping(t.Context()))
			start := time.Now()
			for range 4 {
				require.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
				require.Error(t, db.Ping(t.Context()))
			}
			require.Equal(t, memcacheddriver.ServerDown, drivertest.Stat(t, db).State)
			memcachedtest.StartFakeOn(t, server.Addr(), nil)
			memcachedtest.Eventually(t, func() bool {
				_, err := db.Get(t.Context(), "k")
				if err != kv.ErrNotFound {
					require.ErrorIs(t, err, memcacheddriver.ErrServerDown)
				}
				return err == kv.ErrNotFound
			}, "a probe brings it back")
			require.GreaterOrEqual(t, time.Since(start), 300*time.Millisecond, "it was probed too early")
			require.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
			for _, call := range drivertest.Calls {
				require.NoError(t, call.Run(t.Context(), db, drivertest.Key()), call.Name)
			}
			log.Await(t, 1, "warn: ", "is down", server.Addr())
			log.Await(t, 1, "info: ", "is up again", server.Addr())
			require.Len(t, log.Lines(), 2)
			drivertest.RequireIdle(t, db)
			require.ErrorIs(t, patient.Ping(t.Context()), memcacheddriver.ErrServerDown, "the hour is not over")
		})
	}
}

// By default it takes three failures, and a success between them starts anew.
func TestServerIsDownAfterFailuresInARow(t *testing.T) {
	t.Parallel()
	server := memcachedtest.StartFake(t, nil)
	db := drivertest.Open(t, server.Addr())
	for range 3 {
		server.SetScript(memcachedtest.Script{"*": memcachedtest.HangUp})
		for range 2 {
			_, err := db.Get(t.Context(), "k")
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		}
		require.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
		server.SetScript(nil)
		_, err := db.Get(t.Context(), "k")
		require.Equal(t, kv.ErrNotFound, err)
	}
	server.SetScript(memcachedtest.Script{"*": memcachedtest.HangUp})
	for range 3 {
		_, err := db.Get(t.Context(), "k")
		require.ErrorIs(t, err, io.ErrUnexpectedEOF)
		require.NotErrorIs(t, err, memcacheddriver.ErrServerDown)
	}
	require.Equal(t, memcacheddriver.ServerDown, drivertest.Stat(t, db).State)
}

func TestTimeoutsAreFailures(t *testing.T) {
	t.Parallel()
	const d = 500 * time.Millisecond // much more than the dial's question takes
	for name, where := range map[string]struct {
		addr       string
		dialErrors uint64
	}{
		"of reading":  {memcachedtest.StartFake(t, hangsAfterDial).Addr(), 0},
		"of dialling": {memcachedtest.BlackHole(t), 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dial := drivertest.Never
			if where.dialErrors > 0 {
				dial = d
			}
			db := drivertest.Open(t, where.addr, memcacheddriver.WithTimeout(d), driver.WithDialTimeout(dial),
				memcacheddriver.WithServerFailureLimit(2, drivertest.Never))
			_, err := db.Get(t.Context(), "k")
			require.Error(t, err)
			require.Equal(t, memcacheddriver.ServerUp, drivertest.Stat(t, db).State)
			_, err = db.Client().Get("k")
			require.Error(t, err)
			s := drivertest.Stat(t, db)
			require.Equal(t, memcacheddriver.ServerDown, s.State)
			require.EqualValues(t, 2, s.Timeouts)
			require.Equal(t, where.dialErrors, s.DialErrors)
			require.Zero(t, s.Cancelled)
			drivertest.RequireIdle(t, db)
		})
	}
}

func TestFailureLimit0IsOff(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(addr string) *memcacheddriver.MemcachedDB{
		"by option": func(addr string) *memcacheddriver.MemcachedDB {
			return drivertest.Open(t, addr, memcacheddriver.WithServerFailureLimit(0, time.Hour))
		},
		"by DSN": func(addr string) *memcacheddriver.MemcachedDB {
			return drivertest.Open(t, addr+"?server_failure_limit=0")
		},
	} {
		server := memcachedtest.StartFake(t, nil)
		db := open(server.Addr())
		server.Close()
		for range 10 {
			_, err := db.Get(t.Context(), "k")
			require.ErrorIs(t, err, syscall.ECONNREFUSED, name)
			require.NotErrorIs(t, err, memcacheddriver.ErrServerDown, name)
		}
		require.EqualValues(t, 10, drivertest.Stat(t, db).DialErrors, name)
		memcachedtest.StartFakeOn(t, server.Addr(), nil)
		require.NoError(t, db.Ping(t.Context()), name)
	}
}

// Not parallel: it measures time.
func TestOtherServersDoNotNotice(t *testing.T) {
	servers, addrs := drivertest.StartServers(t, 2)
	keys := drivertest.KeysOf(t, addrs, 1)
	well, hung := keys[0][0], keys[1][0]
	db := drivertest.Open(t, strings.Join(addrs, ","), memcacheddriver.WithTimeout(drivertest.Never), driver.WithDialTimeout(drivertest.Never))
	require.NoError(t, db.MSet(t.Context(), map[string][]byte{well: nil, hung: nil}, 0))
	// The quickest of many is what a busy machine does not change.
	quickest := func() time.Duration {
		best := time.Duration(math.MaxInt64)
		for range 30 {
			start := time.Now()
			for range 10 {
				_, err := db.Get(t.Context(), well)
				require.NoError(t, err)
			}
			best = min(best, time.Since(start))
		}
		return best
	}
	before := quickest()
	servers[1].Stop()
	stop := make(chan struct{})
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
					_, _ = db.Get(t.Context(), hung)
				}
			}
		})
	}
	memcachedtest.Eventually(t, func() bool { return db.Stats()[1].Dials == 4 }, "all callers hang, one on the connection from before")
	during := quickest()
	assert.EqualValues(t, 4, db.Stats()[1].Dials, "a call did not hang")
	servers[1].Kill()
	memcachedtest.Eventually(t, func() bool { return db.Stats()[1].State == memcacheddriver.ServerDown }, "it is down")
	down := quickest()
	close(stop)
	callers.Wait()
	const noise = 10 * time.Millisecond
	assert.Less(t, during, 3*before+noise, "while calls to another server hang")
	assert.Less(t, down, 3*before+noise, "while another server is down")
}
