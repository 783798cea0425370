package memcacheddriver

import (
	"math"
	"time"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pipeline"
)

// maxRelative is the longest expiration that memcached reads as seconds from
// now; it takes a larger number for a Unix time (protocol.txt, "Expiration
// times").
const maxRelative = 30 * 24 * time.Hour

// expired is a Unix time that has passed. A negative expiration would do for
// memcached, but twemproxy closes the connection on one.
const expired = int32(maxRelative/time.Second) + 1

// expiration converts a TTL for the server: 0 for none, expired for a negative
// one, else seconds, rounded up, never down to 0, which would be for ever, or
// where that is too long a Unix time. The value ends a second or two before that:
// the server's clock may be a second late, and a value must not live longer than it
// was given. All versions of memcached read 32 bits of it: what ends after January
// 2038 ends then, or after 30 days if that is later.
func expiration(ttl time.Duration, clock func() time.Time) int32 {
	switch {
	case ttl == 0:
		return 0
	case ttl < 0:
		return expired
	case ttl <= maxRelative:
		return int32((ttl + time.Second - 1) / time.Second)
	}
	now := clock()
	switch unix := now.Add(ttl).Unix() - 1; {
	case unix <= math.MaxInt32:
		return int32(unix)
	case now.Add(maxRelative).Unix() < math.MaxInt32:
		return math.MaxInt32
	}
	return int32(maxRelative / time.Second)
}

// seconds is the expiration of a ttl that is given now, on any server.
func seconds(ttl time.Duration) pipeline.Expiration {
	e := expiration(ttl, time.Now)
	return pipeline.Expiration{Meta: e, Classic: e}
}
