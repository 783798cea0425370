package pipeline

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

func TestMatcher(t *testing.T) {
	for _, c := range []struct {
		name, keys, answered string
		want                 []int // -1: an error
	}{
		{"all in order", "a b c", "a b c", []int{0, 1, 2}},
		{"misses", "a b c d", "b d", []int{1, 3}},
		{"nothing", "a b", "", nil},
		{"reversed", "a b c", "c b a", []int{2, 1, 0}},
		{"shuffled", "a b c d", "b d a c", []int{1, 3, 0, 2}},
		{"duplicates, each answered", "a b a", "a b a", []int{0, 1, 2}},
		{"a value twice", "a b", "a a b", []int{0, 0, 1}},
		{"last value twice", "a b", "a b b", []int{0, 1, 1}},
		{"never asked", "a b", "a x", []int{0, -1}},
		{"never asked, first", "a b", "x", []int{-1}},
		{"prefix of a key", "ab", "a", []int{-1}},
		{"longer than a key", "a", "ab", []int{-1}},
		{"another case", "a", "A", []int{-1}},
		{"right behind a wrong one", "a b", "b a x", []int{1, 0, -1}},
	} {
		m := matcher{keys: strings.Fields(c.keys)}
		var got []int
		for _, key := range strings.Fields(c.answered) {
			i, err := m.find([]byte(key))
			if err != nil {
				assert.ErrorIs(t, err, protocol.ErrUnexpected, c.name)
				i = -1
			}
			got = append(got, i)
		}
		assert.Equal(t, c.want, got, c.name)
	}

	// One of a pair may be answered for both, in whatever order: the place is one
	// of that key.
	m := matcher{keys: strings.Fields("a b a c")}
	for _, key := range strings.Fields("c a b a a") {
		i, err := m.find([]byte(key))
		require.NoError(t, err)
		assert.Equal(t, key, m.keys[i])
	}
}

// TestMatcherCost: a proxy that answers backwards, or with one value only, must
// not cost a comparison of every key with every other.
func TestMatcherCost(t *testing.T) {
	keys := make([]string, 200_000)
	for i := range keys {
		keys[i] = fmt.Sprintf("key-%d", i)
	}
	m := matcher{keys: keys}
	for i := len(keys) - 1; i >= 0; i-- { // quadratic: minutes
		at, err := m.find([]byte(keys[i]))
		if err != nil || at != i {
			t.Fatalf("%s: %d, %v", keys[i], at, err)
		}
	}
}

// TestProxies answers a get as proxies do.
func TestProxies(t *testing.T) {
	keys := strings.Fields("a b c d a")
	all := []string{"a", "b", "c", "d", "a"}
	for _, c := range []struct {
		name    string
		answer  []string
		want    map[string]string
		refused bool
	}{
		{name: "in order", answer: all},
		{name: "backwards", answer: []string{"a", "d", "c", "b", "a"}},
		{name: "each key once", answer: []string{"a", "b", "c", "d"}},
		{name: "shuffled, each key once", answer: []string{"d", "b", "a", "c"}},
		{name: "a value three times", answer: []string{"a", "a", "a", "b", "c", "d"}},
		{name: "drops", answer: []string{"b", "d"}, want: map[string]string{"b": "value of b", "d": "value of d"}},
		{name: "drops all", want: map[string]string{}},
		{name: "a key never asked", answer: []string{"a", "b", "x", "c", "d"}, refused: true},
		{name: "only a key never asked", answer: []string{"x"}, refused: true},
		{name: "a key never asked, out of order", answer: []string{"d", "a", "x"}, refused: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var conns atomic.Int32
			p := listen(t, func(n int, r *bufio.Reader, nc net.Conn) {
				conns.Add(1)
				answers(func(command) string {
					var b strings.Builder
					for _, key := range c.answer {
						b.WriteString(value(key, "value of "+key))
					}
					return b.String() + "END\r\n"
				})(n, r, nc)
			})
			want := c.want
			if want == nil {
				want = map[string]string{"a": "value of a", "b": "value of b", "c": "value of c", "d": "value of d"}
			}
			for round := range 2 {
				got := map[string]string{}
				err := use(t, p, func(pc *pool.Conn) error {
					return Get(pc, keys, func(i int, v []byte) { got[keys[i]] = string(v) })
				})
				counted := map[string]bool{}
				countErr := use(t, p, func(pc *pool.Conn) error {
					return Count(pc, keys, func(i int) { counted[keys[i]] = true })
				})
				if c.refused {
					assert.ErrorIs(t, err, protocol.ErrUnexpected)
					assert.ErrorIs(t, countErr, protocol.ErrUnexpected)
					assert.Zero(t, idle(p), "a connection out of step was kept")
					assert.EqualValues(t, 2*(round+1), conns.Load())
					for key, v := range got {
						assert.Equal(t, "value of "+key, v)
					}
					continue
				}
				require.NoError(t, err)
				require.NoError(t, countErr)
				assert.Equal(t, want, got)
				assert.Len(t, counted, len(want))
				assert.EqualValues(t, 1, conns.Load(), "the connection is in step")
			}
		})
	}
}

