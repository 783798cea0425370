package link_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/link"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

func TestACallThatLeavesBeforeItIsWrittenIsNotWritten(t *testing.T) {
	t.Parallel()
	ready := make(chan struct{})
	f := memcachedtest.StartFake(t, slow(ready, memcachedtest.Script{}))
	l := open(t, 1, f.Addr())
	ctx, cancel := context.WithCancelCause(t.Context())
	left := make(chan error)
	go func() { left <- l.set(ctx, "leaves", []byte("v")) }()
	l.awaitCalls(t, 1)
	cancel(errors.New("why"))
	err := <-left
	assert.ErrorIs(t, err, context.Canceled)
	assert.ErrorContains(t, err, "why")
	close(ready)
	require.NoError(t, l.set(t.Context(), "stays", []byte("v")))
	assert.NotContains(t, f.Received(), "leaves")
	assert.EqualValues(t, 1, l.server.Stats().Cancelled)
}

func TestTheReplyToACallThatLeftIsThrownAway(t *testing.T) {
	for name, large := range map[string]int{"small": 10, "large": 64 << 20} {
		t.Run(name, func(t *testing.T) {
			asked, ready := make(chan struct{}), make(chan struct{})
			f := memcachedtest.StartFake(t, memcachedtest.Script{"mg": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
				if cmd.Args[0] != "leaves" {
					answer(c, cmd)
					return
				}
				close(asked)
				if !c.Wait(ready) {
					return
				}
				c.Say(fmt.Sprintf("VA %d %s\r\n", large, token(cmd)))
				piece := make([]byte, min(large, 1<<20))
				for range large / len(piece) {
					c.Write(piece)
				}
				c.Say("\r\n")
			}})
			l := open(t, 1, f.Addr())
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-asked; cancel() }()
			start := time.Now()
			_, _, err := l.Get(ctx, "leaves")
			assert.ErrorIs(t, err, context.Canceled)
			assert.Less(t, time.Since(start), within)
			other := make(chan string)
			go func() { other <- l.mustGet(t, "stays") }()
			l.awaitCalls(t, 2)
			allocated := drivertest.AllocatedBy(func() {
				close(ready)
				assert.Equal(t, string(drivertest.Value("stays")), <-other)
			})
			assert.Less(t, allocated, 16<<20, "the value that nobody wants is not kept")
			assert.EqualValues(t, 1, l.server.Stats().Dials)
		})
	}
}

// once is a handler that answers once for a key that is asked for twice, as a proxy may,
// in an order of its own. "none" is not there.
func once(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
	said := map[string]bool{"none": true}
	for _, key := range slices.Backward(cmd.Args) {
		if !said[key] {
			said[key] = true
			c.Say(memcachedtest.Value(key, "value of "+key))
		}
	}
	c.Say("END\r\n")
}

func TestAKeyOfTwoCallersIsServedTwice(t *testing.T) {
	t.Parallel()
	ready := make(chan struct{})
	f := memcachedtest.StartFake(t, slow(ready, classic(memcachedtest.Script{"get": once})))
	l := open(t, 1, f.Addr())
	values := make([][]byte, 12)
	key := func(i int) string { return fmt.Sprint("key", max(i, 5)) } // six are the same
	go func() { l.awaitCalls(t, len(values)+1); close(ready) }()
	each(len(values)+1, func(i int) {
		if i == len(values) {
			_, ok, err := l.Get(t.Context(), "none")
			assert.NoError(t, err)
			assert.False(t, ok)
			return
		}
		var err error
		values[i], _, err = l.Get(t.Context(), key(i))
		assert.NoError(t, err)
	})
	assert.Equal(t, 1, f.Count("get"), "they are merged")
	for i, v := range values {
		assert.Equal(t, "value of "+key(i), string(v))
		clear(v) // it is nobody else's
	}
}

