package pool

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// replies are whole replies and what the scan must find.
var replies = []struct {
	request, reply string
	want           replyState
}{
	{"gets k\r\n", "END\r\n", replyComplete},
	{"gets k\r\n", "VALUE k 0 5 7\r\nvalue\r\nEND\r\n", replyComplete},
	{"gets k\r\n", "VALUE k 0 0 7\r\n\r\nEND\r\n", replyComplete},
	{"gets k l\r\n", "VALUE k 0 1 7\r\nv\r\nVALUE l 4294967295 1 8\r\nw\r\nEND\r\n", replyComplete},
	{"gat 10 k\r\n", "VALUE k 0 1 7\r\nv\r\nEND\r\n", replyComplete},
	// A value that looks like the end, a line, or another value.
	{"gets k\r\n", "VALUE k 0 5 7\r\nEND\r\n\r\nEND\r\n", replyComplete},
	{"gets k\r\n", "VALUE k 0 17 7\r\nVALUE k 0 1 7\r\nEN\r\nEND\r\n", replyComplete},
	{"gets k\r\n", "VALUE k 0 2 7\r\n\n\n\r\nEND\r\n", replyComplete},
	{"set k 0 0 1\r\n", "STORED\r\n", replyComplete},
	{"set k 0 0 1\r\n", "NOT_STORED\r\n", replyComplete},
	{"cas k 0 0 1 7\r\n", "EXISTS\r\n", replyComplete},
	{"set k 0 0 1\r\n", "SERVER_ERROR object too large for cache\r\n", replyRefused},
	{"incr k 1\r\n", "18446744073709551615\r\n", replyComplete},
	{"incr k 1\r\n", "VALUE 1\r\n", replyOutOfStep}, // no retrieval
	{"touch k 1\r\n", "TOUCHED\r\n", replyComplete},
	{"version\r\n", "VERSION 1.6.18\r\n", replyComplete},
	{"flush_all\r\n", "OK\r\n", replyComplete},

	{"gets k\r\n", "ERROR\r\n", replyRefused},
	{"gets k\r\n", "VALUE k 0 1 7\r\nv\r\nSERVER_ERROR x\r\n", replyOutOfStep},
	{"incr k 1\r\n", "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n", replyRefused},
	{"decr k 1\r\n", "NOT_FOUND\r\n", replyComplete},
	{"incr k 1\r\n", "\r\n", replyOutOfStep},
	{"delete k\r\n", "NOT_FOUND\r\n", replyComplete},
	{"flush_all\r\n", "NOT_FOUND\r\n", replyOutOfStep},
	{"mystery k\r\n", "OK\r\n", replyOutOfStep},
	{"set k 0 0 1\r\n", "CLIENT_ERROR bad data chunk\r\n", replyOutOfStep},
	{"gets k\r\n", "SERVER_ERROR out of memory\r\n", replyRefused},

	{"gets k\r\n", "VALUE k 0 x 7\r\n", replyMalformed},
	{"gets k\r\n", "VALUE k 0 -1 7\r\n", replyMalformed},
	{"gets k\r\n", "VALUE k 0 99999999999 7\r\n", replyMalformed},
	{"gets k\r\n", "VALUE k\r\n", replyMalformed},
	{"gets k\r\n", "VALUE k 0 5 7\r\nvalue!\r\nEND\r\n", replyMalformed},
	{"gets k\r\n", "VALUE k 0 6 7\r\nvalue\r\nEND\r\n", replyMalformed},
	{"gets k\r\n", "hello\r\n", replyMalformed},
	{"gets k\r\n", "END\n", replyMalformed},
	{"set k 0 0 1\r\n", "STORED\n", replyMalformed},
	{"set k 0 0 1\r\n", strings.Repeat("x", 2049), replyMalformed},
}

// scan feeds a scan with reply in pieces that end where cuts say. It returns
// the last state, and how many bytes the scan took for the reply.
func scan(request, reply string, cuts []int) (n int, state replyState) {
	var r replyScan
	r.begin([]byte(request))
	state = replyPartial
	for _, end := range append(cuts, len(reply)) {
		if end <= n {
			continue
		}
		// A piece of its own, which is overwritten behind the scan as bufio does.
		piece := []byte(reply[n:end])
		took, s := r.read(piece)
		for i := range piece {
			piece[i] = '#'
		}
		if n += took; s != replyPartial {
			return n, s
		}
		state = s
	}
	return n, state
}