// TestGetSplits: one command is bounded in length, and values of one may come
// with any key of the batch.
func TestGetSplits(t *testing.T) {
	var longest, commands atomic.Int64
	p := listen(t, answers(func(cmd command) string {
		commands.Add(1)
		n := int64(len(strings.Join(cmd.fields, " ")))
		longest.Store(max(longest.Load(), n))
		var b strings.Builder
		for _, key := range cmd.fields[1:] {
			b.WriteString(value(key, "value of "+key))
		}
		return b.String() + "END\r\n"
	}))
	for _, size := range []int{1, 17, 250} {
		commands.Store(0)
		longest.Store(0)
		keys := make([]string, 3000)
		for i := range keys {
			if size > 1 {
				keys[i] = fmt.Sprintf("%0*d", size, i)
			} else {
				keys[i] = string(rune('a' + i%26))
			}
		}
		found := make([]int, len(keys))
		require.NoError(t, use(t, p, func(c *pool.Conn) error {
			return Get(c, keys, func(i int, v []byte) {
				found[i]++
				if string(v) != "value of "+keys[i] {
					t.Fatalf("%s: %s", keys[i], v)
				}
			})
		}))
		if size > 1 {
			assert.NotContains(t, found, 0, "%d bytes a key", size)
			assert.NotContains(t, found, 2, "%d bytes a key", size)
		}
		assert.LessOrEqual(t, longest.Load(), int64(getBytes+len("get")), "%d bytes a key", size)
		assert.GreaterOrEqual(t, commands.Load(), int64(len(keys)*(size+1)/getBytes), "%d bytes a key", size)
		assert.LessOrEqual(t, commands.Load(), int64(len(keys)*(size+1)/(getBytes-256)+1), "%d bytes a key: too many round trips", size)
	}
}

