package pipeline

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// speaks serves mn with what it says ("" closes the connection), and version.
func speaks(mn string, probes *atomic.Int32) func(int, *bufio.Reader, net.Conn) {
	return func(_ int, r *bufio.Reader, c net.Conn) {
		for {
			cmd, err := next(r)
			if err != nil {
				return
			}
			reply := "VERSION 1.5.22\r\n"
			if mn == "MN\r\n" {
				reply = "VERSION 1.6.18\r\n"
			}
			if cmd.fields[0] == "mn" {
				probes.Add(1)
				if reply = mn; reply == "" {
					return
				}
			}
			if _, err := io.WriteString(c, reply); err != nil {
				return
			}
		}
	}
}

// verdict is what SpeaksMeta found out.
func verdict(t *testing.T, p *pool.Pool) (meta bool, err error) {
	t.Helper()
	err = use(t, p, func(c *pool.Conn) (err error) {
		meta, err = SpeaksMeta(c)
		return err
	})
	return meta, err
}

func TestSpeaksMeta(t *testing.T) {
	for _, c := range []struct {
		name, mn string
		want     bool
	}{
		{"memcached 1.6", "MN\r\n", true},
		{"memcached 1.5", "ERROR\r\n", false},
		{"a proxy that explains itself", "CLIENT_ERROR unknown command\r\n", false},
		{"twemproxy", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var probes atomic.Int32
			p := listen(t, speaks(c.mn, &probes))
			meta, err := verdict(t, p)
			require.NoError(t, err)
			assert.Equal(t, c.want, meta)
			asked := probes.Load()
			for range 3 {
				meta, err := verdict(t, p)
				require.NoError(t, err)
				assert.Equal(t, c.want, meta)
			}
			assert.Equal(t, asked, probes.Load(), "asked again")
			assert.LessOrEqual(t, asked, int32(2), "probes")
		})
	}
}

// TestSpeaksMetaGarbage: what is no memcached gets no verdict.
func TestSpeaksMetaGarbage(t *testing.T) {
	for _, reply := range []string{"-ERR unknown command 'mn'\r\n", "HTTP/1.1 400 Bad Request\r\n"} {
		p := listen(t, says(reply))
		_, err := verdict(t, p)
		assert.ErrorIs(t, err, protocol.ErrUnexpected, reply)
		assert.False(t, p.Servers[0].MetaRefused.Load(), reply)
	}
}

// TestSpeaksMetaDialect: the first 1.6 had meta commands of another form.
func TestSpeaksMetaDialect(t *testing.T) {
	p := listen(t, says("VERSION 1.6.6\r\nMN\r\n"))
	meta, err := verdict(t, p)
	require.NoError(t, err)
	assert.False(t, meta)
}

// TestSpeaksMetaServerDies in the probe, as one that is restarted, and is back
// by the time of the next command: it must not be taken for a server without
// meta, for good.
func TestSpeaksMetaServerDies(t *testing.T) {
	var probes atomic.Int32
	p := listen(t, func(n int, r *bufio.Reader, c net.Conn) {
		if n == 0 {
			_, _ = next(r)
			return
		}
		speaks("MN\r\n", &probes)(n, r, c)
	})
	// The call during which it dies may fail.
	if meta, err := verdict(t, p); err == nil {
		assert.True(t, meta, "the server died in the probe and was taken for one without meta")
	}
	meta, err := verdict(t, p)
	require.NoError(t, err)
	assert.True(t, meta, "for good")
}

// TestSpeaksMetaServerStaysDead: no answer, no verdict.
func TestSpeaksMetaServerStaysDead(t *testing.T) {
	var alive atomic.Bool
	var probes atomic.Int32
	p := listen(t, func(n int, r *bufio.Reader, c net.Conn) {
		if alive.Load() {
			speaks("MN\r\n", &probes)(n, r, c)
		}
	})
	_, err := verdict(t, p)
	require.Error(t, err)
	assert.False(t, p.Servers[0].MetaRefused.Load())
	alive.Store(true)
	meta, err := verdict(t, p)
	require.NoError(t, err)
	assert.True(t, meta)
}

