package memcacheddriver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/discovery"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// maxLookup bounds what a look-up takes of a timeout of the user's, as they add up.
const maxLookup = time.Hour

// DiscoveryStats is what has become of the look-ups of [WithDiscovery].
type DiscoveryStats struct {
	// Endpoint is what is asked: the configuration endpoints or the SRV name of the
	// DSN. It is empty where the driver does not discover, or is not open.
	Endpoint string

	// Version is that of the list in use, as the configuration endpoint counts; -1
	// where there is no list yet, and by SRV, which counts none. It means nothing
	// where Endpoint is empty.
	Version int64

	// LastSuccess is when an answer last confirmed or changed the servers; zero is
	// never.
	LastSuccess time.Time

	// LastError is that of the last look-up; nil where it succeeded.
	LastError error
}

// DiscoveryStats returns what has become of the look-ups of [WithDiscovery]. It is cheap
// and asks nobody. [MemcachedDB.Stats] has the servers that were found.
func (db *MemcachedDB) DiscoveryStats() DiscoveryStats {
	s := db.session.Load()
	if s == nil || s.watcher == nil {
		return DiscoveryStats{}
	}
	status := s.watcher.Status()
	return DiscoveryStats{
		Endpoint:    s.watcher.Name(),
		Version:     status.Version,
		LastSuccess: status.LastSuccess,
		LastError:   status.LastError,
	}
}

func (s *session) newWatcher() *discovery.Watcher {
	c := discovery.Config{
		Timeout:  min(s.cfg.dialTimeout, maxLookup), // which is the name look-up's as well
		Interval: s.cfg.discoveryInterval,
		Apply:    s.applyServers,
		Infof:    s.infof,
		Warnf:    s.warnf,
	}
	if s.cfg.discovery == SRV {
		c.Sources = []discovery.Source{{Name: s.cfg.srvName, Lookup: func(ctx context.Context) (discovery.Answer, error) {
			return discovery.SRV(ctx, s.cfg.resolver, s.cfg.srvName)
		}}}
	} else {
		c.Timeout += min(s.cfg.readTimeout, maxLookup)
		for _, e := range s.cfg.endpoints {
			endpoint := s.pool.Endpoint(e.Addr)
			c.Sources = append(c.Sources, discovery.Source{Name: e.Address, Lookup: func(ctx context.Context) (answer discovery.Answer, err error) {
				err = endpoint.Exchange(ctx, func(rw io.ReadWriter) error {
					answer, err = discovery.Cluster(rw)
					return err
				})
				return answer, err
			}})
		}
	}
	return discovery.New(c)
}

// applyServers makes the servers those that were discovered.
func (s *session) applyServers(addresses []string) error {
	var entries []pool.Entry
	for _, a := range addresses {
		entries = append(entries, pool.Entry{Addr: pool.Addr{Net: "tcp", Address: a}, Weight: 1})
	}
	if err := s.cfg.checkCredentials(entries); err != nil {
		return err
	}
	return s.replaceServers(entries)
}

// ready waits until a call on keys knows its servers.
func (s *session) ready(ctx context.Context, op string, keys ...string) error {
	if s.watcher == nil {
		return nil
	}
	if err := s.awaitServers(ctx); err != nil {
		return &OpError{Op: op, Keys: slices.Clone(keys), Err: err} // or the keys of every call would be on the heap
	}
	return nil
}

// awaitServers waits for the first list.
func (s *session) awaitServers(ctx context.Context) error {
	err := s.watcher.Wait(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, discovery.ErrClosed):
		return ErrNotOpen
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return fmt.Errorf("discovery of servers by %s: %w", s.watcher.Name(), pool.Ended(ctx))
	}
	return err
}
