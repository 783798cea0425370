package pool

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A socket that becomes idle while a sweep is under way must not be forgotten.
func TestSweepRacesWithIdling(t *testing.T) {
	const limit = 5 * time.Millisecond
	p := open(t, func(cfg *Config) { cfg.MaxIdleTime = limit })
	for range 60 {
		require.NoError(t, p.Do(context.Background(), get))
		// Idle for about as long as the sweep waits.
		time.Sleep(limit - time.Millisecond + time.Duration(rand.IntN(2000))*time.Microsecond)
		require.NoError(t, p.Do(context.Background(), get))
		deadline := time.Now().Add(5 * time.Second)
		for p.List().Servers[0].Stats().Idle > 0 {
			require.True(t, time.Now().Before(deadline), "no sweep came")
			time.Sleep(time.Millisecond)
		}
	}
}