func TestReplyScanSplitAnywhere(t *testing.T) {
	for _, c := range replies {
		check := func(cuts ...int) {
			t.Helper()
			n, state := scan(c.request, c.reply, cuts)
			require.Equal(t, c.want, state, "%q in pieces at %v", c.reply, cuts)
			if c.want == replyComplete {
				require.Equal(t, len(c.reply), n)
			}
		}
		check()
		all := make([]int, len(c.reply))
		for i := range all {
			all[i] = i
		}
		check(all...)
		for i := range min(len(c.reply), 100) {
			for j := i; j < min(len(c.reply), 100); j++ {
				check(i, j)
			}
		}
		if c.want != replyComplete {
			continue
		}
		for i := range c.reply {
			n, state := scan(c.request, c.reply[:i], nil)
			require.Equal(t, replyPartial, state, "%q is not all of %q", c.reply[:i], c.reply)
			require.Equal(t, i, n)
		}
	}
}

// What comes behind a reply in the same piece is not part of it, and makes the
// connection unfit for another request.
func TestReplyScanBytesTooMany(t *testing.T) {
	for _, c := range replies {
		if c.want != replyComplete {
			continue
		}
		for _, extra := range []string{"x", "\r\n", "END\r\n", c.reply} {
			n, state := scan(c.request, c.reply+extra, nil)
			require.Equal(t, replyOutOfStep, state, "%q and %q", c.reply, extra)
			require.Equal(t, len(c.reply), n, "%q and %q", c.reply, extra)
		}
	}
}

// The line of a large value is not let through before its bytes have come.
func TestReplyScanLargeValue(t *testing.T) {
	const before, head = "VALUE a 0 1 7\r\nv\r\n", "VALUE k 0 1048577 7\r\n"
	for piece, want := range map[string]struct{ n, skip int }{
		head:                 {0, 1048577},
		before + head:        {len(before), 1048577},
		before + head + "ab": {len(before), 1048575},
	} {
		var r replyScan
		r.begin([]byte("gets a k\r\n"))
		n, state := r.read([]byte(piece))
		require.Equal(t, replyLarge, state)
		require.Equal(t, want.n, n)
		require.Equal(t, want.skip, r.skip)
	}
	whole := head + strings.Repeat("v", 1048577) + "\r\nEND\r\n"
	n, state := scan("gets k\r\n", whole, nil)
	require.Equal(t, replyComplete, state, "they have come")
	require.Equal(t, len(whole), n)
	_, state = scan("gets k\r\n", "VALUE k 0 1048576 7\r\n", nil)
	require.Equal(t, replyPartial, state, "it is not large")
}

// A scan that is used again knows nothing of its last reply.
func TestReplyScanBeginsAnew(t *testing.T) {
	var r replyScan
	for _, unfinished := range []string{"VALUE k 0 100 7\r\nabc", "VALUE k 0 1 7\r\nv", "VALUE k 0", "E"} {
		r.begin([]byte("gets k\r\n"))
		_, state := r.read([]byte(unfinished))
		require.Equal(t, replyPartial, state)
		r.begin([]byte("set k 0 0 1\r\n"))
		_, state = r.read([]byte("STORED\r\n"))
		require.Equal(t, replyComplete, state, "behind %q", unfinished)
	}
}

func TestReplyScanValues(t *testing.T) {
	for range 300 {
		var reply bytes.Buffer
		for i := range rand.IntN(5) {
			value := make([]byte, rand.IntN(5000))
			for j := range value {
				value[j] = "\r\nEND VALUE"[rand.IntN(11)]
			}
			fmt.Fprintf(&reply, "VALUE k%d 0 %d 7\r\n%s\r\n", i, len(value), value)
		}
		reply.WriteString("END\r\n")
		var cuts []int
		for at := 0; at < reply.Len(); at += 1 + rand.IntN(2000) {
			cuts = append(cuts, at)
		}
		n, state := scan("gets k0 k1 k2 k3 k4\r\n", reply.String(), cuts)
		require.Equal(t, replyComplete, state)
		require.Equal(t, reply.Len(), n)
	}
}

// FuzzReplyScan: how a reply is split makes no difference, and nothing panics.
func FuzzReplyScan(f *testing.F) {
	for _, c := range replies {
		f.Add(c.request, c.reply, uint16(1), uint16(3))
	}
	f.Fuzz(func(t *testing.T, request, reply string, a, b uint16) {
		if strings.Contains(reply, "#") {
			return // scan's own mark
		}
		n, whole := scan(request, reply, nil)
		if n < 0 || n > len(reply) {
			t.Fatalf("%d bytes of %d", n, len(reply))
		}
		i, j := int(a)%(len(reply)+1), int(b)%(len(reply)+1)
		m, split := scan(request, reply, []int{min(i, j), max(i, j)})
		// Bytes that had not come yet when the reply was complete are not seen.
		if whole == replyOutOfStep && (split == replyComplete || split == replyRefused) {
			split = replyOutOfStep
		}
		if split != whole || whole != replyMalformed && whole != replyLarge && m != n {
			t.Fatalf("%q: whole %v after %d bytes, split at %d and %d %v after %d", reply, whole, n, i, j, split, m)
		}
	})
}
