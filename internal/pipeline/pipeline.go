// Package pipeline sends many commands on one connection before it reads their
// replies, which memcached sends in the order of the commands.
package pipeline

import (
	"bufio"
	"errors"
	"sync"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// Nobody reads while we write, so a server that waits for us to read its replies
// would stop reading our requests: what is sent ahead is bounded so that either
// its replies (for commands with short ones) or the requests themselves (for
// those with values in their replies) fit into the smallest socket buffers.
const (
	// shortWindow is how many commands with a reply of one line are sent ahead.
	// The longest such line, an error, is about 42 bytes.
	shortWindow = 1024

	// getWindow is how many get commands are sent ahead, and getBytes how long
	// one is: a longer command also keeps the server from its other connections.
	getWindow = 8
	getBytes  = 4 << 10
)

const (
	readBuffer = 32 << 10
	flushAt    = 32 << 10

	// copyLimit is up to which size a value is copied behind its command; a
	// larger one is written from where it is.
	copyLimit = 8 << 10
)

// exchange is one request of many commands on a connection.
type exchange struct {
	conn *pool.Conn
	r    *bufio.Reader
	out  []byte
}

var exchanges = sync.Pool{New: func() any {
	return &exchange{r: bufio.NewReaderSize(nil, readBuffer), out: make([]byte, 0, flushAt+copyLimit+512)}
}}

// do runs fn as one request on c, which is dropped unless every reply was read.
func do(c *pool.Conn, fn func(*exchange) error) error {
	x := exchanges.Get().(*exchange)
	x.conn = c
	x.r.Reset(c)
	x.out = x.out[:0]
	err := c.Begin()
	if err == nil {
		err = fn(x)
		if err == nil && x.r.Buffered() == 0 {
			c.Complete()
		} else {
			c.Drop()
		}
	}
	x.conn = nil
	x.r.Reset(nil)
	exchanges.Put(x)
	return err
}

// refusal reports whether err is a server's refusal of one command, after which
// the next reply is in its place.
func refusal(err error) bool {
	var reply *protocol.ReplyError
	return errors.As(err, &reply) && reply.InStep()
}

// run sends n commands and reads their replies, at most window of them ahead.
// write appends command i to x.out; read reads its reply. It returns how many
// replies were complete.
func (x *exchange) run(n, window int, write func(i int) error, read func(i int) error) (answered int, err error) {
	for sent := 0; answered < n; {
		for sent < n && sent-answered < window {
			if sent > 0 {
				x.conn.Progress() // a timeout is for a command, not for the batch
			}
			if err := write(sent); err != nil {
				return answered, err
			}
			if len(x.out) >= flushAt {
				if err := x.flush(); err != nil {
					return answered, err
				}
			}
			sent++
		}
		if err := x.flush(); err != nil {
			return answered, err
		}
		enough := n
		if sent < n {
			enough = sent - window/2 // keep the server busy
		}
		for answered < enough {
			if err := read(answered); err != nil {
				return answered, err
			}
			x.conn.Progress()
			answered++
		}
	}
	return answered, nil
}

func (x *exchange) flush() error {
	if len(x.out) == 0 {
		return nil
	}
	_, err := x.conn.Send(x.out)
	x.out = x.out[:0]
	return err
}

// data appends a data block.
func (x *exchange) data(value []byte) error {
	if len(value) <= copyLimit {
		x.out = append(x.out, value...)
	} else {
		if err := x.flush(); err != nil {
			return err
		}
		if _, err := x.conn.Send(value); err != nil {
			return err
		}
	}
	x.out = append(x.out, "\r\n"...)
	return nil
}
