package link_test

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/link"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// everywhere runs a test with links to every kind of server.
func everywhere(t *testing.T, test func(t *testing.T, l *links)) {
	t.Run("meta", func(t *testing.T) { test(t, open(t, 2, memcachedtest.Addr(t))) })
	t.Run("classic", func(t *testing.T) { test(t, open(t, 2, memcachedtest.StartClassic(t, memcachedtest.Addr(t)))) })
	t.Run("Unix", func(t *testing.T) { test(t, open(t, 2, memcachedtest.StartUnix(t).Addr())) })
	t.Run("authentication", func(t *testing.T) {
		test(t, open(t, 2, memcachedtest.StartAuth(t, "user", "password").Addr(), func(c *pool.Config) { c.User, c.Password = "user", "password" }))
	})
	t.Run("TLS", func(t *testing.T) {
		server, config := memcachedtest.StartTLS(t)
		config.ServerName = "localhost"
		test(t, open(t, 2, server.Addr(), func(c *pool.Config) { c.TLS = config }))
	})
	t.Run("twemproxy", func(t *testing.T) {
		servers, _ := drivertest.StartServers(t, 2)
		test(t, open(t, 2, drivertest.StartTwemproxy(t, servers)))
	})
}

func TestAnswers(t *testing.T) {
	everywhere(t, func(t *testing.T, l *links) {
		each(32, func(int) {
			ctx, key := t.Context(), drivertest.Key()
			stores := func(mode pipeline.Mode, value string) bool {
				r, err := l.Set(ctx, &pipeline.Set{Item: pipeline.Item{Key: key, Value: []byte(value)}, Mode: mode}, false)
				assert.NoError(t, err)
				return r.Status == pipeline.StatusStored
			}
			touches := func(e int32) bool {
				_, ok, err := l.Touch(ctx, key, pipeline.Expiration{Meta: e, Classic: e})
				assert.NoError(t, err)
				return ok
			}
			is := func(want bool) func(bool, error) {
				return func(got bool, err error) {
					t.Helper()
					assert.NoError(t, err)
					assert.Equal(t, want, got)
				}
			}
			_, ok, err := l.Get(ctx, key)
			is(false)(ok, err)
			is(false)(l.Exists(ctx, key))
			is(false)(l.Delete(ctx, key))
			assert.False(t, touches(100))
			assert.False(t, stores(pipeline.ModeReplace, "no"))
			assert.True(t, stores(pipeline.ModeAdd, "added"))
			assert.False(t, stores(pipeline.ModeAdd, "no"))
			assert.True(t, stores(pipeline.ModeReplace, "replaced"))
			assert.Equal(t, "replaced", l.mustGet(t, key))
			assert.True(t, stores(0, ""))
			value, ok, err := l.Get(ctx, key)
			is(true)(ok, err)
			assert.NotNil(t, value, "an empty value is a hit")
			assert.Empty(t, value)
			is(true)(l.Exists(ctx, key))
			assert.True(t, touches(100))
			is(true)(l.Delete(ctx, key))
			is(false)(l.Exists(ctx, key))
		})
	})
}

// Every goroutine knows what its own key may hold, while a third of all calls is cut off.
func TestNoReplyIsAnothers(t *testing.T) {
	everywhere(t, func(t *testing.T, l *links) {
		until := time.Now().Add(3 * drivertest.Soak(t))
		each(64, func(i int) {
			key := drivertest.Key()
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			value := func(n uint64) []byte {
				return binary.BigEndian.AppendUint64(append(make([]byte, rng.IntN(300)), key...), n)
			}
			last, known := uint64(0), true // the number in the value, 0 for none, if it is known
			may := map[uint64]bool{}       // where it is not
			for n := uint64(1); time.Now().Before(until); n++ {
				ctx, cancel := t.Context(), func() {}
				if rng.IntN(3) == 0 {
					ctx, cancel = context.WithTimeout(ctx, time.Duration(rng.IntN(300))*time.Microsecond)
				}
				if rng.IntN(2) == 0 {
					if known {
						may = map[uint64]bool{last: true}
					}
					v := value(n)
					err := l.set(ctx, key, v)
					clear(v)
					may[n] = true
					last, known = n, err == nil
				} else {
					got, ok, err := l.Get(ctx, key)
					found := uint64(0)
					if ok && assert.GreaterOrEqual(t, len(got), len(key)+8) {
						found = binary.BigEndian.Uint64(got[len(got)-8:])
						assert.Equal(t, key, string(got[len(got)-8-len(key):len(got)-8]))
					}
					switch {
					case err != nil:
						assert.ErrorIs(t, err, context.DeadlineExceeded)
					case known:
						assert.Equal(t, last, found, "the value of another time")
					default:
						assert.True(t, may[found], "a value that was never written")
					}
				}
				cancel()
			}
		})
		assert.Zero(t, l.server.Stats().Timeouts)
	})
}