// Nor does a caller lose its value to one that does not want it.
func TestAGetBesideAnotherReadOfItsKey(t *testing.T) {
	t.Parallel()
	for name, other := range map[string]func(context.Context, *links) error{
		"Exists": func(_ context.Context, l *links) error { _, err := l.Exists(t.Context(), "key"); return err },
		"a Get that is left": func(ctx context.Context, l *links) error {
			_, _, err := l.Get(ctx, "key")
			if assert.ErrorIs(t, err, context.Canceled) {
				err = nil
			}
			return err
		},
	} {
		ready, left := make(chan struct{}), make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		f := memcachedtest.StartFake(t, slow(ready, classic(memcachedtest.Script{"get": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			cancel()
			if name == "Exists" || c.Wait(left) {
				once(c, cmd)
			}
		}})))
		l := open(t, 1, f.Addr())
		go func() { l.awaitCalls(t, 2); close(ready) }()
		each(2, func(i int) {
			if i == 0 {
				assert.NoError(t, other(ctx, l), name)
				close(left)
				return
			}
			l.awaitCalls(t, 1)
			assert.Equal(t, "value of key", l.mustGet(t, "key"), name)
		})
		assert.Equal(t, 1, f.Count("get"), "they are merged")
	}
}

// An error may be that of one of the keys.
func TestMergedGetsThatAreRefusedAreAskedForOneByOne(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"SERVER_ERROR a server is down", "ERROR", "CLIENT_ERROR no", "garbage"} {
		ready := make(chan struct{})
		f := memcachedtest.StartFake(t, slow(ready, classic(memcachedtest.Script{"get": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			switch {
			case strings.Contains(cmd.Line, "bad"):
				c.Say(line + "\r\n")
			default:
				for _, key := range cmd.Args {
					c.Say(memcachedtest.Value(key, "value of "+key))
				}
				c.Say("END\r\n")
			}
		}})))
		l := open(t, 1, f.Addr())
		go func() { l.awaitCalls(t, 8); close(ready) }()
		each(8, func(i int) {
			if i == 3 {
				_, _, err := l.Get(t.Context(), "bad")
				assert.Error(t, err, line)
				assert.Equal(t, line == "garbage", errors.Is(err, protocol.ErrUnexpected), "%v", err)
				return
			}
			key := fmt.Sprint("key", i)
			assert.Equal(t, "value of "+key, l.mustGet(t, key), line)
		})
	}
}

func TestAReplyWithoutItsTokenIsNone(t *testing.T) {
	t.Parallel()
	for _, reply := range []string{"EN O999", "HD O1", "VA 1 O999\r\nx", "VA 1\r\nx", "NF O1"} {
		f := memcachedtest.StartFake(t, memcachedtest.Script{"mg": memcachedtest.Say(reply + "\r\n")})
		l := open(t, 1, f.Addr())
		_, _, err := l.Get(t.Context(), "key")
		assert.ErrorIs(t, err, protocol.ErrUnexpected, reply)
		memcachedtest.Eventually(t, func() bool { s := l.server.Stats(); return s.InUse == 0 && s.Idle == 0 }, "the connection is closed")
		f.SetScript(memcachedtest.Script{"mg": answer})
		assert.Equal(t, "value of key", l.mustGet(t, "key"), reply)
		assert.Equal(t, pool.Up, l.server.Stats().State)
	}
}

