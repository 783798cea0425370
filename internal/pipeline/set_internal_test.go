package pipeline

import (
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// TestSetAnswers: what a broken proxy did not store must not pass for stored, nor
// for the answer to another kind of set.
func TestSetAnswers(t *testing.T) {
	plain, add, cas := Set{}, Set{Mode: ModeAdd}, Set{CAS: 7}
	for _, c := range []struct {
		meta, classic string
		status        Status
		fits          []Set
	}{
		{"HD\r\n", "STORED\r\n", StatusStored, []Set{plain, add, cas}},
		{"NS\r\n", "NOT_STORED\r\n", StatusNotStored, []Set{add, cas}},
		{"EX\r\n", "EXISTS\r\n", StatusExists, []Set{cas}},
		{"NF\r\n", "NOT_FOUND\r\n", StatusNotFound, []Set{cas}},
		{"EN\r\n", "END\r\n", StatusRefused, nil},
	} {
		say := memcachedtest.Script{"ms": memcachedtest.Say(c.meta)}
		for _, verb := range []string{"set", "add", "cas"} {
			say[verb] = memcachedtest.Say(c.classic)
		}
		for name, script := range map[string]memcachedtest.Script{"meta": say, "classic": classic(maps.Clone(say))} {
			p := fake(t, script)
			for _, set := range []Set{plain, add, cas} {
				fits := slices.ContainsFunc(c.fits, func(s Set) bool { return s.Mode == set.Mode && s.CAS == set.CAS })
				set.Item = Item{"k", []byte("v")}
				status := StatusRefused
				err := use(t, p, func(pc *pool.Conn) error {
					return SetAll(pc, []Set{set}, func(_ int, r SetResult) { status = r.Status })
				})
				if fits {
					require.NoError(t, err, "%s: %+v: %q", name, set, c.classic)
					assert.Equal(t, c.status, status)
				} else {
					require.ErrorIs(t, err, protocol.ErrUnexpected, "%s: %+v: %q", name, set, c.classic)
					assert.Zero(t, idle(p), "the connection was kept")
				}
			}
		}
	}
}
