package protocol

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParseValue(t *testing.T) {
	key := strings.Repeat("k", 250)
	for _, c := range []struct {
		line  string
		key   string
		flags uint64
		size  int
		cas   uint64
	}{
		{"VALUE k 0 0", "k", 0, 0, 0},
		{"VALUE k 0 5", "k", 0, 5, 0},
		{"VALUE k 4294967295 5", "k", 1<<32 - 1, 5, 0},
		{"VALUE k 4294967296 5", "k", 1 << 32, 5, 0},
		{"VALUE k 0 5 18446744073709551615", "k", 0, 5, 1<<64 - 1},
		{"VALUE " + key + " 1 1073741824", key, 1, 1 << 30, 0},
		{"VALUE VALUE 0 1", "VALUE", 0, 1, 0},
		{"VALUE END 0 1", "END", 0, 1, 0},
		{"VALUE \xc3\xa9\xff 0 1", "\xc3\xa9\xff", 0, 1, 0},
	} {
		v, ok, err := ParseValue([]byte(c.line))
		if assert.NoError(t, err, "%q", c.line) {
			assert.True(t, ok, "%q", c.line)
			assert.Equal(t, c.key, string(v.Key), "%q", c.line)
			assert.Equal(t, c.size, v.Size, "%q", c.line)
			assert.Equal(t, c.flags, v.Flags, "%q", c.line)
			assert.Equal(t, c.cas, v.CAS, "%q", c.line)
		}
	}

	_, ok, err := ParseValue([]byte("END"))
	assert.NoError(t, err)
	assert.False(t, ok, "END")

	for _, line := range []string{
		"", " ", "\r", "E", "EN", "END ", "ENDE", "end", "STORED", "OK",
		"VALUE", "VALUE ", "VALUE k", "VALUE k ", "VALUE k 0", "VALUE k 0 ", "VALUE  0 5", "value k 0 5", "VALUE k x 5", "VALUE k -1 5", "VALUE k 0 5 x", "VALUE k 0 5 1 2",
		"VALUES k 0 5", "VALUE k 0 -1", "VALUE k 0 +1", "VALUE k 0 x", "VALUE k 0 1x", "VALUE k 0 0x10", "VALUE k 0 1.5",
		"VALUE k 0 1073741825", "VALUE k 0 4294967295", "VALUE k 0 9223372036854775807",
		"VALUE k 0 18446744073709551615", "VALUE k 0 18446744073709551616", "VALUE k 0 18446744073709551621",
		"VALUE k 0 184467440737095516150", "VALUE k 0 99999999999999999999999999",
	} {
		_, ok, err := ParseValue([]byte(line))
		assert.ErrorIs(t, err, ErrUnexpected, "%q", line)
		assert.False(t, ok, "%q", line)
	}

	for _, line := range []string{"ERROR", "CLIENT_ERROR bad", "SERVER_ERROR out of memory"} {
		_, ok, err := ParseValue([]byte(line))
		var reply *ReplyError
		if assert.ErrorAs(t, err, &reply, line) {
			assert.Equal(t, line, reply.Line)
		}
		assert.False(t, ok, line)
	}
}

func TestLineError(t *testing.T) {
	type is struct{ inStep, inStepOneLine, tooLarge bool }
	for line, want := range map[string]is{
		"ERROR":                                    {inStepOneLine: true},
		"ERROR unknown":                            {},
		"CLIENT_ERROR":                             {inStepOneLine: true},
		"CLIENT_ERROR line too large":              {inStepOneLine: true},
		"CLIENT_ERROR unauthenticated":             {},
		"SERVER_ERROR":                             {true, true, false},
		"SERVER_ERROR out of memory storing o":     {true, true, false},
		"SERVER_ERROR object too large for cache":  {true, true, true},
		"SERVER_ERROR Host is down":                {true, true, false},
		"SERVER_ERROR VALUE k 0 1":                 {true, true, false},
		"SERVER_ERROR object too large for cache ": {true, true, true},
	} {
		for _, end := range []string{"", "\r", "\n", "\r\n"} {
			var reply *ReplyError
			if assert.ErrorAs(t, LineError([]byte(line+end)), &reply, "%q", line+end) {
				assert.Equal(t, line, reply.Line)
				assert.Equal(t, want, is{reply.InStep(false), reply.InStep(true), reply.TooLarge()}, "%q", line)
				assert.Contains(t, reply.Error(), line)
			}
		}
	}
	for _, line := range []string{
		"", "\r\n", "secret", "error", "ERRORS", "ERROR:", "SERVER_ERRORS", "CLIENT_ERROR_", " ERROR", "STORED", "-ERR unknown command",
	} {
		err := LineError([]byte(line))
		assert.Equal(t, ErrUnexpected, err, "%q", line)
	}
	assert.NotContains(t, LineError([]byte("secret")).Error(), "secret", "an unknown line may be a value")
}