// An older memcached leaves the token out of a miss: until one had it.
func TestAMissWithoutItsToken(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{
		"mg": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			switch cmd.Args[0] {
			case "absent":
				c.Say("EN\r\n")
			default:
				answer(c, cmd)
			}
		},
		"md": memcachedtest.Say("NF\r\n"),
	})
	l := open(t, 1, f.Addr())
	for range 3 {
		_, ok, err := l.Get(t.Context(), "absent")
		require.NoError(t, err)
		require.False(t, ok)
		ok, err = l.Exists(t.Context(), "absent")
		require.NoError(t, err)
		require.False(t, ok)
		ok, err = l.Delete(t.Context(), "absent")
		require.NoError(t, err)
		require.False(t, ok)
		require.Equal(t, "value of key", l.mustGet(t, "key"))
	}
	assert.EqualValues(t, 1, l.server.Stats().Dials)
	f.SetScript(memcachedtest.Script{"mg": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		reply := "EN"
		if cmd.Args[0] == "honest" {
			reply += " " + token(cmd)
		}
		c.Say(reply + "\r\n")
	}})
	_, ok, err := l.Get(t.Context(), "honest")
	require.NoError(t, err)
	require.False(t, ok)
	_, _, err = l.Get(t.Context(), "absent")
	require.ErrorIs(t, err, protocol.ErrUnexpected)
}

// Those that wait behind a frozen server are not sent to it once it is down.
func TestWhatWaitsLearnsThatTheServerIsDown(t *testing.T) {
	t.Parallel()
	const calls = 1200 // more than are sent ahead
	f := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.Hang))
	l := open(t, 1, f.Addr(), func(c *pool.Config) { c.ReadTimeout, c.FailureLimit = 300*time.Millisecond, 1 })
	var down, late atomic.Int32
	each(calls, func(i int) {
		_, _, err := l.Get(t.Context(), fmt.Sprint("key", i))
		switch {
		case errors.Is(err, pool.ErrServerDown):
			down.Add(1)
		case errors.Is(err, os.ErrDeadlineExceeded):
			late.Add(1)
		default:
			t.Error(err)
		}
	})
	assert.LessOrEqual(t, int(late.Load()), 1024)
	assert.EqualValues(t, calls, down.Load()+late.Load())
	assert.EqualValues(t, 1, l.server.Stats().Dials)
}

func TestALargeValueIsFollowedByTheOthers(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, l *links) {
		large, key := strings.Repeat("large", 200_000), drivertest.Key()
		require.NoError(t, l.set(t.Context(), key, []byte(large)))
		each(64, func(i int) {
			if i%8 == 0 {
				assert.True(t, large == l.mustGet(t, key))
				return
			}
			small := drivertest.Key()
			assert.NoError(t, l.set(t.Context(), small, drivertest.Value(small)))
			assert.Equal(t, string(drivertest.Value(small)), l.mustGet(t, small))
		})
	})
}

func TestARefusedValueIsItsOwnCallers(t *testing.T) {
	t.Parallel()
	script := memcachedtest.Script{}
	for _, name := range []string{"ms", "set"} {
		script[name] = func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			if len(cmd.Data) > 1024 {
				c.Say("SERVER_ERROR object too large for cache\r\n")
				return
			}
			c.Default(cmd)
		}
	}
	for range 2 {
		f := memcachedtest.StartFake(t, script)
		l := open(t, 1, f.Addr())
		each(64, func(i int) {
			size := 10
			if i%4 == 0 {
				size = link.MaxValue
			}
			err := l.set(t.Context(), "key", make([]byte, size))
			if size == 10 {
				assert.NoError(t, err)
				return
			}
			var reply *protocol.ReplyError
			if assert.ErrorAs(t, err, &reply) {
				assert.True(t, reply.TooLarge())
			}
		})
		assert.Equal(t, 1, f.Accepted())
		script = classic(script)
	}
}

