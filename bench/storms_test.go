package main

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/stretchr/testify/require"
	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

func TestTallyTellsHowCallsEnd(t *testing.T) {
	broken := errors.New("broken")
	for _, c := range []struct {
		value string
		err   error
		want  tally
	}{
		{valueOf("key"), nil, tally{answered: 1}},
		{valueOf("another"), nil, tally{wrong: 1}},
		{"", kv.ErrNotFound, tally{wrong: 1}},
		{"", memcache.ErrCacheMiss, tally{wrong: 1}},
		{"", fmt.Errorf("%w: %w", memcacheddriver.ErrServerDown, os.ErrDeadlineExceeded), tally{refused: 1}},
		{"", os.ErrDeadlineExceeded, tally{timeouts: 1}},
		{"", &memcache.ConnectTimeoutError{}, tally{timeouts: 1}},
		{"", broken, tally{failed: 1, err: broken}},
	} {
		var got tally
		got.call(library{get: func(string) ([]byte, error) { return []byte(c.value), c.err }}, opGet, "key")
		got.slowest = 0
		require.Equal(t, c.want, got)
	}
}
