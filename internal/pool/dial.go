package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// errAbandoned means that a dial was given up, as the server is known to be down.
var errAbandoned = fmt.Errorf("the dial was given up: %w", context.Canceled)

// dial opens a socket, by open, within the dial timeout. No caller's context ends it: the
// next caller finds the connection, and a server that does not answer has failed however
// soon the callers gave up.
func (s *Server) dial(ctx context.Context, open func(context.Context) (*socket, error)) (sock *socket, err error) {
	if s.cfg.Dialing != nil {
		done := s.cfg.Dialing(s.Address)
		defer func() { done(err) }()
	}
	deadline := time.Now().Add(s.cfg.DialTimeout)
	limited, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	sock, err = open(limited)
	switch {
	case err == nil:
		return sock, nil
	case ctx.Err() != nil: // Close, too
		return nil, errAbandoned
	}
	s.dialErrors.Add(1)
	switch {
	case !time.Now().Before(deadline): // the network knows it, and may see it pass before the context does
		err = fmt.Errorf("no connection within the dial timeout of %v: %w", s.cfg.DialTimeout, os.ErrDeadlineExceeded)
		s.answersMeta.Store(false)
	case errors.Is(err, context.DeadlineExceeded): // of one of several addresses; it is not the caller's
		text := strings.TrimSuffix(err.Error(), ": "+os.ErrDeadlineExceeded.Error())
		err = fmt.Errorf("%s: %w", text, os.ErrDeadlineExceeded)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		s.timeouts.Add(1)
	}
	s.HideCredentials(err)
	return nil, s.explainDial(err)
}

// explainDial says what a failure to connect means, and what to do.
func (s *Server) explainDial(err error) error {
	var lookup *net.DNSError
	var reply *protocol.ReplyError
	switch {
	case errors.Is(err, errRefused), errors.Is(err, syscall.ENOENT):
		return fmt.Errorf("%w (is memcached running there?)", err)
	case errors.As(err, &reply) && reply.TooManyConns():
		return fmt.Errorf("%w: %w", ErrTooManyConns, err)
	case errors.As(err, &lookup) && !isShortage(err):
		if shortage := noDescriptors(); shortage != nil { // which a look-up does not tell
			return s.explainDial(fmt.Errorf("%w: %w", err, shortage))
		}
		if lookup.IsNotFound {
			return fmt.Errorf("%w (check the host name)", err)
		}
	case s.isShort(err):
		return fmt.Errorf("this machine has no more to open a connection with (see ulimit -n, and the range of local ports): %w", err)
	}
	return err
}

// noDescriptors returns the error of a process that can open no more files.
func noDescriptors() error {
	f, err := os.Open(os.DevNull)
	if err != nil && isShortage(err) {
		return err
	}
	if err == nil {
		f.Close()
	}
	return nil
}

// open connects and asks for meta. A server that does not answer, twice where it
// closes the connection, as it may just be restarting, is connected to anew and for
// a while not asked: what cannot take the question may serve all else.
func (s *Server) open(ctx context.Context) (*socket, error) {
	until := time.Unix(0, s.askAgain.Load()) // when to ask again
	for closed := 0; ; {
		sock, err := s.connect(ctx)
		if err != nil {
			return nil, err
		}
		if time.Now().Before(until) {
			sock.askAgain = until
			return sock, nil
		}
		answers := s.answersMeta.Load() // and is frozen where it is silent
		wait := s.cfg.ReadTimeout
		if !answers {
			wait = min(wait, s.cfg.DialTimeout/2) // which leaves time to connect anew
		}
		limit, cancel := context.WithTimeout(ctx, wait)
		err = within(limit, sock.plain, func() (err error) {
			sock.meta, err = askMeta(sock.Conn)
			return err
		})
		silent := limit.Err() != nil
		cancel()
		if err == nil {
			s.answersMeta.Store(true)
			s.prove()
			sock.hear()
			return sock, nil
		}
		sock.close()
		switch {
		case ctx.Err() != nil:
			if !answers && ctx.Err() == context.DeadlineExceeded { // not given up
				s.doNotAsk()
			}
			return nil, err
		case silent && answers:
			s.answersMeta.Store(false)
			return nil, fmt.Errorf("no complete reply within the read timeout of %v, which WithTimeout sets: %w", wait, os.ErrDeadlineExceeded)
		case silent, err == errNoVerdict:
			until = s.doNotAsk()
		case isClosed(err):
			if closed++; closed == 2 {
				until = s.doNotAsk()
			}
		default:
			return nil, err
		}
	}
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
	sock := &socket{Conn: plain, plain: plain, server: s, peeker: newPeeker(plain), used: sinceStart()}
	ready := false // stays so when a callback of the user's TLS calls runtime.Goexit
	defer func() {
		if !ready {
			plain.Close()
		}
	}()
	err = within(ctx, plain, func() error {
		if s.cfg.TLS != nil {
			if sock.Conn, err = s.handshake(ctx, plain); err != nil {
				return err
			}
		}
		if s.cfg.User != "" {
			if err := s.authenticate(sock.Conn); err != nil {
				return err
			}
			s.prove()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	ready = true
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
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || isReset(err)
}
