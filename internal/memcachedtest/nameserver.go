package memcachedtest

import (
	"context"
	endian "encoding/binary" // binary is the memcached
	"io"
	"net"
	"strings"
	"sync"
	"testing"
)

// What a message of the DNS is made of (RFC 1035, RFC 2782).
const (
	dnsHeader   = 12      // bytes
	dnsReply    = 1 << 15 // flags
	dnsCut      = 1 << 9
	dnsRecurses = 1<<8 | 1<<7 // asked for, and done
	dnsServFail = 2           // codes
	dnsNXDomain = 3
	dnsSRV      = 33     // the type
	dnsInternet = 1      // the class
	dnsSameName = 0xC00C // the name of the question
	dnsMaxUDP   = 1232   // what is longer is cut, and asked for by TCP
)

// NameServer is a DNS server of SRV records on 127.0.0.1, by UDP and TCP, until the test
// ends. Names end in a dot. Its methods are safe for concurrent use.
type NameServer struct {
	udp net.PacketConn
	tcp *listener

	mu      sync.Mutex
	records map[string][][]byte // the data of SRV records, by name in lower case
	fails   bool
	silent  bool
	queries int
}

// StartNameServer starts a name server that knows no names.
func StartNameServer(t testing.TB) *NameServer {
	t.Helper()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("memcachedtest: %v", err)
	}
	s := &NameServer{udp: udp, records: make(map[string][][]byte)}
	s.tcp = listen(t, "", s.serveTCP)
	var running sync.WaitGroup
	running.Go(s.serveUDP)
	t.Cleanup(func() {
		udp.Close()
		running.Wait()
	})
	return s
}

// Resolver returns a resolver that asks this server, whatever the machine's says.
func (s *NameServer) Resolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		if strings.HasPrefix(network, "tcp") {
			return d.DialContext(ctx, "tcp", s.tcp.Addr().String())
		}
		return d.DialContext(ctx, "udp", s.udp.LocalAddr().String())
	}}
}

// SetSRV gives a name these SRV records, and no others. With none it exists, but for
// another purpose. So many that an answer by UDP does not hold them are cut, and the
// client asks by TCP.
func (s *NameServer) SetSRV(name string, records ...net.SRV) {
	all := make([][]byte, len(records))
	for i, r := range records {
		data := endian.BigEndian.AppendUint16(nil, r.Priority)
		data = endian.BigEndian.AppendUint16(data, r.Weight)
		data = endian.BigEndian.AppendUint16(data, r.Port)
		all[i] = appendDNSName(data, r.Target)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.records[strings.ToLower(name)] = all
}

// Remove makes the server say that there is no such name.
func (s *NameServer) Remove(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.records, strings.ToLower(name))
}

// SetFailing makes every answer a SERVFAIL, or not any more.
func (s *NameServer) SetFailing(fails bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails = fails
}

// SetSilent makes the server answer nothing, or not any more.
func (s *NameServer) SetSilent(silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = silent
}

// Queries returns how many questions have come in. A look-up may ask several.
func (s *NameServer) Queries() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queries
}

func (s *NameServer) serveUDP() {
	buf := make([]byte, 64<<10)
	for {
		n, client, err := s.udp.ReadFrom(buf)
		if err != nil {
			return
		}
		if reply := s.answer(buf[:n], dnsMaxUDP); reply != nil {
			_, _ = s.udp.WriteTo(reply, client)
		}
	}
}

// serveTCP reads and writes messages with their lengths in front.
func (s *NameServer) serveTCP(_ int, c net.Conn) {
	for {
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		query := make([]byte, endian.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, query); err != nil {
			return
		}
		reply := s.answer(query, 1<<16-1)
		if reply == nil {
			continue
		}
		if _, err := c.Write(append(endian.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
			return
		}
	}
}

// answer returns the reply to a query of one question; nil is none.
func (s *NameServer) answer(query []byte, limit int) []byte {
	name, kind, question := parseQuestion(query)
	if question == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queries++
	if s.silent {
		return nil
	}
	records, known := s.records[strings.ToLower(name)]
	code := uint16(0)
	switch {
	case s.fails:
		code, records = dnsServFail, nil
	case !known:
		code = dnsNXDomain
	}

	body, count := question, uint16(0)
	if kind != dnsSRV {
		records = nil
	}
	for _, data := range records {
		body = endian.BigEndian.AppendUint16(body, dnsSameName)
		body = endian.BigEndian.AppendUint16(body, dnsSRV)
		body = endian.BigEndian.AppendUint16(body, dnsInternet)
		body = endian.BigEndian.AppendUint32(body, 60) // seconds to live
		body = endian.BigEndian.AppendUint16(body, uint16(len(data)))
		body = append(body, data...)
		count++
	}
	flags := dnsReply | dnsRecurses | code
	if dnsHeader+len(body) > limit {
		flags |= dnsCut
		body, count = question, 0
	}
	reply := query[:2:2] // its number
	for _, field := range []uint16{flags, 1, count, 0, 0} {
		reply = endian.BigEndian.AppendUint16(reply, field)
	}
	return append(reply, body...)
}

// parseQuestion returns the first question of a query, also as it stands there; nil
// where there is none.
func parseQuestion(query []byte) (name string, kind uint16, question []byte) {
	for at := dnsHeader; at < len(query); {
		label := int(query[at])
		at++
		if label == 0 {
			if at+4 > len(query) {
				return "", 0, nil
			}
			kind = endian.BigEndian.Uint16(query[at:])
			return name, kind, query[dnsHeader : at+4 : at+4]
		}
		if label > 63 || at+label > len(query) {
			return "", 0, nil
		}
		name += string(query[at:at+label]) + "."
		at += label
	}
	return "", 0, nil
}

// appendDNSName appends a name as labels.
func appendDNSName(data []byte, name string) []byte {
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if label != "" {
			data = append(append(data, byte(len(label))), label...)
		}
	}
	return append(data, 0)
}
