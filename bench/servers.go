package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// startTimeout bounds the start of a server, which takes some 10 ms.
const startTimeout = 10 * time.Second

// server is a process of its own, or the proxy before one.
type server struct {
	addr string
	pid  int // of the server, not of the proxy
	stop func()
}

// place is where work is done: on which servers, and over what.
type place struct {
	memcached []server
	redis     []server // one or, where there is nothing to compare it with, none
	tls       *tls.Config
}

// The places, by their names in the tables.
const (
	near    = "1 server"
	three   = "3 servers"
	threads = "`-t 4`"
	delayed = "+0.5 ms"
	secured = "TLS"
)

// addedRoundTrip is what the delaying proxies add.
const addedRoundTrip = 500 * time.Microsecond

// servers are what all clients work on.
type servers struct {
	binary   string // memcached
	places   map[string]place
	versions []string

	dir   string // of the certificate
	stops []func()
}

// startServers starts them all.
func startServers() (_ *servers, err error) {
	s := &servers{}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	if s.binary, err = find("memcached"); err != nil {
		return nil, err
	}
	redisServer, err := find("redis-server")
	if err != nil {
		return nil, err
	}
	s.versions = []string{version(s.binary, "-V"), version(redisServer, "--version")}
	if s.dir, err = os.MkdirTemp("", "bench-"); err != nil {
		return nil, err
	}
	config, options, err := certificate(s.dir)
	if err != nil {
		return nil, err
	}

	redis, err := s.start(redisServer, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port")
	if err != nil {
		return nil, err
	}
	var plain []server
	for range 3 {
		one, err := s.startMemcached("-t", "1", "-m", "256", "-c", "4096")
		if err != nil {
			return nil, err
		}
		plain = append(plain, one)
	}
	fourThreads, err := s.startMemcached("-t", "4", "-m", "256", "-c", "4096")
	if err != nil {
		return nil, err
	}
	overTLS, err := s.startMemcached("-t", "1", "-m", "256", "-c", "4096", "-Z", "-o", options)
	if err != nil {
		return nil, err
	}
	slow, err := s.startDelay(addedRoundTrip, plain[0], redis)
	if err != nil {
		return nil, err
	}
	s.places = map[string]place{
		near:    {memcached: plain[:1], redis: []server{redis}},
		three:   {memcached: plain},
		threads: {memcached: []server{fourThreads}, redis: []server{redis}},
		delayed: {memcached: slow[:1], redis: slow[1:]},
		secured: {memcached: []server{overTLS}, tls: config},
	}
	return s, nil
}

func (s *servers) stop() {
	for _, stop := range s.stops {
		stop()
	}
	os.RemoveAll(s.dir)
}

// certificate writes one for 127.0.0.1 and its key to dir, and returns what a
// client trusts it by and the options of memcached's that serve it.
func certificate(dir string) (*tls.Config, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, "", err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, "", err
	}
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...)
	path := filepath.Join(dir, "server.pem")
	if err := os.WriteFile(path, chain, 0o600); err != nil {
		return nil, "", err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(chain)
	return &tls.Config{RootCAs: roots}, fmt.Sprintf("ssl_chain_cert=%s,ssl_key=%s", path, path), nil
}

// find looks for a binary also where a service's PATH does not.
func find(name string) (string, error) {
	if bin, err := exec.LookPath(name); err == nil {
		return bin, nil
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/opt/homebrew/bin"} {
		if bin, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return bin, nil
		}
	}
	return "", fmt.Errorf("no %s here; setup.sh installs it", name)
}

// guard runs a server and says its process id, until its standard input ends,
// however this program does, so that no server is ever left behind. Ctrl-C
// reaches it, too.
const guard = `trap '' HUP INT QUIT TERM; "$@" >/dev/null 2>&1 & echo $!; read -r _; kill -9 $!; wait`

func (s *servers) startMemcached(args ...string) (server, error) {
	return s.start(s.binary, append(args, "-l", "127.0.0.1", "-U", "0", "-u", "root", "-p")...)
}

// start runs a server with a free port as its last argument.
func (s *servers) start(bin string, args ...string) (server, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return server{}, err
	}
	addr := l.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	l.Close()

	cmd := exec.Command("/bin/sh", append(append([]string{"-c", guard, "sh", bin}, args...), port)...)
	lines, stop, err := s.run(cmd)
	if err != nil {
		return server{}, err
	}
	lines.Scan()
	pid, err := strconv.Atoi(lines.Text())
	if err != nil {
		return server{}, err
	}
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(5 * time.Millisecond) {
		nc, err := net.Dial("tcp", addr)
		if err == nil {
			nc.Close()
			return server{addr, pid, stop}, nil
		}
		if time.Now().After(deadline) {
			return server{}, fmt.Errorf("%s does not start: %w", bin, err)
		}
	}
}

// run starts a process that ends when its standard input does, and returns what
// it prints.
func (s *servers) run(cmd *exec.Cmd) (*bufio.Scanner, func(), error) {
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	stop := func() {
		stdin.Close()
		cmd.Wait()
	}
	s.stops = append(s.stops, stop)
	return bufio.NewScanner(stdout), stop, nil
}

// startDelay starts the proxies of delay.go in a process of their own, so that
// they share neither the scheduler nor the heap with what is measured.
func (s *servers) startDelay(delay time.Duration, targets ...server) ([]server, error) {
	// A binary that does not know the command, a test's, would start servers and
	// itself once more, and so on.
	if os.Getenv(delayVariable) != "" {
		return nil, errors.New("this process was started as a delaying proxy; it starts none")
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := []string{delayCommand, delay.String()}
	for _, target := range targets {
		args = append(args, target.addr)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), delayVariable+"=1")
	lines, _, err := s.run(cmd)
	if err != nil {
		return nil, err
	}
	for i := range targets {
		if !lines.Scan() {
			return nil, errors.Join(errors.New("the delaying proxy does not start"), lines.Err())
		}
		targets[i].addr = lines.Text()
	}
	return targets, nil
}

// version returns the first word with a number in what a binary says of itself.
func version(bin, flag string) string {
	said, _ := exec.Command(bin, flag).Output()
	for _, word := range strings.Fields(string(said)) {
		word = strings.TrimPrefix(word, "v=")
		if _, err := strconv.Atoi(word[:1]); err == nil {
			return filepath.Base(bin) + " " + word
		}
	}
	return filepath.Base(bin)
}
