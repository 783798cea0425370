package memcacheddriver

import "time"

// ServerState is how the driver sees a server.
type ServerState string

const (
	// ServerUp is a server that calls are sent to.
	ServerUp ServerState = "up"

	// ServerDown is one whose calls fail at once with [ErrServerDown].
	ServerDown ServerState = "down"

	// ServerProbing is one that is down and that a call has tried again without a
	// verdict yet: it is under way, or its caller ended it.
	ServerProbing ServerState = "probing"
)

// ServerStats is a snapshot of one server. The counters begin when it is first in the
// list, and only grow; those of a server that was away for long may begin anew.
type ServerStats struct {
	// Addr is the address as the list of servers has it, with its port.
	Addr string

	// State is up, down or probing; see [WithServerFailureLimit].
	State ServerState

	// Idle and InUse count open connections: resting in the pool, and held by a
	// call. Dialing counts those that are being made. All together are at most
	// [WithMaxOpenConns].
	Idle, InUse, Dialing int

	// MaxOpen and MaxIdle are how many there may be, together and idle.
	MaxOpen, MaxIdle int

	// Waiting counts the calls that wait for a connection now, because as many are
	// in use as may be. Waits counts all that ever did, and WaitTime is what they
	// have waited together. Those that share a connection wait for it as one.
	Waiting  int
	Waits    uint64
	WaitTime time.Duration

	// Links counts the connections of those in use that many single-key calls share
	// now, and SharedCalls those that did. Calls do where more than a few are under way
	// on the server, or would have to wait for a connection.
	Links       int
	SharedCalls uint64

	// Dials counts attempts to connect, DialErrors those that failed, whether in
	// name look-up, connecting, TLS, authentication or the question what the server
	// speaks.
	Dials, DialErrors uint64

	// StaleConns counts idle connections that turned out to be closed by the
	// server, or too old, and were replaced before a call used them, or by a read
	// that was sent again. Those to a proxy that does not answer the question for
	// meta are too old after a minute.
	StaleConns uint64

	// Timeouts counts dial, write and read timeouts of the driver's, not the
	// deadlines of callers.
	Timeouts uint64

	// Cancelled counts calls that their context ended while they waited for this
	// server.
	Cancelled uint64

	// Hits and Misses count the keys that were found, and that were not, by Get, MGet,
	// Exists, TTL, Expire and CompareAndSwap, and by the gets of Do and Client. Stores
	// counts the values that were stored, by all of them.
	Hits, Misses, Stores uint64

	// Errors counts the driver's calls that failed here, of a batch this server's part,
	// [ErrServerDown] and refusals such as [ErrValueTooLarge] included; not those that
	// were cancelled or have lost a race (kv.ErrConflict), and none of Do and Client.
	Errors uint64

	// BytesRead and BytesWritten count what has come from the server and went to it, in
	// replies and requests; what TLS and making a connection add is not in them.
	BytesRead, BytesWritten uint64
}

// Stats returns a snapshot for each server, in the order of the list, one that is
// listed twice once. It is cheap, talks to no server, and is nil while the
// driver is not open, and empty until [WithDiscovery] has found the first servers.
func (db *MemcachedDB) Stats() []ServerStats {
	s := db.session.Load()
	if s == nil {
		return nil
	}
	nodes := s.nodes.Load().all
	stats := make([]ServerStats, len(nodes))
	for i, n := range nodes {
		st := n.server.Stats()
		sharedCalls, links := n.links.Stats()
		stats[i] = ServerStats{
			Addr:        st.Addr,
			State:       ServerState(st.State),
			Idle:        st.Idle,
			InUse:       st.InUse,
			Dialing:     st.Dialing,
			Waiting:     st.Waiting,
			Waits:       st.Waits,
			WaitTime:    st.WaitTime,
			Links:       links,
			SharedCalls: sharedCalls,
			Dials:       st.Dials,
			DialErrors:  st.DialErrors,
			StaleConns:  st.Stale,
			Timeouts:    st.Timeouts,
			Cancelled:   st.Cancelled,
			MaxOpen:     st.MaxOpen,
			MaxIdle:     st.MaxIdle,

			Hits:         st.Hits,
			Misses:       st.Misses,
			Stores:       st.Stores,
			Errors:       st.Errors,
			BytesRead:    st.BytesRead,
			BytesWritten: st.BytesWritten,
		}
	}
	return stats
}