// TestBadReplies: whatever a server says instead of a reply, the call ends with
// an error, counts nothing behind it, and the connection is not used again.
func TestBadReplies(t *testing.T) {
	keys := []string{"a", "b", "c"}
	items := []Item{{"a", []byte("1")}, {"b", []byte("2")}, {"c", []byte("3")}}
	type call struct {
		name string
		good string // the first reply, a right one
		run  func(c *pool.Conn) (answered int, err error)
	}
	calls := []call{
		{"get", value("a", "1"), func(c *pool.Conn) (n int, err error) {
			err = Get(c, keys, func(i int, v []byte) {
				if n++; i != 0 || string(v) != "1" {
					t.Errorf("found %s = %q", keys[i], v)
				}
			})
			return n, err
		}},
		{"count", value("a", "1"), func(c *pool.Conn) (n int, err error) {
			err = Count(c, keys, func(i int) {
				if i == 0 { // the others may be half there
					n++
				}
			})
			return n, err
		}},
		{"set", "STORED\r\n", func(c *pool.Conn) (int, error) {
			return Set(c, items, 0, func(i, _ int, err error) { t.Errorf("refused %d: %v", i, err) })
		}},
		{"delete", "DELETED\r\n", func(c *pool.Conn) (int, error) {
			n, answered, err := Delete(c, keys, func(i int, err error) { t.Errorf("refused %d: %v", i, err) })
			assert.EqualValues(t, 1, n)
			return answered, err
		}},
		{"exists", "HD\r\n", func(c *pool.Conn) (n int, err error) {
			err = Exists(c, keys, func(i int) {
				if n++; i != 0 {
					t.Errorf("found %s", keys[i])
				}
			})
			return n, err
		}},
		{"meta set", "HD c7\r\n", func(c *pool.Conn) (int, error) {
			out, err := StoreAll(c, []Store{{Item: items[0]}, {Item: items[1]}, {Item: items[2]}})
			for _, o := range out {
				assert.Equal(t, Outcome{Code: "HD", CAS: 7}, o)
			}
			return len(out), err
		}},
	}
	for reply, want := range map[string]error{
		"":                            io.ErrUnexpectedEOF,
		"S":                           io.ErrUnexpectedEOF,
		"STORED":                      io.ErrUnexpectedEOF,
		"STORED\r":                    io.ErrUnexpectedEOF,
		"VALUE b 0 5":                 io.ErrUnexpectedEOF,
		"\r\n":                        protocol.ErrUnexpected,
		"garbage\r\n":                 protocol.ErrUnexpected,
		"HTTP/1.1 400 Bad Request\n":  protocol.ErrUnexpected,
		"-ERR unknown command\r\n":    protocol.ErrUnexpected,
		"STORED\n":                    protocol.ErrUnexpected,
		strings.Repeat("x", 64<<10):   protocol.ErrUnexpected,
		"VALUE b 0 99999999999\r\nxx": protocol.ErrUnexpected,
		"ERROR\r\n":                   &protocol.ReplyError{Line: "ERROR"},
		"CLIENT_ERROR bad\r\n":        &protocol.ReplyError{Line: "CLIENT_ERROR bad"},
	} {
		for _, c := range calls {
			t.Run(fmt.Sprintf("%s/%.12q", c.name, reply), func(t *testing.T) {
				p := listen(t, says(c.good+reply))
				var answered int
				err := use(t, p, func(pc *pool.Conn) (err error) {
					answered, err = c.run(pc)
					return err
				})
				var wantReply, gotReply *protocol.ReplyError
				if errors.As(want, &wantReply) {
					if assert.ErrorAs(t, err, &gotReply) {
						assert.Equal(t, wantReply, gotReply)
					}
				} else {
					assert.ErrorIs(t, err, want)
				}
				assert.Equal(t, 1, answered)
				assert.Zero(t, idle(p), "the connection was kept")
			})
		}
	}
	// A value that is cut, or longer than announced.
	for reply, want := range map[string]error{
		"VALUE b 0 5\r\n":               io.ErrUnexpectedEOF,
		"VALUE b 0 5\r\nhel":            io.ErrUnexpectedEOF,
		"VALUE b 0 5\r\nhello":          io.ErrUnexpectedEOF,
		"VALUE b 0 5\r\nhello\r":        io.ErrUnexpectedEOF,
		"VALUE b 0 5\r\nhello wor\r\n":  protocol.ErrUnexpected,
		"VALUE b 0 5\r\nhel\r\nEND\r\n": protocol.ErrUnexpected,
		"VALUE b 0 1000000000\r\nhello": io.ErrUnexpectedEOF,
	} {
		for _, c := range calls[:2] {
			t.Run(fmt.Sprintf("%s/%q", c.name, reply), func(t *testing.T) {
				p := listen(t, says(c.good+reply))
				err := use(t, p, func(pc *pool.Conn) error {
					n, err := c.run(pc)
					assert.Equal(t, 1, n)
					return err
				})
				assert.ErrorIs(t, err, want)
				assert.Zero(t, idle(p), "the connection was kept")
			})
		}
	}
}

