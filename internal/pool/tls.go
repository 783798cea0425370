package pool

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
)

// handshake puts TLS on a connection.
func (s *Server) handshake(ctx context.Context, plain net.Conn) (*tls.Conn, error) {
	t := tls.Client(plain, s.tlsConfig())
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS: %w", explainTLS(err))
	}
	return t, nil
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
