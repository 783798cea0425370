// Package memcachedtest runs real memcached servers for tests: servers of a
// test's own, to kill, restart and freeze ([Start], [StartUnix], [StartTLS],
// [StartAuth]), and one that all tests of a package share ([Addr]). What those
// cannot be made to say or do, a scripted one does ([StartFake]), a configuration
// endpoint for one ([ConfigEndpoint]). [StartNameServer] starts a name server.
//
// A real server keeps no goroutine in the test binary, so a goroutine-leak check
// may run while it is up, and it never outlives the binary, however that ends.
package memcachedtest

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// startTimeout bounds Start and Restart; a start takes some 10 ms.
const startTimeout = 10 * time.Second

// Server is a running memcached. Its methods are safe for concurrent use.
type Server struct {
	t    testing.TB
	bin  string
	dir  string   // scratch files: standard error, socket, certificates
	addr string   // host:port, or the path of a Unix socket
	args []string // the caller's
	more []string // those of RestartWith

	tls            *tls.Config // nil: a plain connection
	user, password string      // "": no authentication

	mu   sync.Mutex
	proc *process // nil while killed
}

// Start starts a memcached on a free port of 127.0.0.1, with args after its
// own arguments, and returns when it answers. The server is killed when the
// test ends.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	s := newServer(t)
	s.args = args
	s.mustStart()
	return s
}

// Addr returns the server's host:port, or the path of its Unix socket. It
// stays the same over [Server.Restart].
func (s *Server) Addr() string { return s.addr }

// Pid returns the server's process ID, 0 while it is killed.
func (s *Server) Pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil {
		return 0
	}
	return s.proc.pid
}

// Kill ends the server at once with SIGKILL, also a stopped one, and returns
// when it is gone: its connections are reset, its port refuses new ones.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.kill()
}

func (s *Server) kill() {
	if s.proc != nil {
		s.proc.kill()
		s.proc = nil
	}
}

// Restart starts the server again, empty, on the same address and with the
// same arguments, after killing it if it still runs. It returns when the
// server answers; that it does not is an error of the test.
func (s *Server) Restart() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.restart()
}

// RestartWith is [Server.Restart] with further arguments, in place of those of an
// earlier RestartWith.
func (s *Server) RestartWith(args ...string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.more = args
	s.restart()
}

func (s *Server) restart() {
	s.t.Helper()
	s.kill()
	// A connection that is just being torn down may hold the port for a moment.
	deadline := time.Now().Add(startTimeout)
	err := s.run()
	for errors.Is(err, errPortTaken) && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
		err = s.run()
	}
	if err != nil {
		s.t.Errorf("memcachedtest: restarting %s: %v", s.addr, err)
	}
}

// Stop freezes the server with SIGSTOP: the kernel still accepts connections
// and bytes for it, but nothing answers. It returns when the server stands. On
// Windows it fails the test.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil {
		if err := s.proc.stop(); err != nil {
			s.t.Errorf("memcachedtest: stopping %s: %v", s.addr, err)
		}
	}
}

// Cont lets a stopped server run on. The end of the test does so by itself.
func (s *Server) Cont() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc != nil {
		if err := s.proc.cont(); err != nil {
			s.t.Errorf("memcachedtest: continuing %s: %v", s.addr, err)
		}
	}
}

// Stats returns what the server answers to "stats", asked over a connection
// of its own, which curr_connections and total_connections count too. A server
// takes a moment to count a connection's end: poll for it.
func (s *Server) Stats(t testing.TB) map[string]string {
	t.Helper()
	stats, err := s.stats(5 * time.Second)
	if err != nil {
		t.Fatalf("memcachedtest: stats of %s: %v", s.addr, err)
	}
	return stats
}

// newServer readies a server that mustStart starts.
func newServer(t testing.TB) *Server {
	t.Helper()
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := scratchDir()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, bin: bin, dir: dir}
	t.Cleanup(s.close)
	return s
}

func (s *Server) mustStart() {
	s.t.Helper()
	if err := s.start(); err != nil {
		s.t.Fatalf("memcachedtest: %v", err)
	}
}

// start runs the server on its address, or on a free port if it has none.
func (s *Server) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.addr != "" {
		return s.run()
	}
	for deadline := time.Now().Add(startTimeout); ; {
		s.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(randomPort()))
		err := s.run()
		if !errors.Is(err, errPortTaken) || time.Now().After(deadline) {
			return err
		}
	}
}

// randomPort picks a port below those that the system hands out to outgoing
// connections (32768 on Linux, 49152 on macOS). One of those would not do: a
// client that dials a killed server there may be given the very port as its
// own, and is then connected to itself, and Restart finds the port taken.
func randomPort() int { return 12000 + rand.IntN(20000) }

var errPortTaken = errors.New("port taken")

// run starts the process and returns when it answers. The caller holds s.mu.
func (s *Server) run() error {
	stderr, err := os.Create(filepath.Join(s.dir, "stderr"))
	if err != nil {
		return err
	}
	defer stderr.Close()
	proc, err := startProcess(s.bin, s.commandLine(), stderr, s.dir)
	if err != nil {
		return err
	}

	// Only its own process ID shows that it is this server that answers and
	// not another one which took the port first.
	pid := strconv.Itoa(proc.pid)
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(2 * time.Millisecond) {
		stats, err := s.stats(time.Second)
		if err == nil && stats["pid"] == pid {
			s.proc = proc
			return nil
		}
		if exited := proc.exited(); exited || time.Now().After(deadline) {
			proc.kill()
			said, _ := os.ReadFile(stderr.Name())
			switch {
			case strings.Contains(string(said), "Address already in use"):
				return errPortTaken
			case exited:
				return fmt.Errorf("%s %s exited: %s", s.bin, strings.Join(s.commandLine(), " "), said)
			default:
				return fmt.Errorf("%s %s does not answer: %v; it said: %q", s.bin, strings.Join(s.commandLine(), " "), err, said)
			}
		}
	}
}

func (s *Server) commandLine() []string {
	var args []string
	if network(s.addr) == "unix" {
		args = append(args, "-s", s.addr)
	} else {
		host, port, _ := net.SplitHostPort(s.addr)
		args = append(args, "-l", host, "-p", port, "-U", "0")
	}
	if os.Getuid() == 0 {
		// memcached refuses to be root unless told to, and as another user it
		// could not use the scratch directory.
		args = append(args, "-u", "root")
	}
	return slices.Concat(args, s.args, s.more)
}

func (s *Server) close() {
	s.Kill()
	os.RemoveAll(s.dir)
}

// binary finds memcached also where a service's PATH does not look.
func binary() (string, error) {
	if bin, err := exec.LookPath("memcached"); err == nil {
		return bin, nil
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/opt/homebrew/bin"} {
		if bin, err := exec.LookPath(filepath.Join(dir, "memcached")); err == nil {
			return bin, nil
		}
	}
	return "", errors.New("memcachedtest: these tests need a memcached server: `apt-get install memcached`, `brew install memcached`, or `make test`, which installs it (MEMCACHED_ADDR is enough for those that share one)")
}

func scratchDir() (string, error) { return os.MkdirTemp(tempDir, "memcachedtest") }