// After some error lines the next reply cannot be told: reads behind them are sent
// again, writes fail.
func TestErrorLines(t *testing.T) {
	t.Parallel()
	for line, inStep := range map[string]bool{
		"SERVER_ERROR out of memory": true, "ERROR": true, "CLIENT_ERROR bad command line format": true,
		"ERROR Too many open connections": false, "CLIENT_ERROR unauthenticated": false, "garbage": false,
	} {
		ready, bad := make(chan struct{}), make(chan struct{})
		f := memcachedtest.StartFake(t, memcachedtest.Script{"mg": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			if cmd.Args[0] == "bad" {
				close(bad)
				c.Wait(ready)
				c.Say(line + "\r\n")
				return
			}
			answer(c, cmd)
		}})
		l := open(t, 1, f.Addr())
		l.mustGet(t, "good") // else it might be for whoever comes
		go func() {
			<-bad
			l.awaitCalls(t, 18)
			time.Sleep(20 * time.Millisecond) // they are written
			close(ready)
		}()
		var failed atomic.Int32
		each(17, func(i int) {
			switch {
			case i == 0:
				_, _, err := l.Get(t.Context(), "bad")
				if line == "garbage" {
					assert.ErrorIs(t, err, protocol.ErrUnexpected)
				} else {
					assert.ErrorContains(t, err, line)
				}
			case i%2 == 1:
				<-bad
				key := fmt.Sprint("key", i)
				assert.Equal(t, string(drivertest.Value(key)), l.mustGet(t, key), line)
			default:
				<-bad
				if err := l.set(t.Context(), "key", nil); err != nil {
					assert.NotContains(t, err.Error(), line)
					failed.Add(1)
				}
			}
		})
		assert.Equal(t, inStep, failed.Load() == 0, line)
		if inStep {
			assert.Equal(t, 1, f.Accepted(), line)
		}
		assert.Equal(t, pool.Up, l.server.Stats().State, line)
	}
}

// A server that does not read cannot make us keep what nobody waits for, nor hold a
// caller.
func TestAServerThatStopsReading(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"ms": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) { c.Wait(nil) }})
	l := open(t, 1, f.Addr())
	start := time.Now()
	for range 4 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		each(1000, func(int) {
			assert.ErrorIs(t, l.set(ctx, "key", make([]byte, link.MaxValue)), context.DeadlineExceeded)
		})
		cancel()
	}
	assert.Less(t, time.Since(start), within)
	assert.Less(t, len(f.Received()), 4<<20)
	assert.LessOrEqual(t, link.Queued(l.Links), 0, "calls that have left are not remembered")
	assert.LessOrEqual(t, link.InFlight(l.Links), 1024)
}

func TestSilenceIsOneFailure(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.Hang))
	l := open(t, 1, f.Addr(), impatient)
	ready := make(chan struct{})
	f.SetScript(slow(ready, memcachedtest.AfterDial(memcachedtest.Hang)))
	go func() { l.awaitCalls(t, 200); close(ready) }()
	each(200, func(int) {
		_, _, err := l.Get(t.Context(), "key")
		var at *pool.Error
		assert.ErrorAs(t, err, &at)
		assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.ErrorContains(t, err, "read timeout")
	})
	s := l.server.Stats()
	assert.Equal(t, pool.Up, s.State, "it is down after two")
	assert.EqualValues(t, 1, s.Timeouts)
}

// Nobody waits for the timeout, and the server is given up all the same.
func TestSilenceIsNoticedThoughAllCallersGiveUpEarly(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.Hang))
	l := open(t, 1, f.Addr(), impatient, func(c *pool.Config) { c.FailureLimit = 1 })
	memcachedtest.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, _, err := l.Get(ctx, "key")
		require.Error(t, err)
		return errors.Is(err, pool.ErrServerDown)
	}, "the server is down")
}