// TestSpeaksMetaTogether: calls that are the first together must not take a
// proxy for a server that is down, because each of them sees it close a
// connection.
func TestSpeaksMetaTogether(t *testing.T) {
	var probes atomic.Int32
	p := listen(t, speaks("", &probes))
	var all sync.WaitGroup
	start := make(chan struct{})
	errs := make(chan error, 32)
	for range cap(errs) {
		all.Go(func() {
			<-start
			errs <- p.Do(t.Context(), func(l *pool.Lane) error {
				meta, err := SpeaksMeta(l.Conn(p.Servers[0]))
				assert.False(t, meta)
				return err
			})
		})
	}
	close(start)
	all.Wait()
	close(errs)
	for err := range errs {
		if !assert.NoError(t, err) {
			break
		}
	}
	assert.Equal(t, pool.Up, p.Servers[0].Stats().State)
	assert.True(t, p.Servers[0].MetaRefused.Load())
}

// TestSpeaksMetaIsNoFailure: that a proxy closes the connection is its answer to
// the probe. It must not count as a failure, the only one that this pool allows.
func TestSpeaksMetaIsNoFailure(t *testing.T) {
	var probes atomic.Int32
	p := newPool(listen(t, speaks("", &probes)).Servers[0].Address, 1)
	defer p.Close()
	meta, err := verdict(t, p)
	require.NoError(t, err)
	assert.False(t, meta)
	assert.Equal(t, pool.Up, p.Servers[0].Stats().State)
}

// TestMetaIsOfAConnection: behind an address there may be another server by the
// next connection. It is asked before a value is sent that it would take for
// commands.
func TestMetaIsOfAConnection(t *testing.T) {
	var got atomic.Value
	p := listen(t, func(n int, r *bufio.Reader, c net.Conn) {
		for {
			cmd, err := next(r)
			if err != nil {
				return
			}
			version, mn := "VERSION 1.6.18\r\n", "MN\r\n"
			if n > 0 {
				version, mn = "VERSION 1.4.39\r\n", "ERROR\r\n"
			}
			switch cmd.fields[0] {
			case "version":
				_, err = io.WriteString(c, version)
			case "mn":
				_, err = io.WriteString(c, mn)
			case "set":
				_, err = io.WriteString(c, "STORED\r\n")
			default:
				got.Store(cmd.fields[0])
				_, err = io.WriteString(c, "ERROR\r\n")
			}
			if err != nil || n == 0 && cmd.fields[0] == "mn" {
				return // and is replaced
			}
		}
	})
	meta, err := verdict(t, p)
	require.NoError(t, err)
	assert.True(t, meta)
	assert.Eventually(t, func() bool {
		meta, err = verdict(t, p)
		return err == nil && !meta
	}, 5*time.Second, time.Millisecond)
	assert.Nil(t, got.Load(), "a meta command was sent to a server that was not asked")
}

// TestSpeaksMetaTooMany: a server that is full says so in place of an answer, and
// closes. That is no verdict.
func TestSpeaksMetaTooMany(t *testing.T) {
	p := listen(t, says("ERROR Too many open connections\r\n"))
	_, err := verdict(t, p)
	var reply *protocol.ReplyError
	require.ErrorAs(t, err, &reply)
	assert.False(t, p.Servers[0].MetaRefused.Load())
}

func TestBeforeMeta(t *testing.T) {
	for version, want := range map[string]bool{
		"1.4.39": true, "1.5.22": true, "1.6.0": true, "1.6.9": true, "1.6.9_beta": true,
		"1.6.10": false, "1.6.18": false, "1.6.40": false, "1.7.0": false, "2.0.0": false, "mcrouter 1.0": false, "": false,
	} {
		assert.Equal(t, want, beforeMeta(version), version)
	}
}

func TestMetaMisses(t *testing.T) {
	p := listen(t, answers(func(command) string { return "EN\r\n" }))
	require.NoError(t, use(t, p, func(c *pool.Conn) error {
		found, err := Fetch(c, "k")
		assert.Nil(t, found)
		return err
	}))
	require.NoError(t, use(t, p, func(c *pool.Conn) error {
		_, ok, err := TTL(c, "k")
		assert.False(t, ok)
		return err
	}))
	require.NoError(t, use(t, p, func(c *pool.Conn) error {
		return Exists(c, []string{"k", "l"}, func(i int) { t.Errorf("found %d", i) })
	}))
	assert.Equal(t, 1, idle(p))
}

