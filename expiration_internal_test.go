package memcacheddriver

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestExpiration(t *testing.T) {
	const (
		day   = 24 * time.Hour
		month = 30 * day
	)
	now := time.Unix(1_800_000_000, 0)
	between := now.Add(300 * time.Millisecond)
	for _, c := range []struct {
		ttl  time.Duration
		now  time.Time
		want int32
	}{
		{0, now, 0},

		// Expired already, never for ever.
		{-1, now, expired},
		{-time.Millisecond, now, expired},
		{-time.Second, now, expired},
		{-100 * 365 * day, now, expired},
		{math.MinInt64, now, expired},

		// A fraction of a second is rounded up, never down to 0, for ever.
		{1, now, 1},
		{time.Millisecond, now, 1},
		{999 * time.Millisecond, now, 1},
		{time.Second, now, 1},
		{time.Second + 1, now, 2},
		{1500 * time.Millisecond, now, 2},
		{2 * time.Second, between, 2},
		{time.Minute, now, 60},
		{day, now, 86400},

		// Up to 30 days are seconds; more would be read as a Unix time of 1970.
		{month - time.Second, now, 2591999},
		{month - 1, now, 2592000},
		{month, now, 2592000},
		{month, between, 2592000},
		// The server's clock may be a second late, but a life must not be longer.
		{month + 1, now, 1_802_591_999},
		{month + time.Second, now, 1_802_592_000},
		{month + time.Second, between, 1_802_592_000},
		{month + 700*time.Millisecond, between, 1_802_592_000},
		{month + day, now, 1_802_678_399},
		{365 * day, now, 1_831_535_999},

		// Memcached's dates are an int32.
		{(math.MaxInt32 - 1_800_000_000) * time.Second, now, math.MaxInt32 - 1},
		{(math.MaxInt32 - 1_800_000_000 + 1) * time.Second, now, math.MaxInt32},
		{(math.MaxInt32 - 1_800_000_000 + 2) * time.Second, now, math.MaxInt32},
		{100 * 365 * day, now, math.MaxInt32},
		{math.MaxInt64, now, math.MaxInt32},

		// Where that is soon, or was, a month is the longest life.
		{365 * day, time.Unix(math.MaxInt32, 0).Add(-month - time.Second), math.MaxInt32},
		{365 * day, time.Unix(math.MaxInt32, 0).Add(-month), 2592000},
		{month + 1, time.Unix(math.MaxInt32, 0), 2592000},
		{math.MaxInt64, time.Unix(math.MaxInt32+100, 0), 2592000},
		{month, time.Unix(math.MaxInt32+100, 0), 2592000},
		{day, time.Unix(math.MaxInt32+100, 0), 86400},
		{-1, time.Unix(math.MaxInt32+100, 0), expired},
	} {
		assert.Equal(t, c.want, expiration(c.ttl, func() time.Time { return c.now }), "%v at %v", c.ttl, c.now)
	}
}
