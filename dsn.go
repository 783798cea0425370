package memcacheddriver

import (
	"crypto/tls"
	"fmt"
	"math"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

const defaultPort = "11211"

// parseDSN reads
//
//	[memcached://[user:password@]]server{,server}[?name=value{&name=value}]
//
// where a server is host, [IPv6], /path or unix:///path; a port may follow the first two,
// and a weight the port or the path, each after a colon.
// With discovery it names where to ask. It changes c by the parameters and the
// credentials, and returns the servers for [config.setServers].
//
// A password may stand anywhere in a DSN that is written wrongly. So errors quote
// nothing of it but the names of parameters that there are, and what is taken for
// a host or a path has none of the characters that come with credentials.
func parseDSN(dsn string, c *config) (servers string, err error) {
	servers, query, _ := strings.Cut(strings.TrimSpace(dsn), "?")
	scheme, rest, found := strings.Cut(servers, "://")
	if found && !strings.EqualFold(scheme, "unix") && !strings.ContainsAny(scheme, ",/") {
		if !strings.EqualFold(scheme, "memcached") {
			return "", invalidDSN("the scheme is not memcached; write memcached://host:port, or host:port alone")
		}
		servers = rest
		if user, rest, ok := strings.Cut(servers, "@"); ok {
			if err := parseCredentials(user, c); err != nil {
				return "", err
			}
			servers = rest
		}
	}
	if strings.Contains(query, "@") {
		return "", invalidDSN("there is an @ after the ?; percent-encode what is special in the user and the password")
	}
	return servers, parseParams(query, c)
}

// parseServers reads server{,server}.
func parseServers(list string) ([]pool.Entry, error) {
	if strings.TrimSpace(list) == "" {
		return nil, invalidDSN("it names no server; an example is mc1:11211,mc2:11211")
	}
	var entries []pool.Entry
	total := uint64(0)
	for i, server := range strings.Split(list, ",") {
		e, err := parseServer(strings.TrimSpace(server))
		if err != nil {
			return nil, invalidDSN("server %d: %w", i+1, err)
		}
		entries = append(entries, e)
		total += uint64(e.Weight)
	}
	if total > math.MaxUint32 {
		return nil, invalidDSN("the weights are more than %d together", uint32(math.MaxUint32))
	}
	return entries, nil
}

func invalidDSN(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalidDSN}, args...)...)
}

func parseCredentials(userinfo string, c *config) error {
	user, password, ok := strings.Cut(userinfo, ":")
	u, err1 := url.PathUnescape(user)
	p, err2 := url.PathUnescape(password)
	// A comma or a slash is one of a list or of a path in front of the credentials.
	if !ok || u == "" || err1 != nil || err2 != nil || strings.ContainsAny(userinfo, ",/") {
		return invalidDSN("what is in front of the @ is not user:password, percent-encoded (a comma is %%2C, a slash %%2F); the credentials come once, before all servers")
	}
	c.user, c.password = u, p
	return nil
}

func parseServer(s string) (pool.Entry, error) {
	if s == "" {
		return pool.Entry{}, fmt.Errorf("it is empty")
	}
	if strings.Contains(s, "@") {
		return pool.Entry{}, fmt.Errorf("there is an @ in it; credentials are written memcached://user:password@host or memcached://user:password@/path, percent-encoded")
	}
	if strings.HasPrefix(s, "/") || strings.HasPrefix(s, "unix:/") {
		return parseUnix(strings.TrimPrefix(s, "unix://"))
	}
	switch {
	case strings.Contains(s, ";"):
		return pool.Entry{}, fmt.Errorf("there is a semicolon in it; servers are separated by commas")
	case strings.Contains(s, "&"):
		return pool.Entry{}, fmt.Errorf("there is an & in it; the first parameter comes after a ?, as in host:port?timeout=1s&tls=true")
	case strings.Contains(s, "/"):
		return pool.Entry{}, fmt.Errorf("there is a / in it; nothing comes after host:port:weight (Memcached has no database numbers), and a Unix socket is written /path or unix:///path")
	case strings.Trim(s, "0123456789") == "":
		return pool.Entry{}, fmt.Errorf("it is only a number; a port is joined to its host by a colon, as in localhost:11211")
	}
	host, rest, err := cutHost(s)
	if err != nil {
		return pool.Entry{}, err
	}
	port, weight, hasWeight := strings.Cut(strings.TrimPrefix(rest, ":"), ":")
	if rest == "" {
		port = defaultPort
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return pool.Entry{}, fmt.Errorf("the port is not a number from 1 to 65535")
	}
	return weighted(pool.Addr{Net: "tcp", Address: net.JoinHostPort(host, strconv.FormatUint(n, 10))}, weight, hasWeight)
}