// The server goes on, but a call has waited for too long: that is its own matter.
func TestACallTimesOutAlone(t *testing.T) {
	t.Parallel()
	ready := make(chan struct{})
	f := memcachedtest.StartFake(t, slow(ready, memcachedtest.Script{"mg": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		time.Sleep(50 * time.Millisecond)
		answer(c, cmd)
	}}))
	l := open(t, 1, f.Addr(), func(c *pool.Config) {
		c.WriteTimeout, c.ReadTimeout, c.FailureLimit = 300*time.Millisecond, 300*time.Millisecond, 1
	})
	close(ready)
	var served, late atomic.Int32
	each(40, func(i int) {
		key := fmt.Sprint("key", i)
		value, _, err := l.Get(t.Context(), key)
		if err == nil {
			served.Add(1)
			assert.Equal(t, string(drivertest.Value(key)), string(value))
			return
		}
		late.Add(1)
		assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
		assert.ErrorContains(t, err, "read timeout")
	})
	assert.NotZero(t, served.Load())
	assert.NotZero(t, late.Load())
	assert.EqualValues(t, late.Load(), l.server.Stats().Timeouts)
	assert.Equal(t, pool.Up, l.server.Stats().State)
	assert.Equal(t, 1, f.Accepted())
}

// A restart costs the writes that were in flight, and nothing else.
func TestARestartWithHundredsOfCalls(t *testing.T) {
	t.Parallel()
	const inFlight, calls = 1024, 1600 // what is above waits in the queue
	ready, first := make(chan struct{}), make(chan struct{})
	var restarted atomic.Bool
	f := memcachedtest.StartFake(t, memcachedtest.Script{"mg": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		if cmd.Args[0] == "first" && !restarted.Load() {
			close(first)
			c.Wait(ready)
			restarted.Store(true)
			c.Close()
			return
		}
		answer(c, cmd)
	}})
	l := open(t, 1, f.Addr())
	l.mustGet(t, "zeroth")
	var failed, written atomic.Int32
	each(calls, func(i int) {
		if i == 0 {
			assert.Equal(t, "value of first", l.mustGet(t, "first"))
			return
		}
		<-first
		if i == 1 {
			l.awaitCalls(t, calls)
			memcachedtest.Eventually(t, func() bool { return link.InFlight(l.Links) == inFlight }, "as much as may be is written")
			close(ready)
			return
		}
		if i%2 == 0 {
			key := fmt.Sprint("key", i)
			assert.Equal(t, string(drivertest.Value(key)), l.mustGet(t, key))
			return
		}
		if err := l.set(t.Context(), "key", nil); err != nil {
			assert.ErrorContains(t, err, "closed the connection")
			failed.Add(1)
		} else {
			written.Add(1)
		}
	})
	assert.NotZero(t, failed.Load())
	assert.NotZero(t, written.Load(), "what was not written goes on")
	assert.Equal(t, 2, f.Accepted())
	assert.Equal(t, pool.Up, l.server.Stats().State)
}

// A server that always hangs up is not asked for ever.
func TestAServerThatAlwaysHangsUp(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.AfterDial(memcachedtest.HangUp))
	l := open(t, 1, f.Addr(), func(c *pool.Config) { c.FailureLimit = 0 })
	drivertest.NoDeadlock("calls", func() {
		each(50, func(int) {
			_, _, err := l.Get(t.Context(), "key")
			assert.ErrorContains(t, err, "closed the connection")
		})
	})
}

// A read is sent again once, and not for ever.
func TestAReadIsSentAgainOnce(t *testing.T) {
	t.Parallel()
	ready := make(chan struct{})
	var last atomic.Int32 // the connection that has been used
	f := memcachedtest.StartFake(t, slow(ready, memcachedtest.Script{"mg": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		if last.Swap(int32(c.N)) == int32(c.N) {
			c.Close()
			return
		}
		answer(c, cmd)
	}}))
	l := open(t, 1, f.Addr())
	go func() { l.awaitCalls(t, 20); close(ready) }()
	var served atomic.Int32
	each(20, func(i int) {
		key := fmt.Sprint("key", i)
		value, _, err := l.Get(t.Context(), key)
		if err != nil {
			assert.ErrorContains(t, err, "closed the connection")
			return
		}
		assert.Equal(t, string(drivertest.Value(key)), string(value))
		served.Add(1)
	})
	assert.EqualValues(t, 2, served.Load(), "one on each connection")
	assert.Equal(t, 2, f.Accepted())
}