// TestBytesBehindTheReply: what nobody asked for is not the next call's reply.
func TestBytesBehindTheReply(t *testing.T) {
	p := listen(t, says("STORED\r\nSTORED\r\nSTORED\r\n"))
	require.NoError(t, use(t, p, func(c *pool.Conn) error {
		n, err := Set(c, []Item{{Key: "a"}, {Key: "b"}}, 0, func(int, int, error) { t.Error("refused") })
		assert.Equal(t, 2, n)
		return err
	}))
	assert.Zero(t, idle(p), "the connection was kept")
}

// TestRefusals spoil their own key only and leave the connection in step.
func TestRefusals(t *testing.T) {
	var conns atomic.Int32
	p := listen(t, func(n int, r *bufio.Reader, c net.Conn) {
		conns.Add(1)
		answers(func(cmd command) string {
			key := cmd.fields[1]
			switch {
			case strings.HasPrefix(key, "large"):
				return "SERVER_ERROR object too large for cache\r\n"
			case strings.HasPrefix(key, "down"):
				return "SERVER_ERROR Host is down\r\n"
			case cmd.fields[0] == "set":
				return "STORED\r\n"
			case cmd.fields[0] == "ms":
				return "HD c5\r\n"
			}
			return "DELETED\r\n"
		})(n, r, c)
	})
	keys := strings.Fields("a large1 b down1 large2 c")
	wantRefused := []int{1, 3, 4}
	isTooLarge := func(err error) bool {
		var reply *protocol.ReplyError
		return errors.As(err, &reply) && reply.TooLarge()
	}
	check := func(refused map[int]error) {
		t.Helper()
		var at []int
		for i, err := range refused {
			at = append(at, i)
			assert.Equal(t, strings.HasPrefix(keys[i], "large"), isTooLarge(err), "%s: %v", keys[i], err)
		}
		slices.Sort(at)
		assert.Equal(t, wantRefused, at)
	}
	var items []Item
	var stores []Store
	for _, key := range keys {
		items = append(items, Item{key, []byte(key)})
		stores = append(stores, Store{Item: items[len(items)-1]})
	}
	for range 3 {
		refused := map[int]error{}
		require.NoError(t, use(t, p, func(c *pool.Conn) error {
			n, err := Set(c, items, 0, func(i, _ int, err error) { refused[i] = err })
			assert.Equal(t, len(items), n)
			return err
		}))
		check(refused)

		refused = map[int]error{}
		require.NoError(t, use(t, p, func(c *pool.Conn) error {
			deleted, n, err := Delete(c, keys, func(i int, err error) { refused[i] = err })
			assert.Equal(t, len(keys), n)
			assert.EqualValues(t, len(keys)-len(wantRefused), deleted)
			return err
		}))
		check(refused)

		refused = map[int]error{}
		require.NoError(t, use(t, p, func(c *pool.Conn) error {
			out, err := StoreAll(c, stores)
			require.Len(t, out, len(stores))
			for i, o := range out {
				if o.Err != nil {
					assert.Empty(t, o.Code)
					refused[i] = o.Err
				} else {
					assert.Equal(t, Outcome{Code: "HD", CAS: 5}, o)
				}
			}
			return err
		}))
		check(refused)
	}
	assert.EqualValues(t, 1, conns.Load(), "a refusal cost the connection")
}