// cutHost returns the host in front of the colon of a port, and what begins with that.
func cutHost(s string) (host, rest string, err error) {
	if strings.HasPrefix(s, "[") {
		host, rest, found := strings.Cut(s[1:], "]")
		if !found {
			return "", "", fmt.Errorf("the ] of the IPv6 address is missing")
		}
		if ip, zone, _ := strings.Cut(host, "%"); net.ParseIP(ip) == nil || !strings.Contains(ip, ":") || !isName(zone) {
			return "", "", fmt.Errorf("what is in [] is not an IPv6 address (a zone has letters, digits, dots, - and _)")
		}
		if rest != "" && rest[0] != ':' {
			return "", "", fmt.Errorf("only a port and a weight can follow the ], as in [::1]:11211 or [::1]:11211:2")
		}
		return host, rest, nil
	}
	if strings.Count(s, ":") > 2 || strings.Contains(s, "::") {
		return "", "", fmt.Errorf("it has too many colons; an IPv6 address is written [::1]:11211, and nothing comes after host:port:weight")
	}
	host, rest = s, ""
	if i := strings.IndexByte(s, ':'); i >= 0 {
		host, rest = s[:i], s[i:]
	}
	if host == "" {
		return "", "", fmt.Errorf("the host in front of the port is missing")
	}
	if !isName(host) {
		return "", "", fmt.Errorf("it is no host name: those have letters, digits, dots, - and _")
	}
	return host, rest, nil
}

func parseUnix(s string) (pool.Entry, error) {
	path, weight, hasWeight := strings.Cut(s, ":")
	if !strings.HasPrefix(path, "/") || len(path) < 2 {
		return pool.Entry{}, fmt.Errorf("a Unix socket is named by its whole path: /path or unix:///path, with three slashes")
	}
	if strings.ContainsFunc(path, func(r rune) bool { return r == '%' || !unicode.IsPrint(r) }) {
		return pool.Entry{}, fmt.Errorf("the path of a Unix socket is written as it is, and cannot have a colon, a %% or a control character in it")
	}
	return weighted(pool.Addr{Net: "unix", Address: path}, weight, hasWeight)
}

// weighted gives a server its weight, which is 1 where there is none.
func weighted(a pool.Addr, weight string, given bool) (pool.Entry, error) {
	if !given {
		return pool.Entry{Addr: a, Weight: 1}, nil
	}
	n, err := strconv.ParseUint(weight, 10, 32)
	if err != nil || n == 0 {
		return pool.Entry{}, fmt.Errorf("the weight, which is what comes last after a colon, is not a whole number of 1 or more")
	}
	return pool.Entry{Addr: a, Weight: uint32(n)}, nil
}

// isName reports whether s has only what names of hosts and of IPv6 zones have.
func isName(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool {
		return !unicode.In(r, unicode.Letter, unicode.Mark, unicode.Digit) && !strings.ContainsRune("-._", r)
	})
}

// params are what a DSN can set, one for every option that a string can
// express, in the order in which they are applied: read_timeout beats timeout.
var params = []struct {
	name string
	set  func(c *config, value string) error
}{
	{"timeout", func(c *config, v string) error {
		if err := parseDuration(v, &c.readTimeout); err != nil {
			return err
		}
		return parseDuration(v, &c.writeTimeout)
	}},
	{"dial_timeout", func(c *config, v string) error { return parseDuration(v, &c.dialTimeout) }},
	{"read_timeout", func(c *config, v string) error { return parseDuration(v, &c.readTimeout) }},
	{"write_timeout", func(c *config, v string) error { return parseDuration(v, &c.writeTimeout) }},
	{"max_open_conns", func(c *config, v string) error { return parseSize(v, &c.maxOpenConns) }},
	{"max_idle_conns", func(c *config, v string) error { return parseSize(v, &c.maxIdleConns) }},
	{"pool_size", func(c *config, v string) error { return parseSize(v, &c.maxIdleConns) }},
	{"conn_max_idle_time", func(c *config, v string) error { return parseDuration(v, &c.connMaxIdleTime) }},
	{"server_failure_limit", func(c *config, v string) error { return parseCount(v, &c.failureLimit) }},
	{"server_retry_timeout", func(c *config, v string) error { return parseDuration(v, &c.retryTimeout) }},
	{"tls", func(c *config, v string) error { return parseTLS(v, &c.tls) }},
	{"insecure_credentials", func(c *config, v string) error { return parseBool(v, &c.insecureCredentials) }},
	{"discovery", func(c *config, v string) error { return parseDiscovery(v, &c.discovery) }},
	{"discovery_interval", func(c *config, v string) error { return parseDuration(v, &c.discoveryInterval) }},
	{"distribution", func(c *config, v string) error { return parseDistribution(v, &c.distribution) }},
	{"key_prefix", func(c *config, v string) error { return parseKeyPrefix(v, &c.keyPrefix) }},
	{"ping", func(c *config, v string) error { return parsePingPolicy(v, &c.pingPolicy) }},
	{"traced_keys", func(c *config, v string) error { return parseBool(v, &c.tracedKeys) }},
	{"ttl_query", func(c *config, v string) error { return parseBool(v, &c.ttlQuery) }},
}

