package main

import (
	"bytes"
	"fmt"
	"net"

	"github.com/bradfitz/gomemcache/memcache"
)

// byHand is the floor: a request that was built beforehand, one write, and reads
// until as many bytes are in as the replies must have. Nothing is parsed, and
// there is neither a pool nor a deadline.
type byHand struct {
	addrs []string
	pick  memcache.ServerList
	conns []net.Conn
}

func openByHand(s setting) (client, error) {
	c := &byHand{addrs: s.addrs}
	return c, c.pick.SetServers(s.addrs...)
}

func (c *byHand) close() {
	for _, nc := range c.conns {
		nc.Close()
	}
}

// request is what goes to one server and what comes back.
type request struct {
	nc    net.Conn
	bytes []byte
	reply []byte
}

// inlineWrite is how much may be written before any of the replies is read: more
// could fill both socket buffers.
const inlineWrite = 64 << 10

// getBytes is how long a get command is made, as the driver does.
const getBytes = 4 << 10

func (c *byHand) prepare(o op, keys []string) func() error {
	buf := make([]byte, 64<<10)
	if o == opGet || o == opSet {
		var requests []request
		conns := make(map[string]net.Conn)
		for _, key := range keys {
			of, err := c.requests(o, []string{key}, conns)
			if err != nil {
				return func() error { return err }
			}
			requests = append(requests, of...)
		}
		next := 0
		return func() error {
			r := requests[next%len(requests)]
			next++
			if _, err := r.nc.Write(r.bytes); err != nil {
				return err
			}
			return r.read(buf)
		}
	}
	requests, err := c.requests(o, keys, make(map[string]net.Conn))
	if err != nil {
		return func() error { return err }
	}
	return func() error {
		for _, r := range requests {
			if len(r.bytes) > inlineWrite {
				go r.nc.Write(r.bytes)
			} else if _, err := r.nc.Write(r.bytes); err != nil {
				return err
			}
		}
		for _, r := range requests {
			if err := r.read(buf); err != nil {
				return err
			}
		}
		return nil
	}
}

func (r request) read(buf []byte) error {
	for left := len(r.reply); left > 0; {
		n, err := r.nc.Read(buf)
		if err != nil {
			return err
		}
		if left == len(r.reply) && (n > left || !bytes.HasPrefix(r.reply, buf[:n])) {
			return fmt.Errorf("by hand: reply %.40q, expected %.40q", buf[:n], r.reply)
		}
		left -= n
	}
	return nil
}

// requests builds the bytes for each server, and connects to it if it is not in
// conns.
func (c *byHand) requests(o op, keys []string, conns map[string]net.Conn) (requests []request, err error) {
	byAddr := make(map[string][]string)
	for _, key := range keys {
		addr, err := c.pick.PickServer(key)
		if err != nil {
			return nil, err
		}
		byAddr[addr.String()] = append(byAddr[addr.String()], key)
	}
	for _, addr := range c.addrs {
		if len(byAddr[addr]) == 0 {
			continue
		}
		if conns[addr] == nil {
			if conns[addr], err = net.Dial("tcp", addr); err != nil {
				return nil, err
			}
			c.conns = append(c.conns, conns[addr])
		}
		requests = append(requests, build(o, byAddr[addr], conns[addr]))
	}
	return requests, nil
}

func build(o op, keys []string, nc net.Conn) request {
	var out, in bytes.Buffer
	length := 0 // of the get command so far
	for _, key := range keys {
		switch o {
		case opGet, opMGet:
			if length+len(key) >= getBytes {
				out.WriteString("\r\n")
				in.WriteString("END\r\n")
				length = 0
			}
			if length == 0 {
				out.WriteString("get")
			}
			length += len(key) + 1
			out.WriteString(" " + key)
			fmt.Fprintf(&in, "VALUE %s 0 %d\r\n%s\r\n", key, len(value), value)
		case opSet, opMSet:
			fmt.Fprintf(&out, "set %s 0 0 %d\r\n%s\r\n", key, len(value), value)
			in.WriteString("STORED\r\n")
		case opDelete:
			fmt.Fprintf(&out, "delete %s\r\n", key)
			in.WriteString("DELETED\r\n")
		case opExists:
			fmt.Fprintf(&out, "mg %s\r\n", key)
			in.WriteString("HD\r\n")
		}
	}
	if length > 0 {
		out.WriteString("\r\n")
		in.WriteString("END\r\n")
	}
	return request{nc, out.Bytes(), in.Bytes()}
}
