package memcacheddriver

import "time"

// isSubsecond reports whether the driver has to keep ttl itself. Every call with a
// TTL asks it, so here is where the log tells, once, of one whose unit was
// forgotten: kv.WithTTL(60) is 60 ns.
func (s *session) isSubsecond(ttl time.Duration) bool {
	if ttl <= 0 || ttl >= time.Second {
		return false
	}
	if ttl < time.Millisecond && s.toldOfUnit.CompareAndSwap(false, true) {
		s.warnf("memcacheddriver: a TTL of %v is under a millisecond: is its unit missing? Seconds are written 60*time.Second", ttl)
	}
	return true
}
