package memcachedtest_test

import (
	"context"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestNameServer(t *testing.T) {
	t.Parallel()
	s := memcachedtest.StartNameServer(t)
	r := s.Resolver()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var failure *net.DNSError

	_, err := r.LookupMX(ctx, "_x._tcp.test.")
	require.ErrorAs(t, err, &failure)
	assert.True(t, failure.IsNotFound)
	s.SetSRV("_x._tcp.test.", net.SRV{Target: "a.test.", Port: 1, Priority: 2, Weight: 3}, net.SRV{Target: ".", Port: 4, Priority: 5})
	_, records, err := r.LookupSRV(ctx, "x", "tcp", "test.")
	require.NoError(t, err)
	assert.Equal(t, []*net.SRV{{Target: "a.test.", Port: 1, Priority: 2, Weight: 3}, {Target: ".", Port: 4, Priority: 5}}, records)
	_, err = r.LookupMX(ctx, "_x._tcp.test.")
	require.ErrorAs(t, err, &failure)
	assert.True(t, failure.IsNotFound, "the name has no such records")
	s.Remove("_X._tcp.test.")
	_, _, err = r.LookupSRV(ctx, "x", "tcp", "test.")
	require.ErrorAs(t, err, &failure)
	assert.True(t, failure.IsNotFound)

	many := make([]net.SRV, 1000)
	for i := range many {
		many[i] = net.SRV{Target: fmt.Sprintf("node%d.test.", i), Port: 11211}
	}
	s.SetSRV("many.test.", many...)
	before := s.Queries()
	_, records, err = r.LookupSRV(ctx, "", "", "many.test.")
	require.NoError(t, err)
	assert.Len(t, records, len(many))
	assert.Equal(t, 2, s.Queries()-before, "by UDP, then by TCP")

	s.SetFailing(true)
	_, _, err = r.LookupSRV(ctx, "", "", "many.test.")
	require.ErrorAs(t, err, &failure)
	assert.True(t, failure.IsTemporary)
	s.SetFailing(false)
	s.SetSilent(true)
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	_, _, err = r.LookupSRV(short, "", "", "many.test.")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	s.SetSilent(false)
	_, _, err = r.LookupSRV(ctx, "", "", "many.test.")
	require.NoError(t, err)
}

// What is no query does not end it.
func TestNameServerOverlooksNonsense(t *testing.T) {
	t.Parallel()
	s := memcachedtest.StartNameServer(t)
	s.SetSRV("x.test.", net.SRV{Target: "a.test.", Port: 1})
	for _, network := range []string{"udp", "tcp"} {
		c, err := s.Resolver().Dial(t.Context(), network, "elsewhere:53")
		require.NoError(t, err)
		defer c.Close()
		for _, query := range []string{"", "\x00", "twelve bytes\xC0\x0C", "twelve bytes\x3F", "twelve bytes\x00\x00\x01\x00", "twelve bytes\x01a"} {
			if network == "tcp" {
				query = string([]byte{0, byte(len(query))}) + query
			}
			_, err := c.Write([]byte(query))
			require.NoError(t, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, _, err := s.Resolver().LookupSRV(ctx, "", "", "x.test.")
	require.NoError(t, err)
}
