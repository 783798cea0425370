// Package discovery finds out which servers there are: it asks the configuration
// endpoint of a cluster ([Cluster]) or the name service ([SRV]), and again every so
// often ([Watcher]).
package discovery

import "errors"

// Answer is a list of servers. It is whole: what is wrong in a part of it makes all
// of it an error, as a list that lacks servers sends their keys elsewhere.
type Answer struct {
	Servers []string // host:port, an IPv6 address in brackets; each once, at least one
	Version int64    // NoVersion where the source counts none
}

// NoVersion is the Version of a list whose changes only its servers tell.
const NoVersion = -1

// ErrClosed is what those get who wait for a [Watcher] that is closed.
var ErrClosed = errors.New("the discovery of servers is closed")
