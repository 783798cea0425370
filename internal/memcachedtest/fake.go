package memcachedtest

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Fake is a scripted server for what a real one cannot be made to say: an empty
// memcached 1.6.18 that keeps nothing, but for the commands that its [Script]
// answers. It lives until the test ends. Its methods are safe for concurrent use.
type Fake struct {
	listener *listener
	tls      *tls.Config // nil: a plain connection
	stop     func()
	stopped  chan struct{}

	mu       sync.Mutex
	script   Script
	counts   map[string]int
	received strings.Builder
}

// Script says how commands are answered, by their names; "*" are those without
// an entry of their own.
type Script map[string]Handler

// Handler answers one command. The handlers of a connection run one after the
// other, those of several at the same time.
type Handler func(c *FakeConn, cmd Command)

// Say answers with text, which brings its own line ends.
func Say(text string) Handler { return func(c *FakeConn, _ Command) { c.Say(text) } }

// Hang and HangUp are handlers: one answers nothing any more, the other closes
// the connection.
func Hang(c *FakeConn, _ Command)   { c.Hang() }
func HangUp(c *FakeConn, _ Command) { c.Close() }

// AfterDial is the script of a server that answers what a new connection asks it
// as usual, and every other command by h.
func AfterDial(h Handler) Script {
	return Script{"version": (*FakeConn).Default, "mn": (*FakeConn).Default, "*": h}
}

// Value returns what a get says of one key that it finds.
func Value(key, value string) string {
	return fmt.Sprintf("VALUE %s 0 %d\r\n%s\r\n", key, len(value), value)
}

// StartFake starts a scripted server on a free port of 127.0.0.1. The script may
// be nil.
func StartFake(t testing.TB, script Script) *Fake {
	t.Helper()
	return startFake(t, "", nil, script)
}

// StartFakeOn is [StartFake] on an address, which may be the path of a Unix
// socket, and that of a server that was closed.
func StartFakeOn(t testing.TB, addr string, script Script) *Fake {
	t.Helper()
	return startFake(t, addr, nil, script)
}

// StartFakeTLS is [StartFake] over TLS, with a config for the client as that of
// [StartTLS].
func StartFakeTLS(t testing.TB, script Script) (*Fake, *tls.Config) {
	t.Helper()
	return StartFakeTLSOn(t, "", script)
}

// StartFakeTLSOn is [StartFakeTLS] on an address, as [StartFakeOn]'s.
func StartFakeTLSOn(t testing.TB, addr string, script Script) (*Fake, *tls.Config) {
	t.Helper()
	chain, key, roots := serverCertificate(t)
	certificate, err := tls.X509KeyPair([]byte(chain), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	f := startFake(t, addr, &tls.Config{Certificates: []tls.Certificate{certificate}}, script)
	return f, &tls.Config{RootCAs: roots}
}

func startFake(t testing.TB, addr string, config *tls.Config, script Script) *Fake {
	t.Helper()
	f := &Fake{tls: config, stopped: make(chan struct{}), script: script, counts: make(map[string]int)}
	f.stop = sync.OnceFunc(func() { close(f.stopped) })
	f.listener = listen(t, addr, f.serve)
	t.Cleanup(f.Close)
	return f
}

// Addr returns the server's host:port, or the path of its Unix socket.
func (f *Fake) Addr() string { return f.listener.Addr().String() }

// SetScript makes the server answer by another script from the next command on.
// A handler that runs is not interrupted.
func (f *Fake) SetScript(script Script) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.script = script
}

// Accepted returns how many connections there have been.
func (f *Fake) Accepted() int {
	f.listener.mu.Lock()
	defer f.listener.mu.Unlock()
	return f.listener.accepted
}

// Open returns how many connections there are.
func (f *Fake) Open() int {
	f.listener.mu.Lock()
	defer f.listener.mu.Unlock()
	return len(f.listener.open)
}

// Count returns how many commands of that name have come in, of any name for
// "*". Those that meet a [Hang] count too.
func (f *Fake) Count(name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if name != "*" {
		return f.counts[name]
	}
	all := 0
	for _, n := range f.counts {
		all += n
	}
	return all
}

// Received returns all that has come in on all connections; over TLS, what was
// inside of it.
func (f *Fake) Received() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.received.String()
}

// Close makes the server refuse connections, closes those that there are, and
// waits for the handlers that run; it must not be called by one of them. The end
// of the test does so by itself.
func (f *Fake) Close() {
	f.stop()
	f.listener.close()
}

func (f *Fake) serve(n int, nc net.Conn) {
	if f.tls != nil {
		nc = tls.Server(nc, f.tls)
	}
	c := &FakeConn{Conn: nc, N: n, fake: f}
	c.commands = bufio.NewReader(io.TeeReader(nc, receiver{f}))
	for !c.closed.Load() {
		cmd, err := c.next()
		if err != nil {
			return
		}
		f.handler(cmd.Name)(c, cmd)
	}
}

func (f *Fake) handler(name string) Handler {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range []string{name, "*"} {
		if h := f.script[name]; h != nil {
			return h
		}
	}
	return (*FakeConn).Default
}

// receiver records what it is given.
type receiver struct{ f *Fake }

func (r receiver) Write(p []byte) (int, error) {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	return r.f.received.Write(p)
}

// FakeConn is a connection to a [Fake]. What the client sends must not be read
// from its Conn: some of it has been read already.
type FakeConn struct {
	net.Conn     // *tls.Conn over TLS
	N        int // the connection's number, from 1 on

	fake     *Fake
	commands *bufio.Reader
	closed   atomic.Bool
}

// Say sends text, which brings its own line ends, and reports whether the
// connection took it.
func (c *FakeConn) Say(text string) bool {
	_, err := io.WriteString(c.Conn, text)
	return err == nil
}

// Default answers as an empty memcached does.
func (c *FakeConn) Default(cmd Command) {
	if cmd.Name == "quit" {
		c.Close()
		return
	}
	c.Say(missReply(cmd))
}

// Hang reads what comes and answers nothing, until the client closes the
// connection or the test ends.
func (c *FakeConn) Hang() {
	for {
		if _, err := c.next(); err != nil {
			return
		}
	}
}

// Wait waits for ch, reading nothing, and reports false if the server was closed
// or the test ended first. A nil channel is one that never comes.
func (c *FakeConn) Wait(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	case <-c.fake.stopped:
		return false
	}
}

// Close closes the connection. Commands that have already come in on it are not
// answered.
func (c *FakeConn) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

func (c *FakeConn) next() (Command, error) {
	cmd, err := readCommand(c.commands)
	if err == nil {
		c.fake.mu.Lock()
		c.fake.counts[cmd.Name]++
		c.fake.mu.Unlock()
	}
	return cmd, err
}
