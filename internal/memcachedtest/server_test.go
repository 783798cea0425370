//go:build unix

package memcachedtest_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func TestStart(t *testing.T) {
	var pid int
	t.Run("running", func(t *testing.T) {
		s := memcachedtest.Start(t, "-m", "8")
		pid = s.Pid()
		stats := s.Stats(t)
		if stats["pid"] != strconv.Itoa(pid) {
			t.Errorf("Pid %d, the server says %s", pid, stats["pid"])
		}
		if stats["limit_maxbytes"] != strconv.Itoa(8<<20) {
			t.Errorf("the argument was lost: limit_maxbytes %s", stats["limit_maxbytes"])
		}
		goleak.VerifyNone(t) // while the server runs
	})
	if alive(pid) {
		t.Error("the server outlived its test")
	}
}

func TestKillAndRestart(t *testing.T) {
	for name, start := range map[string]func(testing.TB, ...string) *memcachedtest.Server{
		"tcp": memcachedtest.Start, "unix": memcachedtest.StartUnix,
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			for range 3 {
				conn := dial(t, s.Addr())
				command(t, conn, "set k 0 0 1\r\nv\r\n", "STORED")
				s.Kill()
				if _, err := conn.Read(make([]byte, 1)); err == nil {
					t.Error("a connection survived the kill")
				}
				if c, err := net.Dial(network(s.Addr()), s.Addr()); err == nil {
					c.Close()
					t.Error("a killed server accepts connections")
				}
				if s.Pid() != 0 {
					t.Errorf("Pid of a killed server: %d", s.Pid())
				}
				s.Kill()
				addr := s.Addr()
				s.Restart()
				if s.Addr() != addr {
					t.Errorf("restarted on %s, was on %s", s.Addr(), addr)
				}
				command(t, dial(t, s.Addr()), "get k\r\n", "END")
			}
			pid := s.Pid()
			s.Restart() // of a server that runs
			if alive(pid) || s.Pid() == pid {
				t.Error("Restart left the old process")
			}
		})
	}
}

func TestRestartWaitsForThePort(t *testing.T) {
	s := memcachedtest.Start(t)
	s.Kill()
	squatter, err := net.Listen("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	released := make(chan struct{})
	go func() {
		defer close(released)
		time.Sleep(200 * time.Millisecond)
		squatter.Close()
	}()
	s.Restart()
	<-released
	s.Stats(t)
}

func TestRestartWithOtherArguments(t *testing.T) {
	s := memcachedtest.Start(t, "-m", "64")
	limit := func(want int) {
		t.Helper()
		if got := s.Stats(t)["limit_maxbytes"]; got != strconv.Itoa(want<<20) {
			t.Errorf("limit_maxbytes is %s, not that of -m %d", got, want)
		}
	}
	s.RestartWith("-m", "48")
	limit(48)
	s.Restart()
	limit(48)
	s.RestartWith()
	limit(64)
}

func TestStopAndCont(t *testing.T) {
	s := memcachedtest.Start(t)
	conn := dial(t, s.Addr())
	command(t, conn, "version\r\n", "VERSION")
	s.Stop()
	io.WriteString(conn, "version\r\n")
	conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a stopped server: %v, want a timeout", err)
	}
	dial(t, s.Addr()) // the kernel accepts
	s.Cont()
	command(t, conn, "", "VERSION")

	s.Stop()
	s.Kill() // must not hang
	s.Restart()
	s.Stop() // and neither the end of the test
}

func TestUnix(t *testing.T) {
	s := memcachedtest.StartUnix(t)
	if !strings.HasPrefix(s.Addr(), "/") || len(s.Addr()) > 100 {
		t.Errorf("Addr %q", s.Addr())
	}
	command(t, dial(t, s.Addr()), "version\r\n", "VERSION")
}

