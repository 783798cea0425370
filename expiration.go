package memcacheddriver

import (
	"math"
	"time"
)

// maxRelative is the longest expiration that memcached reads as seconds from
// now; it takes a larger number for a Unix time (protocol.txt, "Expiration
// times").
const maxRelative = 30 * 24 * time.Hour

// expiration converts a TTL for the server: 0 for none, seconds or a Unix time
// rounded up, never down to a shorter life (or to 0, which would be for ever),
// and -1, already expired, for a negative one.
func expiration(ttl time.Duration, now time.Time) int32 {
	switch {
	case ttl == 0:
		return 0
	case ttl < 0:
		return -1
	case ttl <= maxRelative:
		return int32((ttl + time.Second - 1) / time.Second)
	}
	at := now.Add(ttl)
	unix := at.Unix()
	if at.Nanosecond() > 0 {
		unix++
	}
	return clampUnix(unix)
}

// clampUnix keeps a Unix time within what gomemcache can send.
func clampUnix(at int64) int32 { return int32(min(at, math.MaxInt32)) }
