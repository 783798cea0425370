package pool

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// metaAgain is for how long a server is not asked for meta that has not
// answered, and how long the sockets are used that were not asked: it may just
// have been restarting, or be upgraded.
const metaAgain = time.Minute

// errNoVerdict means that an answer to the question for meta is neither yes nor
// no, and that nobody knows whether the connection will last.
var errNoVerdict = errors.New("no verdict on the meta protocol")

// askMeta asks the server for its version and for nothing ("mn"), and reports
// whether it speaks the meta protocol: whether it answers as memcached does
// since 1.6.10. One before that answers ERROR. Proxies do what they like: twemproxy
// closes the connection, and hands on the version of the memcached behind it;
// mcrouter says something, and then closes.
//
// Each connection is asked, before anything else goes out on it: what would be
// the value of a meta set runs as commands on a server that another one has
// replaced.
func askMeta(nc net.Conn) (bool, error) {
	if _, err := io.WriteString(nc, "version\r\nmn\r\n"); err != nil {
		return false, err
	}
	r := bufio.NewReaderSize(nc, protocol.MaxLine)
	line, err := protocol.Line(r)
	if err != nil {
		return false, err
	}
	version, ok := bytes.CutPrefix(line, []byte("VERSION "))
	if !ok {
		err := protocol.LineError(line)
		var reply *protocol.ReplyError
		switch {
		case !errors.As(err, &reply):
			return false, err
		case reply.Unauthenticated():
			return false, errNoCredentials
		case strings.HasPrefix(reply.Line, "ERROR "):
			return false, err // "Too many open connections"
		}
		return false, errNoVerdict
	}
	old := beforeMeta(string(version))
	line, err = protocol.Line(r)
	switch {
	case err != nil:
		return false, err
	case r.Buffered() > 0:
		return false, protocol.ErrUnexpected
	case string(line) == "MN":
		return !old, nil
	case string(line) == "ERROR", string(line) == "EN" && old:
		return false, nil
	}
	return false, errNoVerdict
}

// doNotAsk makes connections do without the question for a while, unless a request
// on one of them fails: whoever answers there then may be another.
func (s *Server) doNotAsk() (until time.Time) {
	until = time.Now().Add(metaAgain)
	s.askAgain.Store(until.UnixNano())
	return until
}

// beforeMeta reports whether a memcached is older than 1.6.10, before which its
// meta commands had another form.
func beforeMeta(version string) bool {
	var minor, patch int
	n, _ := fmt.Sscanf(version, "1.%d.%d", &minor, &patch)
	return n == 2 && (minor < 6 || minor == 6 && patch < 10)
}
