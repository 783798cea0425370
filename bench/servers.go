package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
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

// servers are what all clients work on, each in a process of its own.
type servers struct {
	memcached []string // addresses
	redis     string
	delayed   map[string]string // address to that of its delaying proxy
	versions  []string

	stops []func()
}

// startServers starts n memcacheds, a Redis and, unless delay is 0, a proxy
// before each of them.
func startServers(n int, delay time.Duration) (_ *servers, err error) {
	s := &servers{delayed: make(map[string]string)}
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	memcached, err := find("memcached")
	if err != nil {
		return nil, err
	}
	redis, err := find("redis-server")
	if err != nil {
		return nil, err
	}
	for range n {
		addr, err := s.start(memcached, "-l", "127.0.0.1", "-U", "0", "-m", "256", "-c", "4096", "-t", "1", "-u", "root", "-p")
		if err != nil {
			return nil, err
		}
		s.memcached = append(s.memcached, addr)
	}
	s.redis, err = s.start(redis, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--port")
	if err != nil {
		return nil, err
	}
	s.versions = []string{version(memcached, "-V"), version(redis, "--version")}
	if delay > 0 {
		err = s.startDelay(delay)
	}
	return s, err
}

func (s *servers) stop() {
	for _, stop := range s.stops {
		stop()
	}
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

// guard runs a server until its standard input ends, however this program does,
// so that no server is ever left behind. Ctrl-C reaches it, too.
const guard = `trap '' HUP INT QUIT TERM; "$@" >/dev/null 2>&1 & read -r _; kill -9 $!; wait`

// start runs a server with a free port as its last argument until stop.
func (s *servers) start(bin string, args ...string) (addr string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	addr = l.Addr().String()
	_, port, _ := net.SplitHostPort(addr)
	l.Close()

	cmd := exec.Command("/bin/sh", append(append([]string{"-c", guard, "sh", bin}, args...), port)...)
	if err := s.run(cmd); err != nil {
		return "", err
	}
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(5 * time.Millisecond) {
		nc, err := net.Dial("tcp", addr)
		if err == nil {
			nc.Close()
			return addr, nil
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("%s does not start: %w", bin, err)
		}
	}
}

// run starts a process that ends when its standard input does.
func (s *servers) run(cmd *exec.Cmd) error {
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	s.stops = append(s.stops, func() {
		stdin.Close()
		cmd.Wait()
	})
	return nil
}

// startDelay starts the proxies of delay.go in a process of their own, so that
// they share neither the scheduler nor the heap with what is measured.
func (s *servers) startDelay(delay time.Duration) error {
	// A binary that does not know the command, a test's, would start servers and
	// itself once more, and so on.
	if os.Getenv(delayVariable) != "" {
		return errors.New("this process was started as a delaying proxy; it starts none")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	targets := append([]string{s.redis}, s.memcached...)
	cmd := exec.Command(self, append([]string{delayCommand, delay.String()}, targets...)...)
	cmd.Env = append(os.Environ(), delayVariable+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := s.run(cmd); err != nil {
		return err
	}
	lines := bufio.NewScanner(out)
	for _, target := range targets {
		if !lines.Scan() {
			return errors.Join(errors.New("the delaying proxy does not start"), lines.Err())
		}
		s.delayed[target] = lines.Text()
	}
	go io.Copy(io.Discard, out)
	return nil
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
