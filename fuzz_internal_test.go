package memcacheddriver

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

func FuzzDSN(f *testing.F) {
	for _, dsn := range []string{
		"", "localhost", "mc1:11211,mc2:11211,mc3:11211", " mc1 , [::1] ,/run/m, unix:///run/m", "memcached://ann:p%40w@mc1?timeout=2s&tls=true",
		"mc1?timeout=2s&dial_timeout=1s&read_timeout=1s&write_timeout=1s&max_idle_conns=64&conn_max_idle_time=5m&server_failure_limit=3&server_retry_timeout=1s&ttl_query=1",
		"mc1:0", "mc1:65536", "[::1", "::1", ",", "mc1,,mc2", "redis://mc1", "?", "unix://", "[fe80::1%eth0]:1", "mc1?timeout=-1s", "mc1?timeout=9999999h",
		"memcached://a:b@", "memcached://a:b@/run/m", "memcached://@/", "memcached://:@mc1", "mc1\x00", "mc1?x=%zz", "mc1:١", "\u00a0mc1", "mc1:1:2,[::1]:1:3,/run/m:4", "mc1:1:0", "mc1?distribution=ketama&discovery=elasticache&discovery_interval=5s", "_m._tcp.a.b?discovery=srv",
	} {
		f.Add(dsn)
	}
	f.Fuzz(func(t *testing.T, dsn string) {
		c := defaultConfig()
		addrs, err := parse(dsn, &c)
		if err != nil {
			if !errors.Is(err, ErrInvalidDSN) {
				t.Fatalf("%q: %v is not ErrInvalidDSN", dsn, err)
			}
			return
		}
		if len(addrs) == 0 {
			t.Fatalf("%q is no server and no error", dsn)
		}
		for _, a := range addrs {
			switch a.Net {
			case "unix":
				if !strings.HasPrefix(a.Address, "/") || len(a.Address) < 2 || strings.ContainsAny(a.Address, "@:%\n\x00") {
					t.Fatalf("%q: %q is no path", dsn, a.Address)
				}
			case "tcp":
				host, port, err := net.SplitHostPort(a.Address)
				n, err2 := strconv.Atoi(port)
				if err != nil || err2 != nil || host == "" || n < 1 || n > 65535 {
					t.Fatalf("%q: %q cannot be dialled", dsn, a.Address)
				}
				if strings.ContainsAny(host, " \t\r\n,/?@&=;") || strings.Contains(host, "%") && !strings.Contains(host, ":") {
					t.Fatalf("%q: the host is %q", dsn, host)
				}
			default:
				t.Fatalf("%q: network %q", dsn, a.Net)
			}
		}
		if c.dialTimeout <= 0 || c.readTimeout <= 0 || c.writeTimeout <= 0 || c.maxIdleConns <= 0 || c.connMaxIdleTime < 0 || c.failureLimit < 0 || c.retryTimeout <= 0 {
			t.Fatalf("%q: a setting makes no sense: %+v", dsn, c)
		}
		if (c.user == "") && c.password != "" {
			t.Fatalf("%q: a password without a user", dsn)
		}

		// What was understood, written down, is understood the same.
		var again []string
		for _, a := range addrs {
			again = append(again, fmt.Sprintf("%s:%d", a.Address, a.Weight))
		}
		if strings.Contains(strings.Join(again, ""), ",") || strings.Contains(strings.Join(again, ""), "?") {
			return // in a path
		}
		c2 := defaultConfig()
		addrs2, err := parse("memcached://"+strings.Join(again, ","), &c2)
		if err != nil {
			if strings.Contains(strings.Join(again, ""), "@") || strings.Contains(strings.Join(again, ""), " ") {
				return // in a path
			}
			t.Fatalf("%q: %q is not understood again: %v", dsn, again, err)
		}
		for i := range addrs {
			if i >= len(addrs2) || strings.TrimSpace(addrs[i].Address) != addrs2[i].Address || addrs[i].Weight != addrs2[i].Weight {
				t.Fatalf("%q: %q became %q", dsn, addrs, addrs2)
			}
		}
	})
}

// What follows a colon is a password in some DSN, written rightly or not, or a
// port: no error and no address has it.
func FuzzDSNSecret(f *testing.F) {
	for _, around := range [][2]string{
		{"memcached://ann", "@mc1"}, {"memcached:///ann", "@mc1"}, {"//ann", "@mc1"}, {"unix:///ann", "@mc1"}, {"memcached://ann", "%40mc1"},
		{"ann", "@mc1"}, {"mc1,ann", "@mc2"}, {"memcached://mc1,ann", "@mc2"}, {"mc1?password=", ""}, {"mc1?timeout=1s&x", "&y=1"}, {"mc1?", "=1"},
		{"[::1%", "]:1"}, {"[::1]", ""}, {"/run/m", ",mc1"}, {"memcached://memcached://ann", "?x@mc1"}, {"memcached://ann:p@mc1?tls=", "@"}, {"redis", "://mc1"},
	} {
		f.Add(around[0], around[1])
	}
	f.Fuzz(func(t *testing.T, before, after string) {
		const secret = "hunter2"
		if strings.Contains(before+after, secret) {
			return
		}
		for _, colon := range []string{":", "%3A", "%3a"} {
			if colon != ":" && strings.LastIndex(before, "[") > strings.LastIndex(before, "]") {
				continue // it begins the zone of an IPv6 address
			}
			assertTellsNothing(t, before+colon+secret+after, secret)
		}
	})
}