// With all connections in everyday use: what goes again keeps the place of the connection
// that ended.
func TestWhatGoesAgainIsNotOvertaken(t *testing.T) {
	t.Parallel()
	ready, stop := make(chan struct{}), make(chan struct{})
	var served atomic.Int32
	f := memcachedtest.StartFake(t, memcachedtest.Script{
		"mg": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			if cmd.Args[0] == "bad" {
				c.Wait(ready)
				c.Say("nonsense\r\n")
				return
			}
			answer(c, cmd)
		},
		"gets": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			served.Add(1)
			time.Sleep(time.Millisecond) // on its way
			c.Default(cmd)
		},
	})
	l := open(t, 1, f.Addr(), func(c *pool.Config) { c.MaxOpen, c.DialTimeout = 2, 5*time.Second })
	var calls, others sync.WaitGroup
	calls.Go(func() {
		_, _, err := l.Get(t.Context(), "bad")
		assert.ErrorIs(t, err, protocol.ErrUnexpected)
	})
	l.awaitCalls(t, 1)
	calls.Go(func() {
		_, ok, err := l.Get(t.Context(), "good")
		assert.NoError(t, err)
		assert.True(t, ok)
	})
	memcachedtest.Eventually(t, func() bool { return link.InFlight(l.Links) == 2 }, "both are written")
	for range 4 {
		others.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				err := l.pool.Do(t.Context(), func(lane *pool.Lane) error { _, err := lane.Client(l.server).Get("key"); return err })
				assert.Equal(t, memcache.ErrCacheMiss, err)
			}
		})
	}
	memcachedtest.Eventually(t, func() bool { return served.Load() > 100 }, "all connections are in use")
	close(ready)
	calls.Wait()
	close(stop)
	others.Wait()
}

// It is no connection that has rested: what is asked on it does not go on another one.
func TestANewConnectionThatIsClosedIsAFailure(t *testing.T) {
	t.Parallel()
	const calls = 20
	f := memcachedtest.StartFake(t, memcachedtest.Script{"mn": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		c.Default(cmd)
		c.Close()
	}})
	l := open(t, 1, f.Addr(), func(c *pool.Config) { c.FailureLimit = 0 })
	for i := range calls {
		_, _, err := l.Get(t.Context(), fmt.Sprint("key", i))
		assert.ErrorContains(t, err, "closed the connection")
	}
	assert.LessOrEqual(t, f.Accepted(), calls+2)
	assert.Zero(t, l.server.Stats().Stale)
}

// Where nothing was asked in the dial, each call is told.
func TestAFullServerThatIsNotAsked(t *testing.T) {
	t.Parallel()
	const calls = 4
	var accepted atomic.Int32
	addr := memcachedtest.Listen(t, func(c net.Conn) {
		if accepted.Add(1) > 2 { // after these it is not asked any more
			_, _ = c.Write([]byte("ERROR Too many open connections\r\n"))
			_, _ = c.Read(make([]byte, 1000))
		}
	})
	l := open(t, 1, addr)
	each(calls, func(int) { assert.ErrorContains(t, l.set(t.Context(), "key", nil), "Too many open connections") })
	assert.LessOrEqual(t, int(accepted.Load()), 2+calls)
}

// A byte now and then is no reply.
func TestAServerThatTrickles(t *testing.T) {
	t.Parallel()
	f := memcachedtest.StartFake(t, memcachedtest.Script{"mg": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		c.Say("VA 100000 " + token(cmd) + "\r\n")
		for c.Say("x") {
			time.Sleep(20 * time.Millisecond)
		}
	}})
	l := open(t, 1, f.Addr(), impatient, func(c *pool.Config) { c.FailureLimit = 1 })
	_, _, err := l.Get(t.Context(), "key")
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
	memcachedtest.Eventually(t, func() bool { s := l.server.Stats(); return s.InUse == 0 && s.Idle == 0 }, "the connection is closed")
	_, _, err = l.Get(t.Context(), "key")
	assert.ErrorIs(t, err, pool.ErrServerDown)
}

