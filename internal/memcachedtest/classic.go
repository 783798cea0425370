package memcachedtest

import (
	"bufio"
	"io"
	"net"
	"sync"
	"testing"
)

// StartClassic starts a front of the server at addr that knows no meta commands,
// as memcached before 1.6. Such a server takes the value of an "ms" for commands,
// and so does this one.
func StartClassic(t testing.TB, addr string) string {
	t.Helper()
	return StartClassicOn(t, "", addr)
}

// StartClassicOn is [StartClassic] on an address, which may be that of a server
// that was killed.
func StartClassicOn(t testing.TB, on, addr string) string {
	t.Helper()
	return listen(t, on, func(_ int, c net.Conn) {
		server, err := net.Dial(network(addr), addr)
		if err != nil {
			return // as a server that is down
		}
		var back sync.WaitGroup
		back.Go(func() {
			defer c.Close()
			classicReplies(c, bufio.NewReader(server))
		})
		defer back.Wait()
		defer server.Close()
		classicCommands(server, bufio.NewReader(c))
	}).Addr().String()
}

// classicCommands hands commands on. Those that it does not know it makes ones
// that the server does not know either, so that the replies stay in order.
func classicCommands(server io.Writer, r *bufio.Reader) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		data := int64(0)
		switch cmd := parseCommand(line); cmd.Name {
		case "mn", "mg", "ms", "md", "ma", "me":
			line = "unknown\r\n"
		default:
			if size := cmd.dataSize(); size >= 0 {
				data = size + int64(len("\r\n"))
			}
		}
		if _, err := io.WriteString(server, line); err != nil {
			return
		}
		if _, err := io.CopyN(server, r, data); err != nil {
			return
		}
	}
}

// classicReplies hands replies on, with another version.
func classicReplies(client io.Writer, r *bufio.Reader) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		data := int64(0)
		switch reply := parseCommand(line); reply.Name {
		case "VERSION":
			line = "VERSION 1.5.22\r\n"
		case "VALUE":
			data = reply.sizeAt(2) + int64(len("\r\n"))
		}
		if _, err := io.WriteString(client, line); err != nil {
			return
		}
		if _, err := io.CopyN(client, r, data); err != nil {
			return
		}
	}
}
