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
// unless the user has given one.
func (s *Server) tlsConfig() *tls.Config {
	cfg := s.cfg.TLS
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
	case isClosed(err):
		return fmt.Errorf("the server closed the connection in the handshake (is it a plain port?): %w", err)
	}
	return err
}
