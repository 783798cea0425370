package memcachedtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// StartUnix is [Start] on a Unix socket, whose path the server's Addr is.
func StartUnix(t testing.TB, args ...string) *Server {
	t.Helper()
	s := newServer(t)
	s.addr = filepath.Join(s.dir, "socket")
	s.args = args
	s.mustStart()
	return s
}

// StartAuth is [Start] of a server that wants ASCII authentication with user
// and password, which hold no colon and no space.
func StartAuth(t testing.TB, user, password string, args ...string) *Server {
	t.Helper()
	s := newServer(t)
	s.user, s.password = user, password
	s.args = append([]string{"-Y", s.file("auth", user+":"+password+"\n")}, args...)
	s.mustStart()
	return s
}

// StartTLS is [Start] of a server that speaks TLS, with a certificate for
// localhost, 127.0.0.1 and ::1. The returned config trusts the certificate's
// authority, which is this server's alone, and is the caller's to change.
func StartTLS(t testing.TB, args ...string) (*Server, *tls.Config) {
	t.Helper()
	s := newServer(t)
	chain, key, roots := serverCertificate(t)
	s.tls = &tls.Config{RootCAs: roots}
	s.args = append([]string{
		"-Z", "-o", "ssl_chain_cert=" + s.file("cert.pem", chain) + ",ssl_key=" + s.file("key.pem", key),
	}, args...)
	s.mustStart()
	return s, s.tls.Clone()
}

// file writes a file that the server reads and returns its path.
func (s *Server) file(name, content string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// serverCertificate makes an authority and a certificate signed by it; chain
// and key are PEM.
func serverCertificate(t testing.TB) (chain, key string, roots *x509.CertPool) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "memcachedtest authority"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, authorityKey.Public(), authorityKey)
	must(err)
	authority, err := x509.ParseCertificate(der)
	must(err)
	roots = x509.NewCertPool()
	roots.AddCert(authority)

	serverKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	der, err = x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2),
		Subject:      pkix.Name{CommonName: "localhost"},
		DNSNames:     []string{"localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		NotBefore:    template.NotBefore,
		NotAfter:     template.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, authority, serverKey.Public(), authorityKey)
	must(err)
	chain = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	der, err = x509.MarshalPKCS8PrivateKey(serverKey)
	must(err)
	key = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	return chain, key, roots
}
