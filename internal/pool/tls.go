package pool

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// handshake puts TLS on a connection.
func (s *Server) handshake(ctx context.Context, plain net.Conn) (*tls.Conn, error) {
	head := &headConn{Conn: plain}
	t := tls.Client(head, s.tlsConfig())
	if err := t.HandshakeContext(ctx); err != nil {
		line, _, _ := bytes.Cut(head.head, []byte("\r\n"))
		if full := (&protocol.ReplyError{Line: string(line)}); full.TooManyConns() {
			return nil, full // which memcached says in the clear
		}
		return nil, fmt.Errorf("TLS: %w", explainTLS(err))
	}
	head.done = true
	head.head = nil
	return t, nil
}

// headConn remembers the first bytes that come until the handshake is done.
type headConn struct {
	net.Conn
	head []byte
	done bool
}

func (c *headConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if !c.done && len(c.head) < protocol.MaxLine {
		c.head = append(c.head, p[:n]...)
	}
	return n, err
}

// tlsConfig takes the name that the certificate must have from the address,
// unless the user has given one. Records are as long as what is written, up to
// protocol.MaxRecord: memcached (1.6.18) forgets what stands behind a value in a record
// in which the value did not begin, until something else comes.
func (s *Server) tlsConfig() *tls.Config {
	cfg := s.cfg.TLS.Clone()
	cfg.DynamicRecordSizingDisabled = true
	if cfg.ServerName != "" || s.Net == "unix" {
		return cfg
	}
	if host, _, err := net.SplitHostPort(s.Address); err == nil {
		cfg.ServerName = host
	}
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
	case isClosed(err):
		return fmt.Errorf("the server closed the connection in the handshake (is it a plain port?): %w", err)
	}
	return err
}
