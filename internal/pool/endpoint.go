package pool

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// Endpoint returns a server that keys are not spread over, and that [Server.Exchange]
// asks something else.
func (p *Pool) Endpoint(a Addr) *Server { return newServer(a, &p.cfg, p.closing) }

// Exchange runs fn on a connection of its own, with the TLS, the credentials and the
// timeouts that all have, until ctx ends. It counts for and against no server.
func (s *Server) Exchange(ctx context.Context, fn func(io.ReadWriter) error) error {
	sock, err := s.dial(ctx, s.connect)
	switch {
	case err == errAbandoned:
		return ctx.Err()
	case err != nil:
		return err
	}
	defer sock.close()
	limited, cancel := context.WithTimeout(ctx, s.cfg.ReadTimeout)
	defer cancel()
	err = within(limited, sock.plain, func() error { return fn(sock.Conn) })
	var reply *protocol.ReplyError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case limited.Err() != nil:
		err = os.ErrDeadlineExceeded
	case errors.As(err, &reply) && reply.Unauthenticated():
		return errNoCredentials
	}
	s.HideCredentials(err)
	return s.describe(err, false)
}