func TestTLS(t *testing.T) {
	s, config := memcachedtest.StartTLS(t)
	s.Restart()
	for _, name := range []string{"127.0.0.1", "localhost"} {
		config := config.Clone()
		config.ServerName = name
		conn, err := tls.Dial("tcp", s.Addr(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		command(t, conn, "version\r\n", "VERSION")
	}
	var unknown *tls.CertificateVerificationError
	if _, err := tls.Dial("tcp", s.Addr(), &tls.Config{}); !errors.As(err, &unknown) {
		t.Errorf("without the authority: %v", err)
	}
	if n := s.Stats(t)["curr_connections"]; n == "" {
		t.Error("no stats over TLS")
	}
}

func TestAuth(t *testing.T) {
	s := memcachedtest.StartAuth(t, "grove", "secret")
	conn := dial(t, s.Addr())
	command(t, conn, "get k\r\n", "CLIENT_ERROR")
	conn = dial(t, s.Addr())
	command(t, conn, "set auth 0 0 11\r\ngrove wrong\r\n", "CLIENT_ERROR")
	conn = dial(t, s.Addr())
	command(t, conn, "set auth 0 0 12\r\ngrove secret\r\n", "STORED")
	command(t, conn, "get k\r\n", "END")
	s.Restart()
	s.Stats(t)
}

func TestAddr(t *testing.T) {
	addr := memcachedtest.Addr(t)
	command(t, dial(t, addr), "version\r\n", "VERSION")
	if again := memcachedtest.Addr(t); again != addr {
		t.Errorf("two shared servers: %s and %s", addr, again)
	}

	own := memcachedtest.Start(t)
	memcachedtest.Shutdown()
	t.Setenv("MEMCACHED_ADDR", own.Addr())
	if got := memcachedtest.Addr(t); got != own.Addr() {
		t.Errorf("Addr = %s, MEMCACHED_ADDR = %s", got, own.Addr())
	}
	memcachedtest.Shutdown()
	own.Stats(t) // still there: Shutdown ends only what Addr started
}

// leaked is a socket that no finalizer closes.
var leaked net.Listener

// TestFailures runs the failing helpers in another process: they must end the
// test with one line, a leak must fail the run, and a panic must not leave a
// server.
func TestFailures(t *testing.T) {
	if what := os.Getenv("MEMCACHEDTEST_FAILURE"); what != "" {
		switch what {
		case "no answer":
			memcachedtest.Addr(t)
		case "bad argument":
			memcachedtest.Start(t, "-t", "0")
		case "leaked goroutine":
			go func() { select {} }()
		case "leaked socket":
			var err error
			if leaked, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
				os.Exit(0) // not the failure that is looked for
			}
		default: // a panic, a SIGKILL
			s := memcachedtest.Start(t)
			s.Stop()
			fmt.Printf("addr %s\n", s.Addr())
			if what == "panic" {
				panic(what)
			}
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return
	}
	run := func(t *testing.T, env ...string) string {
		t.Helper()
		cmd := exec.Command(os.Args[0], "-test.run=^TestFailures$")
		cmd.Env = append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		if err == nil {
			t.Errorf("it passed: %s", out)
		}
		return string(out)
	}
	for _, c := range []struct{ what, addr, want string }{
		{"no answer", "127.0.0.1:1", "no memcached answers at MEMCACHED_ADDR=127.0.0.1:1"},
		{"bad argument", "", "Number of threads must be greater than 0"},
		{"leaked goroutine", "", "found unexpected goroutines"},
		{"leaked socket", "", "1 sockets are open that were not before the tests"},
	} {
		t.Run(c.what, func(t *testing.T) {
			out := run(t, "MEMCACHEDTEST_FAILURE="+c.what, "MEMCACHED_ADDR="+c.addr)
			if !strings.Contains(out, c.want) {
				t.Errorf("%s", out)
			}
		})
	}
	for _, what := range []string{"panic", "SIGKILL"} {
		t.Run(what, func(t *testing.T) {
			out := run(t, "MEMCACHEDTEST_FAILURE="+what)
			_, after, _ := strings.Cut(out, "addr ")
			addr, _, found := strings.Cut(after, "\n")
			if !found {
				t.Fatalf("%s", out)
			}
			for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
				conn, err := net.Dial("tcp", addr)
				if err != nil {
					return
				}
				conn.Close()
				if time.Now().After(deadline) {
					t.Fatalf("the server at %s outlived the test binary", addr)
				}
			}
		})
	}
}

func alive(pid int) bool { return pid > 0 && syscall.Kill(pid, 0) == nil }

// command sends a command and checks how the reply's first line begins.
func command(t *testing.T, conn net.Conn, command, want string) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(conn, command)
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, want) {
		t.Fatalf("%q: reply %q, %v; want %s", command, line, err, want)
	}
}