// Who comes to a link that waits for a connection has a wait of its own.
func TestALateCallWaitsAsLongAsAnEarlyOne(t *testing.T) {
	t.Parallel()
	const dialTimeout = time.Second
	l := open(t, 1, memcachedtest.StartFake(t, nil).Addr(), func(c *pool.Config) { c.MaxOpen, c.DialTimeout = 1, dialTimeout })
	held, err := l.server.OpenStream(nil)
	require.NoError(t, err)
	each(2, func(i int) {
		if i == 0 {
			_, _, err := l.Get(t.Context(), "early")
			assert.ErrorIs(t, err, pool.ErrPoolTimeout)
			time.Sleep(dialTimeout / 20) // the late one would have failed by now
			held.Release()
			return
		}
		l.awaitCalls(t, 1)
		time.Sleep(dialTimeout / 2)
		_, _, err := l.Get(t.Context(), "late")
		assert.NoError(t, err)
	})
}

// The wait for a connection is the dial timeout's.
func TestAWaitLeavesTheReplyItsTime(t *testing.T) {
	t.Parallel()
	const write, read = 200 * time.Millisecond, 600 * time.Millisecond
	f := memcachedtest.StartFake(t, memcachedtest.Script{"mg": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		time.Sleep(read / 4)
		c.Default(cmd)
	}})
	l := open(t, 1, f.Addr(), func(c *pool.Config) { c.MaxOpen, c.WriteTimeout, c.ReadTimeout = 1, write, read })
	held, err := l.server.OpenStream(nil)
	require.NoError(t, err)
	time.AfterFunc(write+read, held.Release)
	_, _, err = l.Get(t.Context(), "key")
	assert.NoError(t, err)
}

func TestCloseWithHundredsOfCalls(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]memcachedtest.Script{
		"in flight": memcachedtest.AfterDial(memcachedtest.Hang),
		"dialling":  {"*": memcachedtest.Hang},
	} {
		f := memcachedtest.StartFake(t, script)
		l := open(t, 2, f.Addr())
		go func() {
			l.awaitCalls(t, 400)
			time.Sleep(10 * time.Millisecond)
			l.close()
		}()
		start := time.Now()
		each(400, func(i int) {
			_, _, err := l.Get(t.Context(), fmt.Sprint("key", i))
			assert.Equal(t, pool.ErrClosed, err, name)
		})
		assert.Less(t, time.Since(start), within)
		l.close()
		_, _, err := l.Get(t.Context(), "key")
		assert.Equal(t, pool.ErrClosed, err, name)
	}
}

// The end of a connection that nothing is asked on costs nobody anything.
func TestTheEndOfAnIdleConnectionIsNoticed(t *testing.T) {
	t.Parallel()
	server := memcachedtest.Start(t)
	l := open(t, 1, server.Addr())
	for range 3 {
		require.NoError(t, l.set(t.Context(), "key", []byte("v")))
		server.Restart()
		_, ok, err := l.Get(t.Context(), "key")
		assert.NoError(t, err)
		assert.False(t, ok)
	}
	assert.Equal(t, pool.Up, l.server.Stats().State)
}

// All wait for one dial, and its failure is one.
func TestADialThatFailsIsOneFailure(t *testing.T) {
	t.Parallel()
	l := open(t, 1, memcachedtest.BlackHole(t), func(c *pool.Config) { c.DialTimeout = 200 * time.Millisecond })
	each(100, func(int) {
		_, _, err := l.Get(t.Context(), "key")
		assert.ErrorContains(t, err, "dial timeout")
	})
	s := l.server.Stats()
	assert.EqualValues(t, 1, s.Dials)
	assert.Equal(t, pool.Up, s.State)
}
