package pipeline

import (
	"bytes"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// Version asks for the server's version, which every server and proxy tells.
func Version(c *pool.Conn) (version string, err error) {
	err = do(c, func(x *exchange) error {
		_, err := x.run(1, 1, func(int) error {
			return x.line("version")
		}, func(int) error {
			line, err := protocol.Line(x.r)
			if err != nil {
				return err
			}
			rest, ok := bytes.CutPrefix(line, []byte("VERSION "))
			if !ok {
				return protocol.LineError(line)
			}
			version = string(rest)
			return nil
		})
		return err
	})
	return version, err
}
