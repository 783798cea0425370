package pool

import (
	"bufio"
	"context"
	"crypto/tls"
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

// ErrAuth is in the chain of a call's error when the server refused the user or
// the password.
var ErrAuth = errors.New("authentication refused")

// dialError is a failure before the first request: name lookup, connect, TLS or
// authentication.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// dial opens a socket within the dial timeout and the call's context.
func (c *Conn) dial() (*socket, error) {
	s, p := c.server, c.server.pool
	parent := p.ctx
	if c.lane != nil {
		parent = c.lane.ctx
	}
	ctx, cancel := context.WithTimeout(parent, p.cfg.DialTimeout)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()

	s.dials.Add(1)
	sock, err := s.connect(ctx)
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
	if !over(parent) && p.ctx.Err() == nil {
		s.dialErrors.Add(1)
		if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
			s.timeouts.Add(1)
			// Not the caller's deadline: its error must not be context's.
			err = fmt.Errorf("no connection within the dial timeout of %v: %w", p.cfg.DialTimeout, os.ErrDeadlineExceeded)
		}
	}
	return nil, &dialError{err}
}

func (s *Server) connect(ctx context.Context) (*socket, error) {
	cfg := &s.pool.cfg
	var d net.Dialer
	plain, err := d.DialContext(ctx, s.Net, s.Address)
	if err != nil {
		return nil, err
	}
	sock := &socket{Conn: plain, plain: plain, server: s, peek: newPeeker(plain)}
	// The handshake and the authentication wait on the socket: the context
	// reaches them by its deadline.
	stop := context.AfterFunc(ctx, func() { plain.SetDeadline(longAgo) })
	err = func() error {
		if cfg.TLS != nil {
			t := tls.Client(plain, s.tlsConfig())
			sock.Conn = t
			if err := t.HandshakeContext(ctx); err != nil {
				return fmt.Errorf("TLS: %w", explainTLS(err))
			}
		}
		if cfg.User != "" {
			return s.authenticate(sock.Conn)
		}
		return nil
	}()
	if !stop() && err == nil {
		err = ctx.Err() // its deadline is, or will be, on the socket
	}
	if err != nil {
		plain.Close()
		return nil, err
	}
	sock.used = time.Now()
	return sock, nil
}

func (s *Server) tlsConfig() *tls.Config {
	cfg := s.pool.cfg.TLS
	if cfg.ServerName != "" || s.Net == "unix" {
		return cfg
	}
	host, _, err := net.SplitHostPort(s.Address)
	if err != nil {
		return cfg
	}
	cfg = cfg.Clone()
	cfg.ServerName = host
	return cfg
}

func explainTLS(err error) error {
	var record tls.RecordHeaderError
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.As(err, &certificate):
		return fmt.Errorf("%w (driver.WithTLSConfig takes RootCAs, and a ServerName)", err)
	case errors.As(err, &record):
		return fmt.Errorf("the server does not answer in TLS (is it a plain port?): %w", err)
	case errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("the server closed the connection in the handshake (is it a plain port?): %w", err)
	}
	return err
}

// authenticate logs in by memcached's ASCII authentication: a set of any key,
// whose value is user and password (protocol.txt, "Authentication"). A server
// that asks for none would store that value for all to read, so it is asked
// first.
func (s *Server) authenticate(nc net.Conn) error {
	r := bufio.NewReaderSize(nc, 512)
	ask := func(request string) (string, error) {
		if _, err := nc.Write([]byte(request)); err != nil {
			return "", fmt.Errorf("authentication: %w", err)
		}
		line, err := r.ReadString('\n')
		if err != nil {
			return "", fmt.Errorf("authentication: %w", err)
		}
		return strings.TrimRight(line, "\r\n"), nil
	}
	line, err := ask("version\r\n")
	if err != nil {
		return err
	}
	if strings.HasPrefix(line, "VERSION") {
		if s.openAccess.CompareAndSwap(false, true) {
			s.pool.cfg.Warnf("memcacheddriver: server %s asks for no authentication; the credentials were not sent", s.Address)
		}
		return nil
	}
	if !strings.HasPrefix(line, "CLIENT_ERROR ") {
		return fmt.Errorf("authentication: %w", protocol.LineError([]byte(line)))
	}
	secret := s.pool.cfg.User + " " + s.pool.cfg.Password
	line, err = ask(fmt.Sprintf("set auth 0 0 %d\r\n%s\r\n", len(secret), secret))
	if err != nil {
		return err
	}
	if line != "STORED" {
		return fmt.Errorf("%w: check the user and the password", ErrAuth)
	}
	return nil
}