// TestRequests are what protocol.txt says, byte by byte.
func TestRequests(t *testing.T) {
	large := bytes.Repeat([]byte("L"), copyLimit+1)
	got := make(chan []byte, 1)
	for _, c := range []struct {
		want, replies string
		run           func(*pool.Conn) error
	}{
		{"set a 0 60 1\r\n1\r\nset b 0 60 0\r\n\r\nset c 0 60 8193\r\n" + string(large) + "\r\n", "STORED\r\nSTORED\r\nSTORED\r\n", func(c *pool.Conn) error {
			_, err := Set(c, []Item{{"a", []byte("1")}, {"b", nil}, {"c", large}}, 60, nil)
			return err
		}},
		{"set a 0 -1 2\r\n\r\n\r\n", "STORED\r\n", func(c *pool.Conn) error {
			_, err := Set(c, []Item{{"a", []byte("\r\n")}}, -1, nil)
			return err
		}},
		{"get a b\r\n", "END\r\n", func(c *pool.Conn) error { return Get(c, []string{"a", "b"}, nil) }},
		{"delete a\r\ndelete b\r\n", "DELETED\r\nNOT_FOUND\r\n", func(c *pool.Conn) error {
			n, _, err := Delete(c, []string{"a", "b"}, nil)
			assert.EqualValues(t, 1, n)
			return err
		}},
		{"mg a\r\nmg b\r\n", "EN\r\nEN\r\n", func(c *pool.Conn) error { return Exists(c, []string{"a", "b"}, nil) }},
		{"version\r\n", "VERSION 1.6.18\r\n", func(c *pool.Conn) error {
			v, err := Version(c)
			assert.Equal(t, "1.6.18", v)
			return err
		}},
		{"mg a t c f v\r\n", "VA 2 f4 c3 t9\r\n\r\n\r\n", func(c *pool.Conn) error {
			f, err := Fetch(c, "a")
			assert.Equal(t, &Found{[]byte("\r\n"), 4, 3, 9}, f)
			return err
		}},
		{"mg a t u\r\n", "HD t-1\r\n", func(c *pool.Conn) error {
			ttl, ok, err := TTL(c, "a")
			assert.True(t, ok)
			assert.EqualValues(t, -1, ttl)
			return err
		}},
		{"ms a 1 c T60\r\n1\r\nms b 0 c T0 F5 C9 MR\r\n\r\nms c 1 c T-1 ME\r\n3\r\n", "HD c1\r\nEX\r\nNS\r\n", func(c *pool.Conn) error {
			out, err := StoreAll(c, []Store{
				{Item: Item{"a", []byte("1")}, Expiration: 60, Mode: ModeSet},
				{Item: Item{"b", nil}, Flags: 5, CAS: 9, Mode: ModeReplace},
				{Item: Item{"c", []byte("3")}, Expiration: -1, Mode: ModeAdd},
			})
			assert.Equal(t, []Outcome{{Code: "HD", CAS: 1}, {Code: "EX"}, {Code: "NS"}}, out)
			return err
		}},
	} {
		p := listen(t, func(_ int, r *bufio.Reader, nc net.Conn) {
			request := make([]byte, len(c.want))
			_, _ = io.ReadFull(r, request)
			got <- request
			_, _ = io.WriteString(nc, c.replies)
			_, _ = io.Copy(io.Discard, r)
		})
		require.NoError(t, use(t, p, c.run), "%.40q", c.want)
		assert.Equal(t, c.want, string(<-got))
		assert.Equal(t, 1, idle(p), "%.40q: the connection was not kept", c.want)
	}
}

// TestWindow: no more is sent ahead of the replies than what they need in the
// smallest socket buffers, or two sides that both only write wait for each other
// for ever. The server answers nothing until the client falls silent.
func TestWindow(t *testing.T) {
	const buffers, longest = 64 << 10, 42 // bytes, the latter of a reply of one line
	const n = 2 * buffers / longest
	p := listen(t, func(_ int, r *bufio.Reader, c net.Conn) {
		ahead := 0
		for ahead < n {
			c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			if _, err := r.Peek(1); errors.Is(err, os.ErrDeadlineExceeded) && ahead > 0 {
				break
			}
			if _, err := next(r); err != nil {
				return
			}
			ahead++
		}
		c.SetReadDeadline(time.Time{})
		if ahead*longest > buffers {
			t.Errorf("%d commands ahead", ahead)
		}
		_, _ = io.WriteString(c, strings.Repeat("DELETED\r\n", ahead))
		for i := ahead; i < n; i++ {
			if _, err := next(r); err != nil {
				return
			}
			if _, err := io.WriteString(c, "DELETED\r\n"); err != nil {
				return
			}
		}
		_, _ = io.Copy(io.Discard, r)
	})
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
