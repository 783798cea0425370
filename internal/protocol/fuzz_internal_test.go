package protocol

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
)

// outcome is all that a client sees of a reply stream.
type outcome struct {
	values []string
	err    error
}

func (o outcome) String() string {
	return fmt.Sprintf("%d values %.200q, %v", len(o.values), o.values, o.err)
}

// classicReplies reads replies to get until one is no such reply; at least one
// byte goes with every step.
func classicReplies(r *bufio.Reader, data func(*bufio.Reader, int) ([]byte, error)) (o outcome) {
	for {
		line, err := Line(r)
		if err != nil {
			o.err = err
			return o
		}
		v, ok, err := ParseValue(line)
		if err != nil {
			o.err = err
			return o
		}
		if !ok {
			o.values = append(o.values, "END")
			continue
		}
		key := string(v.Key)
		value, err := data(r, v.Size)
		if err != nil {
			o.err = err
			return o
		}
		o.values = append(o.values, fmt.Sprintf("%s=%d:%s", key, v.Size, value))
	}
}

// metaReplies does the same for meta commands.
func metaReplies(r *bufio.Reader, data func(*bufio.Reader, int) ([]byte, error)) (o outcome) {
	for {
		line, err := Line(r)
		if err != nil {
			o.err = err
			return o
		}
		m, err := ParseMeta(line)
		if err != nil {
			o.err = err
			return o
		}
		var value []byte
		if m.Code == "VA" {
			if value, err = data(r, m.Size); err != nil {
				o.err = err
				return o
			}
		}
		o.values = append(o.values, fmt.Sprintf("%+v=%s", m, value))
	}
}

// lineReplies does the same for set, delete and stats.
func lineReplies(r *bufio.Reader, _ func(*bufio.Reader, int) ([]byte, error)) (o outcome) {
	for {
		line, err := Line(r)
		if err != nil {
			o.err = err
			return o
		}
		if name, value, ok := ParseStat(line); ok {
			o.values = append(o.values, name+"="+value)
			continue
		}
		if err := LineError(line); err != ErrUnexpected {
			o.values = append(o.values, err.Error())
		}
	}
}

// chunks reads in pieces of random sizes.
type chunks struct {
	r   io.Reader
	rnd *rand.Rand
}

func (c chunks) Read(p []byte) (int, error) {
	return c.r.Read(p[:min(len(p), 1+c.rnd.IntN(1+c.rnd.IntN(64)))])
}

// FuzzReplies feeds the parser with anything: it must come to an end, with the
// same values and the same error however the bytes are cut into pieces, and
// without more memory than the bytes are worth.
func FuzzReplies(f *testing.F) {
	for _, seed := range []string{
		"", "\r\n", "END\r\n", "ERROR\r\n", "SERVER_ERROR object too large for cache\r\n",
		"VALUE k 0 5\r\nhello\r\nEND\r\n",
		"VALUE k 0 0 7\r\n\r\nVALUE l 0 2\r\n\r\n\r\nEND\r\n",
		"VALUE k 0 5\r\nhelloEND\r\n",
		"VALUE k 0 1000000000\r\nfew",
		"VALUE k 0 18446744073709551615\r\n",
		"VALUE k 0 -5\r\nhello\r\n",
		"VA 5 t-1 c3 f0\r\nhello\r\nEN\r\nHD t5\r\nMN\r\n",
		"VA 1000000000\r\nfew", "VA\r\n", "HD t\r\n",
		"STORED\r\nNOT_STORED\r\nDELETED\r\nNOT_FOUND\r\n",
		"STAT time 5\r\nSTAT proxy_x 1\r\nEND\r\n",
		strings.Repeat("x", 3000) + "\r\n",
	} {
		f.Add([]byte(seed), uint64(len(seed)))
	}
	f.Fuzz(func(t *testing.T, in []byte, seed uint64) {
		for name, parse := range map[string]func(*bufio.Reader, func(*bufio.Reader, int) ([]byte, error)) outcome{
			"classic": classicReplies, "meta": metaReplies, "lines": lineReplies,
		} {
			read := func(r io.Reader) outcome { return parse(bufio.NewReaderSize(r, 4<<10), Data) }
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			atOnce := read(bytes.NewReader(in))
			runtime.ReadMemStats(&after)
			// A value that is announced and does not come costs GrowBy; the rest is
			// this test's own, and other goroutines'.
			if got, limit := after.TotalAlloc-before.TotalAlloc, uint64(GrowBy+64*len(in)+1<<20); got > limit {
				t.Errorf("%s: %d bytes of replies cost %d of memory", name, len(in), got)
			}
			if atOnce.err == nil {
				t.Fatalf("%s: no end", name)
			}
			var reply *ReplyError
			if !errors.Is(atOnce.err, ErrUnexpected) && !errors.Is(atOnce.err, io.ErrUnexpectedEOF) && !errors.As(atOnce.err, &reply) {
				t.Errorf("%s: error %v", name, atOnce.err)
			}
			rnd := rand.New(rand.NewPCG(seed, uint64(len(in))))
			for cut, r := range map[string]io.Reader{
				"one byte each": iotest.OneByteReader(bytes.NewReader(in)),
				"random":        chunks{bytes.NewReader(in), rnd},
				"EOF with data": iotest.DataErrReader(bytes.NewReader(in)),
			} {
				if got := read(r); got.String() != atOnce.String() {
					t.Errorf("%s, %s: %v\nin one piece: %v", name, cut, got, atOnce)
				}
			}
			// Skipping a value must see the same stream as reading it.
			skipped := parse(bufio.NewReaderSize(bytes.NewReader(in), 4<<10), func(r *bufio.Reader, size int) ([]byte, error) {
				return nil, SkipData(r, size)
			})
			if len(skipped.values) != len(atOnce.values) || skipped.err.Error() != atOnce.err.Error() {
				t.Errorf("%s, skipped: %v\nread: %v", name, skipped, atOnce)
			}
		}
	})
}