func TestParseStat(t *testing.T) {
	for line, want := range map[string][2]string{
		"STAT time 1700000000":  {"time", "1700000000"},
		"STAT version 1.6.18 x": {"version", "1.6.18 x"},
		"STAT empty ":           {"empty", ""},
	} {
		name, value, ok := ParseStat([]byte(line))
		assert.True(t, ok, line)
		assert.Equal(t, want, [2]string{name, value}, line)
	}
	for _, line := range []string{"", "END", "STAT", "STAT ", "STAT time", "stat time 1", "ERROR"} {
		_, _, ok := ParseStat([]byte(line))
		assert.False(t, ok, "%q", line)
	}
}

func TestLine(t *testing.T) {
	long := strings.Repeat("x", MaxLine-2)
	for in, want := range map[string]string{
		"\r\n":             "",
		"STORED\r\nmore":   "STORED",
		"a\rb\r\n":         "a\rb",
		"\r\r\n":           "\r",
		"\x00\xff\r\n":     "\x00\xff",
		long + "\r\n":      long,
		"x\r\n" + "\n\r\n": "x",
	} {
		for name, r := range readers(in) {
			line, err := Line(r)
			assert.NoError(t, err, "%s %.20q", name, in)
			assert.Equal(t, want, string(line), "%s %.20q", name, in)
		}
	}
	for in, want := range map[string]error{
		"":                         io.ErrUnexpectedEOF,
		"STORED":                   io.ErrUnexpectedEOF,
		"STORED\r":                 io.ErrUnexpectedEOF,
		"\n":                       ErrUnexpected,
		"STORED\n":                 ErrUnexpected,
		"a\nb\r\n":                 ErrUnexpected,
		"x" + long + "\r\n":        ErrUnexpected,
		strings.Repeat("x", 1<<20): ErrUnexpected, // no end in sight
	} {
		for name, r := range readers(in) {
			_, err := Line(r)
			assert.ErrorIs(t, err, want, "%s %.20q", name, in)
		}
	}
	failed := errors.New("failed")
	_, err := Line(bufio.NewReader(iotest.ErrReader(failed)))
	assert.Equal(t, failed, err, "the connection's own error")
}

// readers read in from one piece and from pieces of every kind.
func readers(in string) map[string]*bufio.Reader {
	return map[string]*bufio.Reader{
		"whole":         bufio.NewReaderSize(strings.NewReader(in), 4096),
		"bytes":         bufio.NewReaderSize(iotest.OneByteReader(strings.NewReader(in)), 4096),
		"halves":        bufio.NewReaderSize(iotest.HalfReader(strings.NewReader(in)), 4096),
		"data with EOF": bufio.NewReaderSize(iotest.DataErrReader(strings.NewReader(in)), 4096),
	}
}

// dataReaders leaves out what takes long on a large value.
func dataReaders(in string) map[string]*bufio.Reader {
	r := readers(in)
	if len(in) > GrowBy/2 {
		delete(r, "bytes")
	}
	return r
}

