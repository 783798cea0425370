package memcachedotel

import (
	"reflect"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

func TestFiguresAreThoseOfStats(t *testing.T) {
	t.Parallel()
	// Every number another one.
	var stats memcacheddriver.ServerStats
	fields := reflect.ValueOf(&stats).Elem()
	for i := range fields.NumField() {
		switch f := fields.Field(i); f.Kind() {
		case reflect.Int, reflect.Int64:
			f.SetInt(int64(i + 1))
		case reflect.Uint64:
			f.SetUint(uint64(i + 1))
		}
	}
	want := map[string]any{
		"memcached.client.hits":                   stats.Hits,
		"memcached.client.misses":                 stats.Misses,
		"memcached.client.stores":                 stats.Stores,
		"memcached.client.errors":                 stats.Errors,
		"memcached.client.cancelled":              stats.Cancelled,
		"memcached.client.timeouts":               stats.Timeouts,
		"memcached.client.shared_calls":           stats.SharedCalls,
		"memcached.client.connection.dials":       stats.Dials,
		"memcached.client.connection.dial_errors": stats.DialErrors,
		"memcached.client.connection.stale":       stats.StaleConns,
		"memcached.client.connection.waits":       stats.Waits,
		"db.client.connection.max":                stats.MaxOpen,
		"db.client.connection.idle.max":           stats.MaxIdle,
		"db.client.connection.pending_requests":   stats.Waiting,
		"memcached.client.connection.dialing":     stats.Dialing,
		"memcached.client.connection.shared":      stats.Links,
	}
	got := make(map[string]any)
	for _, c := range counters {
		got[c.name] = c.value(&stats)
	}
	for _, l := range levels {
		got[l.name] = l.value(&stats)
	}
	assert.Equal(t, want, got)
}
