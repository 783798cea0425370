package systemtest

import (
	"context"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// Calls of all kinds from hundreds of goroutines, a third of them cut off at any point
// of their exchange: what every answer says must be possible. With MEMCACHED_SOAK set
// it is a million calls on one memcached.
func TestSoakNoReplyReachesAnotherCall(t *testing.T) {
	t.Parallel()
	long := os.Getenv("MEMCACHED_SOAK") != ""
	// A busy machine must not make a timeout of a wait.
	patient := []driver.Option{memcacheddriver.WithTimeout(drivertest.Never), driver.WithDialTimeout(drivertest.Never)}
	for _, server := range []struct {
		name        string
		callers     int
		calls, soak int // how many by default, and in a soak
		open        func(t *testing.T) *memcacheddriver.MemcachedDB
	}{
		{"memcached", 256, 30_000, 1_000_000, func(t *testing.T) *memcacheddriver.MemcachedDB {
			// No call waits for a connection, so that most are cut off on one.
			return drivertest.OpenAsked(t, startRoomy(t).Addr(), append(patient, memcacheddriver.WithMaxOpenConns(256))...)
		}},
		{"one thread", 256, 10_000, 100_000, func(t *testing.T) *memcacheddriver.MemcachedDB {
			return drivertest.OpenAsked(t, startRoomy(t, "-t", "1").Addr(), patient...)
		}},
		{"two servers", 16, 10_000, 100_000, func(t *testing.T) *memcacheddriver.MemcachedDB {
			return drivertest.OpenAsked(t, startRoomy(t).Addr()+","+startRoomy(t).Addr(), patient...)
		}},
		{"TLS", 256, 10_000, 100_000, func(t *testing.T) *memcacheddriver.MemcachedDB {
			server, config := memcachedtest.StartTLS(t, roomy...)
			return drivertest.OpenAsked(t, server.Addr(), append(patient, driver.WithTLSConfig(config))...)
		}},
		{"classic", 256, 10_000, 100_000, func(t *testing.T) *memcacheddriver.MemcachedDB {
			return drivertest.OpenAsked(t, memcachedtest.StartClassic(t, startRoomy(t).Addr()), patient...)
		}},
		{"twemproxy", 256, 10_000, 100_000, func(t *testing.T) *memcacheddriver.MemcachedDB {
			return drivertest.Open(t, drivertest.StartTwemproxy(t, []*memcachedtest.Server{startRoomy(t), startRoomy(t)}), patient...)
		}},
	} {
		t.Run(server.name, func(t *testing.T) {
			calls := server.calls
			if long {
				calls = server.soak
			}
			crosstalk(t, server.open(t), server.callers, calls)
		})
	}
}

// roomy lets a server forget nothing, as a lost value would be a fault.
var roomy = []string{"-m", "2048"}

func startRoomy(t *testing.T, args ...string) *memcachedtest.Server {
	return memcachedtest.Start(t, append(args, roomy...)...)
}

// crosstalk makes calls, and looks for a reply that reached another call.
func crosstalk(t *testing.T, db *memcacheddriver.MemcachedDB, callers, calls int) {
	run := newTalk(t, db, callers, calls)
	start := time.Now()
	var all sync.WaitGroup
	for _, c := range run.callers {
		all.Go(c.run)
	}
	all.Wait()

	done, cut := run.done.Load(), run.cut.Load()
	stats := db.Stats()
	var shared, dials uint64
	for _, s := range stats {
		shared += s.SharedCalls
		dials += s.Dials
		assert.Equal(t, memcacheddriver.ServerUp, s.State)
		assert.Zero(t, s.Timeouts)
		assert.Zero(t, s.DialErrors)
	}
	t.Logf("%d calls done, %d cut off, %d shared, %d dials, %v", done, cut, shared, dials, time.Since(start).Round(time.Second))
	if t.Failed() {
		return
	}
	assert.InDelta(t, 1/3.0, float64(cut)/float64(done+cut), 0.05, "about a third is cut off")
	assert.Greater(t, shared, uint64(done/50), "calls share links")
	drivertest.RequireIdle(t, db)
	run.checkAtRest()
}

// A reply that comes late, after its call was cut off, meets nobody.
func TestALateReplyReachesNoCall(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	db := drivertest.Open(t, server.Addr(), memcacheddriver.WithTTLQuery(), memcacheddriver.WithTimeout(drivertest.Never))
	bg := t.Context()
	key, other, absent := drivertest.Key(), drivertest.Key(), drivertest.Key()
	for _, call := range drivertest.Calls {
		if strings.Contains(call.Name, "under a second") {
			continue // the removal of the value is one more call, at any time
		}
		require.NoError(t, db.Set(bg, key, []byte("1"), 0))
		require.NoError(t, db.Set(bg, other, drivertest.Value(other), 0))
		dials := drivertest.Dials(db)
		server.Stop()
		ctx, cancel := context.WithTimeout(bg, 20*time.Millisecond)
		require.ErrorIs(t, call.Run(ctx, db, key), context.DeadlineExceeded, call.Name)
		cancel()
		server.Cont()
		require.Equal(t, dials, drivertest.Dials(db), "%s was cut off while it dialled", call.Name)
		for range 5 {
			value, err := db.Get(bg, other)
			require.NoError(t, err)
			require.Equal(t, string(drivertest.Value(other)), string(value), call.Name)
			values, err := db.MGet(bg, []string{absent, other})
			require.NoError(t, err)
			require.Equal(t, [][]byte{nil, drivertest.Value(other)}, values, call.Name)
		}
	}
}

// A server that says more than it was asked for must not be believed: the rest
// of a reply is no answer to the next call.
func TestWhatNobodyAskedForAnswersNoCall(t *testing.T) {
	t.Parallel()
	for name, get := range map[string]func(t *testing.T, db *memcacheddriver.MemcachedDB) ([]byte, error){
		"Get": func(t *testing.T, db *memcacheddriver.MemcachedDB) ([]byte, error) { return db.Get(t.Context(), "k") },
		"MGet": func(t *testing.T, db *memcacheddriver.MemcachedDB) ([]byte, error) {
			values, err := db.MGet(t.Context(), []string{"k", "l"})
			return values[0], err
		},
		"native": func(t *testing.T, db *memcacheddriver.MemcachedDB) ([]byte, error) {
			item, err := db.Client().Get("k")
			if err != nil {
				return nil, err
			}
			return item.Value, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var replies atomic.Int64
			reply := func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
				text := "VALUE k 0 5 1\r\nright\r\nEND\r\n"
				if replies.Add(1)%2 == 0 {
					text += "VALUE k 0 5 1\r\nwrong\r\nEND\r\n"
				}
				c.Say(text)
			}
			f := memcachedtest.StartFake(t, memcachedtest.Script{"get": reply, "gets": reply})
			db := drivertest.Open(t, f.Addr())
			right := 0
			for range 6 {
				value, err := get(t, db)
				if err == nil {
					require.Equal(t, "right", string(value))
					right++
				}
			}
			// A reply with too much after it may be refused as well.
			require.GreaterOrEqual(t, right, 3)
			require.EqualValues(t, 6, replies.Load())
		})
	}
}
