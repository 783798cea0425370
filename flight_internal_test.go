package memcacheddriver

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// Who waits for another's refresh, as he has no value, loads when it comes to nothing.
func TestFetchThatHasJoinedWhatComesToNothing(t *testing.T) {
	t.Parallel()
	store, err := OpenStore(t.Context(), memcachedtest.StartFake(t, nil).Addr())
	require.NoError(t, err)
	defer store.Close()
	fs := &Unwrap(store).fetches
	proceed := make(chan bool)
	refreshes := make(chan error)
	go func() {
		_, err := fs.do(t.Context(), "k", false, func(context.Context) ([]byte, error) {
			<-proceed
			return nil, errInFlight
		})
		refreshes <- err
	}()
	waiting := func(n int) func() bool { return func() bool { return Fetchers(store, "k") == n } }
	memcachedtest.Eventually(t, waiting(1), "the refresh is under way")
	joins := make(chan int)
	go func() {
		value, err := Fetch(t.Context(), store, "k", time.Hour, func(context.Context) (int, error) { return 7, nil })
		assert.NoError(t, err)
		joins <- value
	}()
	memcachedtest.Eventually(t, waiting(2), "the miss has joined")
	close(proceed)
	assert.Equal(t, errInFlight, <-refreshes)
	assert.Equal(t, 7, <-joins)
}
