package memcachedtest

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"time"
)

// network returns the network of an address: a path is a Unix socket's.
func network(addr string) string {
	if strings.ContainsAny(addr, `/\`) {
		return "unix"
	}
	return "tcp"
}

// stats asks the server for its statistics over a new connection.
func (s *Server) stats(timeout time.Duration) (map[string]string, error) {
	conn, err := s.dial(timeout)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if s.user != "" {
		data := s.user + " " + s.password
		reply, err := ask(conn, fmt.Sprintf("set auth 0 0 %d\r\n%s\r\n", len(data), data))
		if err != nil {
			return nil, err
		}
		if line, _ := reply.ReadString('\n'); line != "STORED\r\n" {
			return nil, fmt.Errorf("authentication refused: %q", line)
		}
	}

	reply, err := ask(conn, "stats\r\n")
	if err != nil {
		return nil, err
	}
	stats := make(map[string]string)
	for {
		line, err := reply.ReadString('\n')
		if err != nil {
			return nil, err
		}
		line = strings.TrimRight(line, "\r\n")
		if line == "END" {
			// Leave no connection for the next caller to count.
			if reply, err = ask(conn, "quit\r\n"); err == nil {
				_, _ = reply.ReadByte()
			}
			return stats, nil
		}
		field := strings.SplitN(line, " ", 3)
		if field[0] != "STAT" || len(field) != 3 {
			return nil, fmt.Errorf("unexpected line %q", line)
		}
		stats[field[1]] = field[2]
	}
}

// dial connects to the server; the timeout is for all that the connection does.
func (s *Server) dial(timeout time.Duration) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: timeout}
	var conn net.Conn
	var err error
	if s.tls != nil {
		conn, err = tls.DialWithDialer(dialer, network(s.addr), s.addr, s.tls)
	} else {
		conn, err = dialer.Dial(network(s.addr), s.addr)
	}
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Now().Add(timeout))
}

// ask sends a command and returns a reader of its reply.
func ask(conn net.Conn, command string) (*bufio.Reader, error) {
	_, err := conn.Write([]byte(command))
	return bufio.NewReader(conn), err
}

// answers reports, as an error, that no memcached answers at addr.
func answers(addr string) error {
	conn, err := net.DialTimeout(network(addr), addr, 2*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	reply, err := ask(conn, "version\r\n")
	if err != nil {
		return err
	}
	line, err := reply.ReadString('\n')
	if err != nil {
		return err
	}
	if !strings.HasPrefix(line, "VERSION ") {
		return fmt.Errorf("it says %q, which is no memcached version", strings.TrimSpace(line))
	}
	return nil
}
