package pipeline

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
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
		{"right after a wrong one", "a b", "b a x", []int{1, 0, -1}},
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

	// One of a pair may be answered for both, in whatever order: the index is one
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
			var answer strings.Builder
			for _, key := range c.answer {
				answer.WriteString(memcachedtest.Value(key, "value of "+key))
			}
			answer.WriteString("END\r\n")
			p := fake(t, classic(memcachedtest.Script{"get": memcachedtest.Say(answer.String())}))
			want := c.want
			if want == nil {
				want = map[string]string{"a": "value of a", "b": "value of b", "c": "value of c", "d": "value of d"}
			}
			for round := range 2 {
				got := map[string]string{}
				err := use(t, p, func(pc *pool.Conn) error {
					return Get(pc, keys, func(i int, v []byte) { got[keys[i]] = string(v) })
				})
				var there int64
				existsErr := use(t, p, func(pc *pool.Conn) (err error) {
					there, err = Exists(pc, keys)
					return err
				})
				if c.refused {
					assert.ErrorIs(t, err, protocol.ErrUnexpected)
					assert.ErrorIs(t, existsErr, protocol.ErrUnexpected)
					assert.Zero(t, idle(p), "a connection out of step was kept")
					assert.EqualValues(t, 2*(round+1), dials(p))
					for key, v := range got {
						assert.Equal(t, "value of "+key, v)
					}
					continue
				}
				require.NoError(t, err)
				require.NoError(t, existsErr)
				assert.Equal(t, want, got)
				asked := 0
				for _, key := range keys {
					if want[key] != "" {
						asked++
					}
				}
				assert.EqualValues(t, asked, there, "a key that is named twice counts twice")
				assert.Equal(t, 1, dials(p), "the connection is in step")
			}
		})
	}
}

// TestGetSplits: one command is bounded in length, and values of one may come
// with any key of the batch.
func TestGetSplits(t *testing.T) {
	var longest, commands atomic.Int64
	p := fake(t, memcachedtest.Script{"get": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		commands.Add(1)
		longest.Store(max(longest.Load(), int64(len(cmd.Line))))
		var b strings.Builder
		for _, key := range cmd.Args {
			b.WriteString(memcachedtest.Value(key, "value of "+key))
		}
		c.Say(b.String() + "END\r\n")
	}})
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