// The buffer of a Set is the caller's again when it returns, cut off or not.
func TestAValueIsNotReadAfterItsSet(t *testing.T) {
	t.Parallel()
	l := open(t, 1, memcachedtest.Addr(t))
	each(8, func(int) {
		key := drivertest.Key()
		value := make([]byte, 4096)
		for i := range 100 {
			ctx, cancel := context.WithCancel(t.Context())
			go cancel()
			for j := range value {
				value[j] = byte(i)
			}
			_ = l.set(ctx, key, value)
			for j := range value {
				value[j] = byte(i + 1)
			}
			cancel()
			if got, ok, err := l.Get(t.Context(), key); ok && assert.NoError(t, err) {
				for _, b := range got {
					require.Equal(t, got[0], b)
				}
			}
		}
	})
}

func TestTheFirstCallsGoAlone(t *testing.T) {
	t.Parallel()
	p := open(t, 1, memcachedtest.Addr(t))
	ls := link.New(p.server, 1, 2)
	assert.False(t, ls.Begin("a"))
	assert.False(t, ls.Begin("b"))
	assert.True(t, ls.Begin("c"))
	ls.End()
	assert.True(t, ls.Begin("c"))
	ls.End()
	ls.End()
	assert.False(t, ls.Begin("c"))
}

func TestAKeyWithALargeValueGoesAlone(t *testing.T) {
	t.Parallel()
	p := open(t, 1, memcachedtest.Addr(t))
	ls := link.New(p.server, 1, 0)
	for _, c := range []struct {
		size  int
		share bool
	}{{0, true}, {link.MaxValue, true}, {link.MaxValue + 1, false}, {1 << 20, false}, {10, true}} {
		ls.Got("key", c.size)
		assert.Equal(t, c.share, ls.Begin("key"), c.size)
		assert.True(t, ls.Begin("other"), c.size)
	}
}

func TestWithoutALinkEveryCallGoesAlone(t *testing.T) {
	t.Parallel()
	p := open(t, 1, memcachedtest.Addr(t))
	assert.False(t, link.New(p.server, 0, 0).Begin("key"))
}

// The CAS number is told where it is asked for.
func TestCAS(t *testing.T) {
	t.Parallel()
	l, key := open(t, 1, memcachedtest.Addr(t)), drivertest.Key()
	for _, mode := range []pipeline.Mode{0, pipeline.ModeReplace} {
		r, err := l.Set(t.Context(), &pipeline.Set{Item: pipeline.Item{Key: key}, Mode: mode, Expiration: pipeline.Expiration{Meta: 3, Classic: 1}}, true)
		require.NoError(t, err)
		cas, ok, err := l.Touch(t.Context(), key, pipeline.Expiration{Meta: 100, Classic: 1})
		require.NoError(t, err)
		assert.True(t, ok)
		assert.Equal(t, r.CAS, cas)
		assert.NotZero(t, cas)
		left, _ := drivertest.ServerTTL(t, memcachedtest.Addr(t), key)
		assert.Greater(t, left, int64(50), "ttl "+strconv.Itoa(int(left)))
	}
}

// One link serves all, and gives its socket back when it has nothing to do.
func TestAnIdleLinkGivesItsSocketBack(t *testing.T) {
	t.Parallel()
	l := open(t, 1, memcachedtest.Addr(t))
	for range 3 {
		each(100, func(int) { _, _, err := l.Get(t.Context(), drivertest.Key()); assert.NoError(t, err) })
		_, open := l.Stats()
		assert.LessOrEqual(t, open, 1)
		memcachedtest.Eventually(t, func() bool { s := l.server.Stats(); return s.Idle == 1 && s.InUse == 0 }, "the socket is given back")
		require.NoError(t, l.pool.Do(t.Context(), func(lane *pool.Lane) error {
			_, err := pipeline.Version(lane.Conn(l.server)) // as fit as any
			return err
		}))
	}
	assert.EqualValues(t, 1, l.server.Stats().Dials)
	calls, _ := l.Stats()
	assert.EqualValues(t, 300, calls)
}

func TestALinkThatWaitsForAConnectionIsNotOpen(t *testing.T) {
	t.Parallel()
	l := open(t, 1, memcachedtest.Addr(t), func(c *pool.Config) { c.MaxOpen = 1 })
	held, err := l.server.OpenStream(nil)
	require.NoError(t, err)
	done := make(chan error)
	go func() { _, _, err := l.Get(t.Context(), drivertest.Key()); done <- err }()
	memcachedtest.Eventually(t, func() bool { return l.server.Stats().Waiting == 1 }, "it waits")
	_, open := l.Stats()
	assert.Zero(t, open)
	held.Release()
	require.NoError(t, <-done)
}
