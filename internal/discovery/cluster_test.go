package discovery_test

import (
	"crypto/tls"
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

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/discovery"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// connect dials a server for as long as the test takes.
func connect(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
	return c
}

// cluster asks a server that answers by script.
func cluster(t *testing.T, script memcachedtest.Script) (discovery.Answer, error) {
	t.Helper()
	return discovery.Cluster(connect(t, memcachedtest.StartFake(t, script).Addr()))
}

// saying is the script of an endpoint that says text.
func saying(text string) memcachedtest.Script {
	return memcachedtest.Script{"config": memcachedtest.Say(text)}
}

func TestCluster(t *testing.T) {
	t.Parallel()
	nodes := []string{"n2.cache.amazonaws.com|10.82.235.120|11211", "n1.cache.amazonaws.com|10.80.249.27|11218"}
	want := discovery.Answer{Version: 12, Servers: []string{"n2.cache.amazonaws.com:11211", "n1.cache.amazonaws.com:11218"}}
	f := memcachedtest.StartFake(t, memcachedtest.ConfigEndpoint(12, nodes...))
	got, err := discovery.Cluster(connect(t, f.Addr()))
	require.NoError(t, err)
	assert.Equal(t, want, got, "the order is the endpoint's")
	assert.Equal(t, "config get cluster\r\n", f.Received())

	f.SetScript(memcachedtest.ConfigEndpoint(13, nodes[0]))
	got, err = discovery.Cluster(connect(t, f.Addr()))
	require.NoError(t, err)
	assert.Equal(t, discovery.Answer{Version: 13, Servers: want.Servers[:1]}, got)
	assert.Equal(t, 2, f.Count("config"))

	old := memcachedtest.StartFake(t, memcachedtest.OldConfigEndpoint(12, nodes...))
	got, err = discovery.Cluster(connect(t, old.Addr()))
	require.NoError(t, err)
	assert.Equal(t, want, got, "before 1.4.14")
	assert.Equal(t, 1, old.Accepted())
	assert.Equal(t, "config get cluster\r\nget AmazonElastiCache:cluster\r\n", old.Received())

	secure, config := memcachedtest.StartFakeTLS(t, memcachedtest.ConfigEndpoint(12, nodes...))
	c, err := tls.Dial("tcp", secure.Addr(), config)
	require.NoError(t, err)
	defer c.Close()
	got, err = discovery.Cluster(c)
	require.NoError(t, err)
	assert.Equal(t, want, got, "by TLS")
}

// A real memcached knows no config, and holds the value of an old engine.
func TestClusterOfARealMemcached(t *testing.T) {
	t.Parallel()
	s := memcachedtest.Start(t)
	_, err := discovery.Cluster(connect(t, s.Addr()))
	assert.ErrorContains(t, err, "is it a configuration endpoint?")

	c := connect(t, s.Addr())
	body := memcachedtest.ClusterBody(3, "localhost|127.0.0.1|11211")
	_, err = fmt.Fprintf(c, "set AmazonElastiCache:cluster 0 0 %d\r\n%s\r\n", len(body), body)
	require.NoError(t, err)
	stored := make([]byte, len("STORED\r\n"))
	_, err = io.ReadFull(c, stored)
	require.NoError(t, err)
	require.Equal(t, "STORED\r\n", string(stored))
	got, err := discovery.Cluster(c)
	require.NoError(t, err)
	assert.Equal(t, discovery.Answer{Version: 3, Servers: []string{"localhost:11211"}}, got)
}

// What endpoints, and those that others wrote, say in different ways.
func TestClusterReadsByLines(t *testing.T) {
	t.Parallel()
	want := discovery.Answer{Version: 12, Servers: []string{"a:1", "b:2"}}
	for name, text := range map[string]string{
		"ElastiCache":        "CONFIG cluster 0 21\r\n12\na||1 b|10.0.0.2|2\n\r\nEND\r\n",
		"without empty line": "CONFIG cluster 0 20\r\n12\na||1 b||2\r\nEND\r\n",
		"CR LF":              "CONFIG cluster 0 20\r\n12\r\na||1 b||2\r\n\r\nEND\r\n",
		"LF":                 "CONFIG cluster 0 20\n12\na||1 b||2\n\nEND\n",
		"empty lines":        "CONFIG cluster 0 20\r\n\n12\n\n\r\na||1 b||2\n\n\n\r\n\r\nEND\r\n",
		"too short a length": "CONFIG cluster 0 1\r\n12\na||1 b||2\n\r\nEND\r\n",
		"too long a length":  "CONFIG cluster 0 99999999999\r\n12\na||1 b||2\n\r\nEND\r\n",
		"spaces":             "CONFIG cluster 0 20\r\n12 \n  a||1   b||2  \n\r\nEND\r\n",
		"one twice":          "CONFIG cluster 0 20\r\n12\na||1 b||2 a||1 a||01\n\r\nEND\r\n",
		"more behind it":     "CONFIG cluster 0 20\r\n12\na||1 b||2\n\r\nEND\r\nEND\r\nERROR\r\n",
	} {
		got, err := cluster(t, saying(text))
		require.NoError(t, err, name)
		assert.Equal(t, want, got, name)
	}
}

func TestClusterPrefersNames(t *testing.T) {
	t.Parallel()
	for node, want := range map[string]string{
		"host.example|10.0.0.1|11211": "host.example:11211",
		"host||11211":                 "host:11211",
		"a_b-c.9||65535":              "a_b-c.9:65535",
		"|10.0.0.1|1":                 "10.0.0.1:1",
		"10.0.0.3|10.0.0.3|11211":     "10.0.0.3:11211",
		"|fd00::1|11211":              "[fd00::1]:11211",
		"fd00::2|fd00::1|11211":       "[fd00::2]:11211",
		"host|fd00::1|11211":          "host:11211",
	} {
		got, err := cluster(t, memcachedtest.ConfigEndpoint(1, node))
		require.NoError(t, err, node)
		assert.Equal(t, []string{want}, got.Servers, node)
	}
}

// Half a list would send keys elsewhere.
func TestClusterRefusesAllWithABadNode(t *testing.T) {
	t.Parallel()
	for _, node := range []string{
		"a", "a|b", "a|1", "a|b|1|c", "||1", "|", "||", "|||", "a||", "a||0", "a||65536", "a||-1", "a||+1", "a||x", "a||0x1",
		"a:1||1", "a/b||1", "a,b||1", "a\x00||1", "a\x7f||1", "ä||1", "a|b:c|1", "a|b/c|1", "[fd00::1]||1", "fe80::1%eth0||1",
		"a@b||1", "user:secret@a||1", strings.Repeat("a", 254) + "||1", "END", "-", "a||1;b||2",
	} {
		got, err := cluster(t, memcachedtest.ConfigEndpoint(1, "good||1", node, "good2||2"))
		assert.ErrorIs(t, err, protocol.ErrUnexpected, "%q", node)
		assert.ErrorContains(t, err, "is not host|ip|port", "%q", node)
		assert.Empty(t, got.Servers, "%q", node)
	}
}

func TestClusterRefusesWhatIsNoList(t *testing.T) {
	t.Parallel()
	many := make([]string, 1001)
	for i := range many {
		many[i] = fmt.Sprintf("n%d||1", i)
	}
	got, err := cluster(t, memcachedtest.ConfigEndpoint(1, many[:1000]...))
	require.NoError(t, err)
	assert.Len(t, got.Servers, 1000)

	var reply *protocol.ReplyError
	for text, want := range map[string]string{
		memcachedBody("12\n\n"):                               "named no servers",
		memcachedBody("12\n   \n"):                            "named no servers",
		memcachedBody(""):                                     "named no servers",
		memcachedBody("a||1\n"):                               "the version is no number",
		memcachedBody("-1\na||1\n"):                           "the version is no number",
		memcachedBody("configversion\na||1"):                  "the version is no number",
		memcachedBody("9223372036854775808"):                  "is no number",
		memcachedBody("12\na||1\nb||1\n"):                     "something comes after the line of nodes",
		memcachedBody(" \n12\n13\n"):                          "node 1 is not host|ip|port",
		"CONFIG other 0 5\r\n12\na||1\nEND\n":                 "unexpected reply",
		"CONFIG\r\nEND\r\n":                                   "unexpected reply",
		"\r\n":                                                "unexpected reply",
		"END\r\n":                                             "is it a configuration endpoint?",
		"HTTP/1.1 400 Bad Request\r\n\r\n":                    "unexpected reply",
		"\x16\x03\x01\n":                                      "unexpected reply",
		"SERVER_ERROR out of memory\r\n":                      `"SERVER_ERROR out of memory"`,
		"CLIENT_ERROR unauthenticated\r\n":                    `"CLIENT_ERROR unauthenticated"`,
		"ERROR Too many open connections\r\n":                 `"ERROR Too many open connections"`,
		memcachedtest.Value("other", "12\n"):                  "unexpected reply",
		memcachedBody("1\n" + strings.Join(many, " ") + "\n"): "more than 1000 nodes",
	} {
		got, err := cluster(t, saying(text))
		assert.ErrorContains(t, err, want, "%.80q", text)
		assert.Empty(t, got, "%.80q", text)
		assert.Equal(t, strings.Contains(text, "ERROR"), errors.As(err, &reply), "%.80q", text)
	}

	// Of an old engine as well, and of one that does not know either command.
	_, err = cluster(t, memcachedtest.OldConfigEndpoint(1, "a|b"))
	assert.ErrorIs(t, err, protocol.ErrUnexpected)
	_, err = cluster(t, memcachedtest.Script{"*": memcachedtest.Say("ERROR\r\n")})
	assert.ErrorContains(t, err, "is it a configuration endpoint?")
}

func memcachedBody(body string) string { return "CONFIG cluster 0 0\r\n" + body + "\r\nEND\r\n" }

// An answer without an end costs no more than its bound, and an error quotes but the
// beginning of a line.
func TestClusterIsBounded(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]memcachedtest.Script{
		"a line without end":      {"config": memcachedtest.Flood("x")},
		"an error without end":    {"config": memcachedtest.Flood("SERVER_ERROR ")},
		"empty lines":             {"config": then("CONFIG cluster 0 5\r\n", "\r\n")},
		"a version without end":   {"config": then("CONFIG cluster 0 5\r\n", "1")},
		"nodes without end":       {"config": then("CONFIG cluster 0 5\r\n1\n", "a||1 ")},
		"empty lines at the end":  {"config": then("CONFIG cluster 0 5\r\n1\na||1\n", "\n")},
		"a value without end":     {"get": then("VALUE AmazonElastiCache:cluster 0 5\r\n1\n", "a||1 ")},
		"an old one without line": {"get": memcachedtest.Flood("\x00")},
	} {
		_, err := cluster(t, script)
		assert.ErrorContains(t, err, "no end of the answer after 1048576 bytes", name)
		assert.ErrorIs(t, err, protocol.ErrUnexpected, name)
	}
	long := strings.Repeat("\x01x", 1000)
	for name, text := range map[string]string{
		"first line": long + "\r\n", "error": "SERVER_ERROR " + long + "\r\n",
		"version": memcachedBody(long), "node": memcachedBody("1\n" + long), "after": memcachedBody("1\na||1\n" + long),
	} {
		_, err := cluster(t, saying(text))
		require.Error(t, err, name)
		assert.Less(t, len(err.Error()), 700, name)
		assert.NotContains(t, err.Error(), "\x01", name)
	}
}

// then says text and floods with more of another.
func then(text, flood string) memcachedtest.Handler {
	return func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		c.Say(text)
		memcachedtest.Flood(flood)(c, cmd)
	}
}

func TestClusterSaysHowTheConnectionFailed(t *testing.T) {
	t.Parallel()
	_, err := cluster(t, memcachedtest.Script{"config": memcachedtest.HangUp})
	assert.ErrorIs(t, err, io.EOF)
	_, err = cluster(t, memcachedtest.Script{"config": func(c *memcachedtest.FakeConn, _ memcachedtest.Command) {
		c.Say("CONFIG cluster 0 5\r\n1\na||1 b||1\n\r\nEN")
		c.Close()
	}})
	assert.ErrorIs(t, err, io.EOF, "a list without its end is none")

	c := connect(t, memcachedtest.StartFake(t, memcachedtest.Script{"config": memcachedtest.Hang}).Addr())
	require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Millisecond)))
	_, err = discovery.Cluster(c)
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)

	c.Close()
	_, err = discovery.Cluster(c)
	assert.ErrorIs(t, err, net.ErrClosed)
	assert.ErrorContains(t, err, "config get cluster")
}