// TestMetaUnexpected: a reply of another command's is none.
func TestMetaUnexpected(t *testing.T) {
	for name, c := range map[string]struct {
		replies []string
		run     func(*pool.Conn) error
	}{
		"exists": {[]string{"VA 1\r\nx\r\n", "NF\r\n", "MN\r\n", "END\r\n"}, func(c *pool.Conn) error {
			return Exists(c, []string{"k", "l"}, func(int) {})
		}},
		"fetch": {[]string{"HD\r\n", "MN\r\n", "VALUE k 0 1\r\nx\r\n", "VA 1 t1 c1 f0\r\nxx\r\n"}, func(c *pool.Conn) error {
			_, err := Fetch(c, "k")
			return err
		}},
		"ttl": {[]string{"VA 1\r\nx\r\n", "MN\r\n", "HD tx\r\n"}, func(c *pool.Conn) error {
			_, _, err := TTL(c, "k")
			return err
		}},
		"death": {[]string{"VA 1\r\nx\r\n", "MN\r\n", "HD t5\r\nSTAT time x\r\nEND\r\nHD t5\r\n", "HD t5\r\nEN\r\n"}, func(c *pool.Conn) error {
			_, err := Death(c, "k")
			return err
		}},
	} {
		for _, reply := range c.replies {
			p := listen(t, says(reply))
			assert.ErrorIs(t, use(t, p, c.run), protocol.ErrUnexpected, "%s: %q", name, reply)
			assert.Zero(t, idle(p), "%s: %q: the connection was kept", name, reply)
		}
	}
}

func TestDeath(t *testing.T) {
	const clock = 1700000000
	// Each round answers mg, stats, mg.
	round := func(before, unix, behind int64, more ...string) string {
		return fmt.Sprintf("HD t%d\r\nSTAT pid 1\r\nSTAT time %d\r\n%sEND\r\nHD t%d\r\n", before, unix, strings.Join(more, ""), behind)
	}
	same := func(n int, s string) (all []string) {
		for range n {
			all = append(all, s)
		}
		return all
	}
	for _, c := range []struct {
		name   string
		rounds []string
		want   int64
		err    error
	}{
		{name: "no tick", rounds: []string{round(10, clock, 10)}, want: clock + 10},
		{name: "31 days", rounds: []string{round(31*86400, clock, 31*86400)}, want: clock + 31*86400},
		{name: "a tick", rounds: []string{round(10, clock, 9), round(9, clock+1, 9)}, want: clock + 10},
		{name: "ticks in every round", rounds: same(ticks, round(10, clock, 9)), err: ErrNoClock},
		{name: "memcached's proxy", rounds: []string{round(10, clock, 10, "STAT proxy_conn_requests 1\r\n")}, err: ErrNoClock},
		{name: "no clock", rounds: []string{"HD t10\r\nSTAT pid 1\r\nEND\r\nHD t10\r\n"}, err: ErrNoClock},
		{name: "absent", rounds: []string{"EN\r\nSTAT time 5\r\nEND\r\nEN\r\n"}},
		{name: "gone in between", rounds: []string{"HD t1\r\nSTAT time 5\r\nEND\r\nEN\r\n"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := listen(t, func(_ int, r *bufio.Reader, nc net.Conn) {
				for _, replies := range c.rounds {
					for range 3 {
						if _, err := next(r); err != nil {
							return
						}
					}
					_, _ = io.WriteString(nc, replies)
				}
				_, _ = io.Copy(io.Discard, r)
			})
			var at int64
			err := use(t, p, func(pc *pool.Conn) (err error) {
				at, err = Death(pc, "k")
				return err
			})
			assert.ErrorIs(t, err, c.err)
			assert.Equal(t, c.want, at)
			assert.Equal(t, 1, idle(p), "the connection is in step")
		})
	}
}
