package pool

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The network gives each of a name's addresses a part of the time. That one of them did not
// answer in its part is not the end of the caller's context.
func TestADialThatGivesUpOneOfSeveralAddresses(t *testing.T) {
	p := open(t, func(cfg *Config) { cfg.DialTimeout = time.Minute })
	s := p.List().Servers[0]
	_, timeout := (&net.Dialer{Deadline: time.Now().Add(-time.Second)}).Dial("tcp", s.Address)
	require.ErrorIs(t, timeout, context.DeadlineExceeded, "as net has it")
	_, err := s.dial(t.Context(), func(context.Context) (*socket, error) { return nil, timeout })
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.Equal(t, timeout.Error(), err.Error())
	require.NotErrorIs(t, err, context.DeadlineExceeded)
	require.EqualValues(t, 1, s.Stats().Timeouts)
}