func parseParams(query string, c *config) error {
	var names []string
	for _, p := range params {
		names = append(names, p.name)
	}
	values := make(map[string]string)
	for i, pair := range strings.Split(query, "&") {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		name, err1 := url.QueryUnescape(name)
		value, err2 := url.QueryUnescape(value)
		if err1 != nil || err2 != nil {
			return invalidDSN("parameter %d is not name=value, percent-encoded", i+1)
		}
		if !slices.Contains(names, name) {
			return invalidDSN("parameter %d is unknown; there are %s (credentials are written memcached://user:password@host)", i+1, strings.Join(names, ", "))
		}
		if _, twice := values[name]; twice {
			return invalidDSN("parameter %s is given twice", name)
		}
		values[name] = value
	}
	_, maxIdleConns := values["max_idle_conns"]
	if _, poolSize := values["pool_size"]; poolSize && maxIdleConns {
		return invalidDSN("max_idle_conns and pool_size are the same; give one")
	}
	for _, p := range params {
		if v, ok := values[p.name]; ok {
			if err := p.set(c, v); err != nil {
				return invalidDSN("parameter %s: %w", p.name, err)
			}
		}
	}
	return nil
}

// parseDuration reads a duration; 0 leaves the default.
func parseDuration(s string, to *time.Duration) error {
	d, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("it is not a duration like 500ms or 2s")
	}
	if d < 0 {
		return fmt.Errorf("it is negative")
	}
	*to = orDefault(d, *to)
	return nil
}

// parseCount reads a number for which 0 has a meaning.
func parseCount(s string, to *int) error {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return fmt.Errorf("it is not a whole number of 0 or more")
	}
	*to = int(n)
	return nil
}

// parseSize reads a number; 0 leaves the default.
func parseSize(s string, to *int) error {
	n := 0
	if err := parseCount(s, &n); err != nil {
		return err
	}
	*to = orDefault(n, *to)
	return nil
}

func parseBool(s string, to *bool) error {
	v, err := strconv.ParseBool(s)
	if err != nil {
		return fmt.Errorf("it is neither true nor false")
	}
	*to = v
	return nil
}

func parseDistribution(s string, to *Distribution) error {
	return parseEither(s, to, Modulo, Ketama)
}

func parseDiscovery(s string, to *Discovery) error {
	return parseEither(s, to, ElastiCache, SRV)
}

func parsePingPolicy(s string, to *PingPolicy) error {
	return parseEither(s, to, PingAll, PingAny)
}

// parseEither reads one of two words.
func parseEither[T ~string](s string, to *T, a, b T) error {
	word := T(s)
	if word != a && word != b {
		return fmt.Errorf("it is neither %s nor %s", a, b)
	}
	*to = word
	return nil
}

func parseKeyPrefix(s string, to *string) error {
	switch {
	case !isKey(s):
		return fmt.Errorf("there is a space or a control character in it, which no key can have")
	case len(s) >= maxKey:
		return fmt.Errorf("with its %d bytes it leaves no room for a key, which has up to %d together with it", len(s), maxKey)
	}
	*to = s
	return nil
}

func parseTLS(s string, to **tls.Config) error {
	var on bool
	if err := parseBool(s, &on); err != nil {
		return err
	}
	*to = nil
	if on {
		*to = &tls.Config{}
	}
	return nil
}
