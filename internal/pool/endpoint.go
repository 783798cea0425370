package pool

import (
	"context"
	"io"
)

// Endpoint returns a server that keys are not spread over, and that [Server.Exchange]
// asks something else.
func (p *Pool) Endpoint(a Addr) *Server { return p.newServer(a) }

// Exchange runs fn on a connection of its own, with the TLS and the credentials that all
// have, until ctx ends. It counts for and against no server.
func (s *Server) Exchange(ctx context.Context, fn func(io.ReadWriter) error) error {
	sock, err := s.connect(ctx)
	if err == nil {
		defer sock.close()
		err = within(ctx, sock.plain, func() error { return fn(sock.Conn) })
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	}
	s.HideCredentials(err)
	return s.explainDial(err)
}
