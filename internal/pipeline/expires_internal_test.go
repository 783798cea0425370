package pipeline

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

func TestExpiresAt(t *testing.T) {
	const clock = 1700000000
	// Each round answers mg, stats, mg.
	round := func(before, unix, after int64, more ...string) string {
		return fmt.Sprintf("HD t%d\r\nSTAT pid 1\r\nSTAT time %d\r\n%sEND\r\nHD t%d\r\n", before, unix, strings.Join(more, ""), after)
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
		left   int64
		err    error
	}{
		{name: "no tick", rounds: []string{round(10, clock, 10)}, want: clock + 10, left: 10},
		{name: "31 days", rounds: []string{round(31*86400, clock, 31*86400)}, want: clock + 31*86400, left: 31 * 86400},
		{name: "a tick", rounds: []string{round(10, clock, 9), round(9, clock+1, 9)}, want: clock + 10, left: 9},
		{name: "ticks in every round", rounds: same(ticks, round(10, clock, 9)), left: 9, err: ErrNoClock},
		{name: "memcached's proxy", rounds: []string{round(10, clock, 10, "STAT proxy_conn_requests 1\r\n")}, left: 10, err: ErrNoClock},
		{name: "no clock", rounds: []string{"HD t10\r\nSTAT pid 1\r\nEND\r\nHD t10\r\n"}, left: 10, err: ErrNoClock},
		{name: "no expiry", rounds: []string{round(-1, clock, -1)}, left: -1},
		{name: "no expiry any more", rounds: []string{round(10, clock, -1)}, left: -1},
		{name: "absent", rounds: []string{"EN\r\nSTAT time 5\r\nEND\r\nEN\r\n"}},
		{name: "gone in between", rounds: []string{"HD t1\r\nSTAT time 5\r\nEND\r\nEN\r\n"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var asked atomic.Int32
			rest := func(cn *memcachedtest.FakeConn, _ memcachedtest.Command) {
				// A round is answered when all of it has been asked.
				if n := int(asked.Add(1)); n%3 == 0 {
					cn.Say(c.rounds[n/3-1])
				}
			}
			p := fake(t, memcachedtest.Script{"mg": rest, "stats": rest})
			var at, left int64
			err := use(t, p, func(pc *pool.Conn) (err error) {
				at, left, err = ExpiresAt(pc, "k")
				return err
			})
			assert.ErrorIs(t, err, c.err)
			assert.Equal(t, c.want, at)
			assert.Equal(t, c.left, left)
			assert.Equal(t, 1, idle(p), "the connection is in step")
		})
	}
}
