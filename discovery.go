package memcacheddriver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/discovery"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// maxLookup bounds what a look-up takes of a longer timeout, as several add up.
const maxLookup = time.Hour

// DiscoveryStats is what has become of the look-ups of [WithDiscovery].
type DiscoveryStats struct {
	// Endpoint is what is asked: the configuration endpoints or the SRV name of the
	// DSN. It is empty where the driver does not discover, or is not open.
	Endpoint string

	// Version is that of the list in use, as the configuration endpoint counts; -1
	// where there is no list yet, and for SRV, which has none.
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
		Endpoint:    s.cfg.endpoint(),
		Version:     status.Version,
		LastSuccess: status.LastSuccess,
		LastError:   status.LastError,
	}
}

// endpoint is what discovery asks, in words.
func (c *config) endpoint() string {
	if c.discovery == SRV {
		return c.srvName
	}
	var names []string
	for _, e := range c.servers {
		names = append(names, e.Address)
	}
	return strings.Join(names, ",")
}

func (s *session) newWatcher() *discovery.Watcher {
	c := discovery.Config{
		Name:     s.cfg.endpoint(),
		Timeout:  s.cfg.dialTimeout, // which is the name look-up's as well
		Interval: s.cfg.discoveryInterval,
		Apply:    s.applyServers,
		Infof:    s.infof,
		Warnf:    s.warnf,
	}
	if s.cfg.discovery == ElastiCache {
		once := min(s.cfg.dialTimeout, maxLookup) + min(s.cfg.readTimeout, maxLookup)
		c.Timeout = once * time.Duration(len(s.cfg.servers))
		c.Lookup = s.clusterLookup(once)
	} else {
		c.Lookup = func(ctx context.Context) (discovery.Answer, error) {
			return discovery.SRV(ctx, s.cfg.resolver, s.cfg.srvName)
		}
	}
	return discovery.New(c)
}

// clusterLookup returns a look-up that asks the configuration endpoints in their order,
// until one answers.
func (s *session) clusterLookup(timeout time.Duration) func(context.Context) (discovery.Answer, error) {
	var endpoints []*pool.Server
	for _, e := range s.cfg.servers {
		endpoints = append(endpoints, s.pool.Endpoint(e.Addr))
	}
	return func(ctx context.Context) (answer discovery.Answer, err error) {
		var errs []error
		for _, endpoint := range endpoints {
			limited, cancel := context.WithTimeout(ctx, timeout)
			err := endpoint.Exchange(limited, func(rw io.ReadWriter) (err error) {
				answer, err = discovery.Cluster(rw)
				return err
			})
			cancel()
			if err == nil {
				return answer, nil
			}
			if len(endpoints) > 1 {
				err = fmt.Errorf("%s: %w", endpoint, err)
			}
			errs = append(errs, err)
		}
		return answer, joinErrors(errs)
	}
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

// awaitServers waits for the first list.
func (s *session) awaitServers(ctx context.Context) error {
	err := s.watcher.Wait(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, discovery.ErrClosed):
		return ErrNotOpen
	case ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return fmt.Errorf("discovery of servers by %s: %w", s.cfg.endpoint(), pool.Ended(ctx))
	}
	return err
}
