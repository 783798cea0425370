// Package pipeline sends many commands on one connection before it reads their
// replies, which memcached sends in the order of the commands.
//
// A function that needs the meta protocol looks, once its request has begun,
// whether the server has shown on that very socket that it speaks it, and else
// does the same by classic commands or says [ErrNoMeta], with nothing sent.
package pipeline

import (
	"bufio"
	"errors"
	"sync"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// ErrNoMeta means that the server does not speak the meta protocol and that
// there is no other way. Nothing was sent.
var ErrNoMeta = errors.New("the server does not speak the meta protocol")

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

	// copyLimit is up to which size a value is copied after its command; a
	// larger one is written from where it is.
	copyLimit = 8 << 10

	// tail is how much of a larger one is written with its end.
	tail = 1 << 10
)

// exchange is one request of many commands on a connection.
type exchange struct {
	conn    *pool.Conn
	r       *bufio.Reader
	out     []byte
	whole   int  // how much of out is whole commands
	lines   int  // command lines in the request
	oneLine bool // no data block in it, and no long line
	values  bool // one has come
	refused bool // a command was
}

var exchanges = sync.Pool{New: func() any {
	return &exchange{r: bufio.NewReaderSize(nil, readBuffer), out: make([]byte, 0, protocol.MaxRecord+copyLimit+512)}
}}

// do runs fn as one request on c, which is dropped unless every reply was read,
// or the only one was an error that leaves the next in its place.
func do(c *pool.Conn, fn func(*exchange) error) error {
	if err := c.Begin(); err != nil {
		return err
	}
	return request(c, fn)
}

// doRead is do for a request that changes nothing. It is sent again, once, where
// the server closed a connection that had been used before instead of answering:
// fn, which then has no byte of a reply, runs twice.
func doRead(c *pool.Conn, fn func(*exchange) error) error {
	if err := c.BeginRead(); err != nil {
		return err
	}
	err := request(c, fn)
	if err == pool.ErrStale {
		if err = c.Repeat(); err == nil {
			err = request(c, fn)
		}
	}
	return err
}

// request runs fn on the request that c has begun.
func request(c *pool.Conn, fn func(*exchange) error) error {
	x := exchanges.Get().(*exchange)
	x.conn = c
	x.r.Reset(c)
	x.out, x.whole = x.out[:0], 0
	x.lines, x.oneLine, x.values, x.refused = 0, true, false, false
	err := fn(x)
	switch {
	case err == ErrNoMeta, err == pool.ErrStale:
	case err == nil && x.r.Buffered() == 0 && !x.refused:
		c.Complete()
	case (err == nil || x.lines == 1 && !x.values && protocol.InStep(err, x.oneLine)) && x.r.Buffered() == 0:
		c.Refused()
	default:
		c.Drop()
	}
	x.conn = nil
	x.r.Reset(nil)
	exchanges.Put(x)
	return err
}

// refusal reports whether err is a server's refusal of one command, after which
// the next reply is in its place.
func (x *exchange) refusal(err error) bool {
	refused := protocol.InStep(err, false)
	x.refused = x.refused || refused
	return refused
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
			if err := x.flushFull(); err != nil {
				return answered, err
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

// runMeta is run for meta commands with replies of one line, which it parses.
func (x *exchange) runMeta(n int, write func(i int) error, read func(m protocol.Meta) error) error {
	if !x.conn.Meta() {
		return ErrNoMeta
	}
	_, err := x.run(n, shortWindow, write, func(int) error {
		m, err := x.meta()
		if err != nil {
			return err
		}
		return read(m)
	})
	return err
}

// meta reads the first line of a reply to a meta command.
func (x *exchange) meta() (m protocol.Meta, err error) {
	line, err := protocol.Line(x.r)
	if err != nil {
		return m, err
	}
	return protocol.ParseMeta(line)
}

// ask sends one command line and reads the first one of its reply.
func (x *exchange) ask(parts ...string) (line []byte, err error) {
	x.line(parts...)
	if err := x.flush(); err != nil {
		return nil, err
	}
	return protocol.Line(x.r)
}

// askMeta is ask for a meta command.
func (x *exchange) askMeta(parts ...string) (m protocol.Meta, err error) {
	line, err := x.ask(parts...)
	if err != nil {
		return m, err
	}
	return protocol.ParseMeta(line)
}

// line appends parts as one command line. It cannot fail.
func (x *exchange) line(parts ...string) error {
	for _, part := range parts {
		x.out = append(x.out, part...)
	}
	x.out = append(x.out, "\r\n"...)
	x.lines++
	return nil
}

func (x *exchange) flush() error { return x.send(len(x.out)) }

// send writes the first n bytes of out.
func (x *exchange) send(n int) error {
	if n == 0 {
		return nil
	}
	if n > protocol.MaxLine {
		x.oneLine = false // who is to read more may split it
	}
	_, err := x.conn.Send(x.out[:n])
	x.out = x.out[:copy(x.out, x.out[n:])]
	x.whole = 0
	return err
}

// flushFull comes after each command: it keeps what is written at once, of whole
// commands, under a TLS record's length.
func (x *exchange) flushFull() error {
	if len(x.out) > protocol.MaxRecord {
		if err := x.send(x.whole); err != nil {
			return err
		}
	}
	x.whole = len(x.out)
	return nil
}

// data appends a data block.
func (x *exchange) data(value []byte) error {
	x.oneLine = false
	if len(value) <= copyLimit {
		x.out = append(append(x.out, value...), "\r\n"...)
		return nil
	}
	if err := x.flush(); err != nil {
		return err
	}
	// Its end goes with its last bytes, and nothing behind it (protocol.MaxRecord).
	end := len(value) - tail
	if _, err := x.conn.Send(value[:end]); err != nil {
		return err
	}
	x.out = append(append(x.out, value[end:]...), "\r\n"...)
	return x.flush()
}
