package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// dialError is a failure before the first request: name look-up, connect, TLS,
// authentication or the question for meta.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// dial opens a socket within the dial timeout and the context of a call.
func (s *Server) dial(call context.Context) (*socket, error) {
	ctx, cancel := context.WithTimeout(call, s.cfg.DialTimeout)
	defer cancel()
	defer context.AfterFunc(s.closing, cancel)()

	sock, err := s.open(ctx)
	if err == nil && !s.add(sock) {
		sock.close()
		err = ErrClosed
	}
	if err == nil {
		return sock, nil
	}
	var lookup *net.DNSError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		err = fmt.Errorf("%w (is memcached running there?)", err)
	case errors.As(err, &lookup) && lookup.IsNotFound:
		err = fmt.Errorf("%w (check the host name)", err)
	}
	if !ended(call) && s.closing.Err() == nil {
		s.dialErrors.Add(1)
		if ended(ctx) {
			// Not the caller's deadline: its error must not be context's.
			err = fmt.Errorf("no connection within the dial timeout of %v: %w", s.cfg.DialTimeout, os.ErrDeadlineExceeded)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.timeouts.Add(1)
		}
	}
	return nil, &dialError{err}
}

// open connects and asks for meta. Where that gets no answer it connects anew,
// without the question: what cannot take the question may serve all else.
func (s *Server) open(ctx context.Context) (*socket, error) {
	sock, err := s.connect(ctx)
	if err != nil {
		return nil, err
	}
	before := s.question.Load()
	wait := min(s.cfg.ReadTimeout, s.cfg.DialTimeout/2)
	switch before {
	case answered:
		wait = s.cfg.ReadTimeout // it can: it is just slow, or frozen
	case ignored:
		wait = min(wait, metaWait)
	}
	limit, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	err = within(limit, sock.plain, func() (err error) {
		sock.meta, err = askMeta(sock.Conn)
		return err
	})
	if err == nil {
		s.question.Store(answered)
		sock.proven = true
		return sock, nil
	}
	sock.close()
	silent := limit.Err() != nil
	if ctx.Err() != nil || !silent && !isClosed(err) {
		return nil, err
	}
	s.question.Store(ignored)
	if silent && before == answered {
		return nil, fmt.Errorf("no complete reply within the read timeout of %v, which WithTimeout sets: %w", wait, os.ErrDeadlineExceeded)
	}
	if sock, err = s.connect(ctx); err == nil {
		sock.askAgain = time.Now().Add(metaAgain)
	}
	return sock, err
}

// connect opens a connection and makes it ready for a command: TLS, then
// authentication.
func (s *Server) connect(ctx context.Context) (*socket, error) {
	s.dials.Add(1)
	var d net.Dialer
	plain, err := d.DialContext(ctx, s.Net, s.Address)
	if err != nil {
		return nil, err
	}
	sock := &socket{Conn: plain, plain: plain, server: s, peeker: newPeeker(plain), used: time.Now()}
	err = within(ctx, plain, func() error {
		if s.cfg.TLS != nil {
			if sock.Conn, err = s.handshake(ctx, plain); err != nil {
				return err
			}
		}
		if s.cfg.User != "" {
			return s.authenticate(sock.Conn)
		}
		return nil
	})
	if err != nil {
		plain.Close()
		return nil, err
	}
	return sock, nil
}

// within runs fn, and ends what it waits for on nc when ctx ends. nc cannot be
// used any more where ctx did.
func within(ctx context.Context, nc net.Conn, fn func() error) error {
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(longAgo) })
	err := fn()
	if !stop() && err == nil {
		err = ctx.Err() // the deadline is, or will be, on nc
	}
	return err
}

// isClosed reports whether the server ended the connection.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
