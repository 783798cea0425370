package pool

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

const (
	// metaWait is how long a new connection waits for an answer to the question
	// for meta where the last one got none: behind a proxy that swallows it every
	// dial takes that much longer. The first one has a read timeout, as a busy
	// machine may take its time to start.
	metaWait = 500 * time.Millisecond

	// metaAgain is how long a socket is used that was not asked, as the server had
	// closed the one before or said nothing on it: it may just have been restarting.
	metaAgain = time.Minute
)

// What became of a server's last question for meta.
const (
	_ int32 = iota // nothing yet
	answered
	ignored // the connection was closed, or nothing came
)

// askMeta asks the server for its version and for nothing ("mn"), and reports
// whether it speaks the meta protocol: whether it answers as memcached does
// since 1.6.10. Others answer ERROR, or close the connection, as twemproxy does,
// which hands on the version of the memcached behind it.
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
		// No version, no meta; but this line may be all that the server has to say.
		err = protocol.LineError(line)
		var reply *protocol.ReplyError
		switch {
		case !errors.As(err, &reply):
			return false, err
		case reply.Unauthenticated():
			return false, fmt.Errorf("%w: the server asks for a user and a password; give them by WithCredentials", ErrAuth)
		case reply.InStep():
			err = nil // a proxy's, about the server behind it
		}
	}
	old := !ok || beforeMeta(string(version))
	line, readErr := protocol.Line(r)
	if readErr != nil {
		return false, cmp.Or(err, readErr) // "ERROR Too many open connections"
	}
	return string(line) == "MN" && !old, nil
}

// beforeMeta reports whether a memcached is older than 1.6.10, before which its
// meta commands had another form.
func beforeMeta(version string) bool {
	var minor, patch int
	n, _ := fmt.Sscanf(version, "1.%d.%d", &minor, &patch)
	return n == 2 && (minor < 6 || minor == 6 && patch < 10)
}