// A key is valid if gomemcache takes it, too, and it is one word on the wire.
func FuzzKey(f *testing.F) {
	for _, key := range []string{
		"", "k", "a b", "a\r\nb", "a\x00", "a\x7f", "a\tb", "é", "\xff", "\u0085", "\u00a0", "\u2028",
		strings.Repeat("k", 250), strings.Repeat("k", 251), strings.Repeat("é", 125), strings.Repeat("é", 126),
	} {
		f.Add(key)
	}
	client := memcache.NewFromSelector(notOpen{})
	f.Fuzz(func(t *testing.T, key string) {
		err := checkKey("", key)
		switch {
		case key == "":
			if err != kv.ErrKeyEmpty {
				t.Fatalf("%v", err)
			}
			return
		case err != nil && err != ErrInvalidKey:
			t.Fatalf("%q: %v", key, err)
		}
		_, theirs := client.Get(key) // ErrMalformedKey, or ErrNotOpen of the selector
		if (err == nil) != (theirs != memcache.ErrMalformedKey) {
			t.Fatalf("%q: %v, gomemcache: %v", key, err, theirs)
		}
		if err == nil {
			if strings.ContainsAny(key, " \r\n\t\v\f\x00\x7f") || len(key) > 250 {
				t.Fatalf("%q is taken", key)
			}
		}
	})
}

func FuzzExpiration(f *testing.F) {
	const month = int64(30 * 24 * time.Hour)
	for _, ttl := range []int64{0, 1, -1, 999_999_999, 1_000_000_000, 1_000_000_001, month - 1, month, month + 1, math.MaxInt64, math.MinInt64} {
		for _, now := range []int64{1_800_000_000_000_000_000, 1_800_000_000_300_000_000, (math.MaxInt32 - 1) * 1_000_000_000, 3e18} {
			f.Add(ttl, now)
		}
	}
	f.Fuzz(func(t *testing.T, ttl, now int64) {
		if now < 0 {
			return
		}
		const maxDate = math.MaxInt32 * time.Second
		d, at := time.Duration(ttl), time.Unix(0, now)
		got := expiration(d, func() time.Time { return at })
		switch {
		case ttl == 0:
			if got != 0 {
				t.Fatalf("no expiry became %d", got)
			}
			return
		case ttl < 0:
			if got != expired {
				t.Fatalf("%v became %d: it must be expired already", d, got)
			}
			return
		case got <= 0:
			t.Fatalf("%v became %d", d, got)
		}
		// What the server makes of it (protocol.txt, "Expiration times").
		seconds := time.Duration(got) * time.Second
		most := max(maxDate-time.Duration(now), time.Duration(month)) // that can be said
		switch {
		case seconds > time.Duration(month): // a date
			life := seconds - time.Duration(now)
			if life > d-time.Second || life <= min(d-2*time.Second, most-time.Second) {
				t.Fatalf("%v at %v became %v (%d)", d, at, life, got)
			}
		case seconds < min(d, most) || seconds-time.Second >= d:
			t.Fatalf("%v at %v became %v (%d)", d, at, seconds, got)
		}
	})
}

// Whatever is stored by one call is read back by every other.
func FuzzValueRoundTrip(f *testing.F) {
	for _, v := range []string{"", "a", "\r\n", "END\r\n", "VALUE k 0 1\r\n", "\x00\xff", "STORED\r\n", strings.Repeat("x", 8<<10), strings.Repeat("\r\n", 5000)} {
		f.Add([]byte(v), []byte("other"))
		f.Add([]byte("other"), []byte(v))
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if len(a) > 500<<10 || len(b) > 500<<10 {
			return
		}
		ctx := t.Context()
		db := New()
		if err := db.Open(ctx, memcachedtest.Addr(t)); err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		key := "fuzz-" + strconv.FormatInt(time.Now().UnixNano(), 36)
		ka, kb := key+"-a", key+"-b"
		defer func() { _, _ = db.Delete(ctx, ka, kb) }()
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		same := func(call string, want, got []byte) {
			t.Helper()
			if got == nil || !bytes.Equal(want, got) {
				t.Fatalf("%s: %q became %q", call, want, got)
			}
		}
		must(db.Set(ctx, ka, a, time.Minute))
		must(db.MSet(ctx, map[string][]byte{kb: b, key: nil}, time.Minute))
		got, err := db.Get(ctx, ka)
		must(err)
		same("Get", a, got)
		all, err := db.MGet(ctx, []string{kb, ka, kb, key})
		must(err)
		same("MGet", b, all[0])
		same("MGet", a, all[1])
		same("MGet", b, all[2])
		same("MGet", nil, all[3])
		must(db.CompareAndSwap(ctx, ka, func(current []byte) ([]byte, error) {
			same("CompareAndSwap", a, current)
			return b, nil
		}))
		got, err = db.Get(ctx, ka)
		must(err)
		same("Get of what was swapped", b, got)
		item, err := db.Client().Get(kb)
		must(err)
		same("the client's Get", b, item.Value)
		n, err := db.Delete(ctx, ka, kb, key)
		must(err)
		if n != 3 {
			t.Fatalf("%d deleted", n)
		}
	})
}
