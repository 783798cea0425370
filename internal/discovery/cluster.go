package discovery

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

const (
	// maxAnswer and maxNodes are far above what there is: a cluster of ElastiCache
	// has some hundred nodes at most, with some 80 bytes each.
	maxAnswer = 1 << 20
	maxNodes  = 1000

	// maxHost is the longest host name (RFC 1035).
	maxHost = 253

	// maxErrorLine is longer than any error line.
	maxErrorLine = 250

	// clusterKey is where an engine before 1.4.14 keeps the list, as a value.
	clusterKey = "AmazonElastiCache:cluster"
)

// Cluster asks the configuration endpoint of a cluster of AWS ElastiCache or Google
// Memorystore for the nodes ("Adding Auto Discovery to your client library" in the
// ElastiCache User Guide). rw is a connection that is ready for a command, whose
// deadline is the caller's to set, and that is of no use afterwards.
//
// The nodes stay in the order of the answer. Every node of a cluster gives the same,
// and Amazon's own clients count by it: where a key goes by its place in the list,
// another order would look for it on another server than they do.
func Cluster(rw io.ReadWriter) (Answer, error) {
	limited := &io.LimitedReader{R: rw, N: maxAnswer}
	r := bufio.NewReader(limited)
	// Not by the length that the answer announces: endpoints count differently.
	next := func() (string, error) {
		line, err := r.ReadString('\n')
		switch {
		case err == io.EOF && limited.N == 0:
			return "", fmt.Errorf("no end of the answer after %d bytes: %w", maxAnswer, protocol.ErrUnexpected)
		case err == io.EOF:
			return "", fmt.Errorf("the connection was closed before the end of the answer: %w", err)
		case err != nil:
			return "", fmt.Errorf("reading the answer: %w", err)
		}
		return strings.TrimSpace(line), nil
	}
	ask := func(command string) (string, error) {
		if _, err := io.WriteString(rw, command+"\r\n"); err != nil {
			return "", fmt.Errorf("sending %q: %w", command, err)
		}
		return next()
	}

	line, err := ask("config get cluster")
	if line == "ERROR" {
		line, err = ask("get " + clusterKey)
	}
	if err != nil {
		return Answer{}, err
	}
	if !strings.HasPrefix(line, "CONFIG cluster ") && !strings.HasPrefix(line, "VALUE "+clusterKey+" ") {
		return Answer{}, noCluster(line)
	}
	answer := Answer{Version: NoVersion}
	for {
		line, err := next()
		switch {
		case err != nil:
			return Answer{}, err
		case line == "":
		case line == "END":
			if len(answer.Servers) == 0 {
				return Answer{}, errors.New("the endpoint named no servers")
			}
			return answer, nil
		case answer.Version == NoVersion:
			version, err := strconv.ParseUint(line, 10, 63)
			if err != nil {
				return Answer{}, fmt.Errorf("the version is no number: %w", protocol.ErrUnexpected)
			}
			answer.Version = int64(version)
		case answer.Servers == nil:
			if answer.Servers, err = parseNodes(line); err != nil {
				return Answer{}, err
			}
		default:
			return Answer{}, fmt.Errorf("something comes after the line of nodes: %w", protocol.ErrUnexpected)
		}
	}
}

// noCluster says what a first line means that begins no list. It quotes nothing but an
// error line: the rest may be a value.
func noCluster(line string) error {
	switch {
	case line == "END", line == "ERROR":
		return errors.New("the server knows of no cluster (is it a configuration endpoint? plain servers are used without discovery)")
	case len(line) > maxErrorLine:
		return protocol.ErrUnexpected
	}
	return protocol.LineError([]byte(line))
}

// parseNodes parses host|ip|port, separated by spaces.
func parseNodes(line string) (servers []string, err error) {
	known := make(map[string]bool)
	for i, node := range strings.Fields(line) {
		server, ok := parseNode(node)
		if !ok {
			return nil, fmt.Errorf("node %d is not host|ip|port: %w", i+1, protocol.ErrUnexpected)
		}
		name := strings.ToLower(server)
		if known[name] {
			continue
		}
		if len(servers) == maxNodes {
			return nil, fmt.Errorf("more than %d nodes: %w", maxNodes, protocol.ErrUnexpected)
		}
		known[name] = true
		servers = append(servers, server)
	}
	return servers, nil
}

// parseNode prefers the host name, which stays when the machine behind it is
// replaced. Either of the two may be missing.
func parseNode(node string) (server string, ok bool) {
	fields := strings.SplitN(node, "|", 4)
	if len(fields) != 3 || fields[0]+fields[1] == "" {
		return "", false
	}
	port, err := strconv.ParseUint(fields[2], 10, 16)
	if err != nil || port == 0 {
		return "", false
	}
	for _, host := range fields[:2] {
		if host == "" {
			continue
		}
		if !isHost(host) {
			return "", false
		}
		if server == "" {
			server = net.JoinHostPort(host, strconv.FormatUint(port, 10))
		}
	}
	return server, true
}

// isHost reports whether s can be a host name or an address.
func isHost(s string) bool {
	if strings.Contains(s, ":") {
		addr, err := netip.ParseAddr(s)
		return err == nil && addr.Zone() == ""
	}
	return len(s) <= maxHost && !strings.ContainsFunc(s, func(c rune) bool {
		return (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_'
	})
}
