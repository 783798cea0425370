package pipeline

import (
	"bytes"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// Version asks for the server's version, which every server and proxy tells.
func Version(c *pool.Conn) (version string, err error) {
	err = do(c, func(x *exchange) error {
		line, err := x.ask("version")
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
	return version, err
}
