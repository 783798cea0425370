package memcacheddriver

import (
	"crypto/tls"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/pool"
)

const defaultPort = "11211"

// parseDSN reads
//
//	[memcached://[user:password@]]server{,server}[?name=value{&name=value}]
//
// where a server is host, host:port, [IPv6], [IPv6]:port, /path or unix:///path.
// It changes c by the parameters and the credentials. No error quotes what may
// be a secret.
func parseDSN(dsn string, c *config) ([]pool.Addr, error) {
	servers, query, hasQuery := strings.Cut(strings.TrimSpace(dsn), "?")
	scheme, rest, found := strings.Cut(servers, "://")
	if found && !strings.EqualFold(scheme, "unix") && !strings.ContainsAny(scheme, ",/") {
		if !strings.EqualFold(scheme, "memcached") {
			return nil, invalidDSN("the scheme is not memcached; write memcached://host:port, or host:port alone")
		}
		servers = rest
		if user, rest, ok := strings.Cut(servers, "@"); ok && !strings.HasPrefix(servers, "/") {
			if err := parseCredentials(user, c); err != nil {
				return nil, err
			}
			servers = rest
		}
	}
	if strings.Contains(query, "@") {
		return nil, invalidDSN("there is an @ after the ?; percent-encode what is special in the user and the password")
	}
	if strings.TrimSpace(servers) == "" {
		return nil, invalidDSN("it names no server; an example is mc1:11211,mc2:11211")
	}
	var addrs []pool.Addr
	for i, server := range strings.Split(servers, ",") {
		addr, err := parseServer(strings.TrimSpace(server))
		if err != nil {
			return nil, invalidDSN("server %d: %w", i+1, err)
		}
		addrs = append(addrs, addr)
	}
	if hasQuery {
		if err := parseParams(query, c); err != nil {
			return nil, err
		}
	}
	return addrs, nil
}

func invalidDSN(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalidDSN}, args...)...)
}

func parseCredentials(userinfo string, c *config) error {
	user, password, ok := strings.Cut(userinfo, ":")
	u, err1 := url.PathUnescape(user)
	p, err2 := url.PathUnescape(password)
	if !ok || u == "" || err1 != nil || err2 != nil {
		return invalidDSN("the credentials are not user:password, percent-encoded")
	}
	c.user, c.password = u, p
	return nil
}

func parseServer(s string) (pool.Addr, error) {
	if s == "" {
		return pool.Addr{}, fmt.Errorf("it is empty")
	}
	if path, ok := strings.CutPrefix(s, "unix://"); ok || strings.HasPrefix(s, "/") {
		if !ok {
			path = s
		}
		if !strings.HasPrefix(path, "/") || len(path) < 2 {
			return pool.Addr{}, fmt.Errorf("a Unix socket is named by its whole path: unix:///path")
		}
		return pool.Addr{Net: "unix", Address: path}, nil
	}
	if strings.Contains(s, ";") {
		return pool.Addr{}, fmt.Errorf("there is a semicolon in it; servers are separated by commas")
	}
	if strings.Contains(s, "@") {
		return pool.Addr{}, fmt.Errorf("there is an @ in it; credentials are written memcached://user:password@host, percent-encoded")
	}
	host, port := s, defaultPort
	switch {
	case strings.HasPrefix(s, "["):
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return pool.Addr{}, fmt.Errorf("the ] of the IPv6 address is missing")
		}
		var tail string
		host, tail = s[1:end], s[end+1:]
		if ip, _, _ := strings.Cut(host, "%"); net.ParseIP(ip) == nil || !strings.Contains(ip, ":") {
			return pool.Addr{}, fmt.Errorf("what is in [] is not an IPv6 address")
		}
		if tail != "" {
			var ok bool
			if port, ok = strings.CutPrefix(tail, ":"); !ok {
				return pool.Addr{}, fmt.Errorf("only a port can follow [%s]", host)
			}
		}
	case strings.Count(s, ":") > 1:
		return pool.Addr{}, fmt.Errorf("it has more than one colon; an IPv6 address is written [::1]:11211")
	case strings.Contains(s, ":"):
		host, port, _ = strings.Cut(s, ":")
	}
	if host == "" {
		return pool.Addr{}, fmt.Errorf("the host in front of the port is missing")
	}
	if strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`/\?#&="<>[]`, r) }) {
		return pool.Addr{}, fmt.Errorf("%q is no host name", host)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || port[0] == '+' {
		return pool.Addr{}, fmt.Errorf("the port of %s is not a number from 1 to 65535", host)
	}
	return pool.Addr{Net: "tcp", Address: net.JoinHostPort(host, strconv.FormatUint(n, 10))}, nil
}

// params are what a DSN can set, one for every option that a string can
// express.
var params = map[string]func(c *config, value string) error{
	"timeout":              func(*config, string) error { return nil }, // set first, by parseParams
	"dial_timeout":         func(c *config, v string) error { return parseDuration(v, &c.dialTimeout) },
	"read_timeout":         func(c *config, v string) error { return parseDuration(v, &c.readTimeout) },
	"write_timeout":        func(c *config, v string) error { return parseDuration(v, &c.writeTimeout) },
	"max_idle_conns":       func(c *config, v string) error { return parseSize(v, &c.maxIdleConns) },
	"pool_size":            func(c *config, v string) error { return parseSize(v, &c.maxIdleConns) },
	"conn_max_idle_time":   func(c *config, v string) error { return parseDuration(v, &c.connMaxIdleTime) },
	"server_failure_limit": func(c *config, v string) error { return parseCount(v, &c.failureLimit) },
	"server_retry_timeout": func(c *config, v string) error { return parseDuration(v, &c.retryTimeout) },
	"tls":                  func(c *config, v string) error { return parseTLS(v, &c.tls) },
	"ttl_query":            func(c *config, v string) error { return parseBool(v, &c.ttlQuery) },
}

func parseParams(query string, c *config) error {
	values, err := url.ParseQuery(query)
	if err != nil {
		return invalidDSN("the parameters are not name=value, joined by &: %w", err)
	}
	// The general one first, whatever the order: read_timeout beats timeout.
	if v, ok := values["timeout"]; ok {
		for _, to := range []*time.Duration{&c.readTimeout, &c.writeTimeout} {
			if err := parseDuration(v[0], to); err != nil {
				return invalidDSN("parameter timeout: %w", err)
			}
		}
	}
	if values.Has("max_idle_conns") && values.Has("pool_size") {
		return invalidDSN("max_idle_conns and pool_size are the same; give one")
	}
	for name, v := range values {
		set, ok := params[name]
		if !ok {
			return invalidDSN("unknown parameter %q; there are %s", name, strings.Join(slices.Sorted(maps.Keys(params)), ", "))
		}
		if len(v) > 1 {
			return invalidDSN("parameter %s is given %d times", name, len(v))
		}
		if err := set(c, v[0]); err != nil {
			return invalidDSN("parameter %s: %w", name, err)
		}
	}
	return nil
}

// parseDuration reads a duration; 0 leaves the default.
func parseDuration(s string, to *time.Duration) error {
	d, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf("%q is not a duration like 500ms or 2s", s)
	}
	if d < 0 {
		return fmt.Errorf("%v is negative", d)
	}
	*to = orDefault(d, *to)
	return nil
}

// parseCount reads a number for which 0 has a meaning.
func parseCount(s string, to *int) error {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return fmt.Errorf("%q is not a whole number of 0 or more", s)
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
		return fmt.Errorf("%q is neither true nor false", s)
	}
	*to = v
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