func TestData(t *testing.T) {
	for _, size := range []int{0, 1, 2, 4095, 4096, 4097, GrowBy - 1, GrowBy, GrowBy + 1, 3*GrowBy + 7} {
		value := pattern(size)
		in := string(value) + "\r\n" + "END\r\n"
		for name, r := range dataReaders(in) {
			got, err := Data(r, size)
			require.NoError(t, err, "%s %d", name, size)
			require.NotNil(t, got, "%s: an empty value is a value", name)
			require.True(t, bytes.Equal(value, got), "%s %d: other bytes", name, size)
			line, err := Line(r)
			require.NoError(t, err, "%s %d", name, size)
			require.Equal(t, "END", string(line), "%s %d: out of step", name, size)
		}
		for name, r := range dataReaders(in) {
			require.NoError(t, SkipData(r, size), "%s %d", name, size)
			line, err := Line(r)
			require.NoError(t, err, "%s %d", name, size)
			require.Equal(t, "END", string(line), "%s %d: out of step", name, size)
		}
	}

	for _, c := range []struct {
		in   string
		size int
		want error
	}{
		{"", 0, io.ErrUnexpectedEOF},
		{"\r", 0, io.ErrUnexpectedEOF},
		{"", 1, io.ErrUnexpectedEOF},
		{"abc", 5, io.ErrUnexpectedEOF},
		{"abcde", 5, io.ErrUnexpectedEOF},
		{"abcde\r", 5, io.ErrUnexpectedEOF},
		{"abcdef\r\n", 5, ErrUnexpected},
		{"abcd\r\nx", 5, ErrUnexpected},
		{"abcde\n\r", 5, ErrUnexpected},
		{"abcdeEND\r\n", 5, ErrUnexpected},
		{"few", maxValue, io.ErrUnexpectedEOF},
	} {
		for name, r := range readers(c.in) {
			_, err := Data(r, c.size)
			assert.ErrorIs(t, err, c.want, "%s: Data(%q, %d)", name, c.in, c.size)
		}
		for name, r := range readers(c.in) {
			assert.ErrorIs(t, SkipData(r, c.size), c.want, "%s: SkipData(%q, %d)", name, c.in, c.size)
		}
	}
}

// A TLS connection's last bytes come together with its end.
// pattern returns size bytes among which there are line ends and replies.
func pattern(size int) []byte {
	const text = "END\r\nVALUE k 0 3\r\nabc\r\nSERVER_ERROR x\r\n\x00\xff"
	return []byte(strings.Repeat(text, size/len(text)+1)[:size])
}

// TestHostileSize announces a gigabyte and sends a few bytes.
func TestHostileSize(t *testing.T) {
	for _, in := range []string{"VALUE k 0 1000000000\r\nfew bytes", "VA 1000000000 t-1\r\nfew bytes"} {
		for _, parse := range []func(*bufio.Reader, func(*bufio.Reader, int) ([]byte, error)) outcome{classicReplies, metaReplies} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			o := parse(bufio.NewReaderSize(strings.NewReader(in), 4096), Data)
			runtime.ReadMemStats(&after)
			require.Error(t, o.err)
			require.Empty(t, o.values)
			assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(2*GrowBy), in)
		}
	}
}

// TestLargeValueMemory reads a value of many times GrowBy: room that grows with what
// comes must not cost several times the value.
func TestLargeValueMemory(t *testing.T) {
	const size = 64 << 20
	r := bufio.NewReaderSize(io.MultiReader(io.LimitReader(zeros{}, size), strings.NewReader("\r\n")), 32<<10)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	value, err := Data(r, size)
	runtime.ReadMemStats(&after)
	require.NoError(t, err)
	require.Len(t, value, size)
	assert.LessOrEqual(t, cap(value), size+size/4, "room that nobody needs stays with the value")
	assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(4*size))
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestLineAllocates nothing: lines are read a hundred thousand times in a batch.
func TestLineAllocates(t *testing.T) {
	in := strings.NewReader("")
	r := bufio.NewReader(in)
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		in.Reset("VALUE key 0 5 17\r\nhello\r\nVA 5 t-1 c3 f0\r\nhello\r\nHD\r\n")
		r.Reset(in)
		line, _ := Line(r)
		v, ok, err := ParseValue(line)
		if !ok || err != nil || SkipData(r, v.Size) != nil {
			t.Fatal("VALUE", err)
		}
		line, _ = Line(r)
		m, err := ParseMeta(line)
		if err != nil || SkipData(r, m.Size) != nil {
			t.Fatal("VA", err)
		}
		line, _ = Line(r)
		if m, err := ParseMeta(line); err != nil || m.Code != "HD" {
			t.Fatal("HD", err)
		}
	}))
}
