package pipeline

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

// TestWindow: no more is sent ahead of the replies than what they need in the
// smallest socket buffers, or two sides that both only write wait for each other
// for ever. The server answers nothing until the client falls silent.
func TestWindow(t *testing.T) {
	const buffers, longest = 64 << 10, 42 // bytes, the latter of a reply of one line
	const n = 2 * buffers / longest
	p := open(t, memcachedtest.Listen(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		next := func() bool {
			_, err := r.ReadString('\n')
			return err == nil
		}
		_, _ = next(), next()
		_, _ = io.WriteString(c, "VERSION 1.6.18\r\nMN\r\n")
		ahead := 0
		for ahead < n {
			c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			if _, err := r.Peek(1); errors.Is(err, os.ErrDeadlineExceeded) && ahead > 0 {
				break
			}
			if !next() {
				return
			}
			ahead++
		}
		c.SetReadDeadline(time.Time{})
		if ahead*longest > buffers {
			t.Errorf("%d commands ahead", ahead)
		}
		_, _ = io.WriteString(c, strings.Repeat("DELETED\r\n", ahead))
		for i := ahead; i < n && next(); i++ {
			_, _ = io.WriteString(c, "DELETED\r\n")
		}
		_, _ = io.Copy(io.Discard, r)
	}))
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprint("key-", i)
	}
	require.NoError(t, use(t, p, func(c *pool.Conn) error {
		deleted, answered, err := Delete(c, keys, nil)
		assert.EqualValues(t, n, deleted)
		assert.Equal(t, n, answered)
		return err
	}))
}
