package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// delayCommand as the first argument makes this program a set of proxies:
// DELAY TARGET…
const delayCommand = "delay"

// delayVariable is set in the environment of such a process.
const delayVariable = "MEMCACHEDDRIVER_BENCH_DELAY"

// chunk is what came from a client and is to be sent on.
type chunk struct {
	due  time.Time
	to   net.Conn
	data []byte // nil: the client has closed
}

// serveDelay runs a proxy for each target and prints their addresses, until
// standard input ends. Requests are sent on after delay, replies at once.
func serveDelay(args []string) error {
	delay, err := time.ParseDuration(args[0])
	if err != nil {
		return err
	}
	// The delay is the same for all, so all that comes is due in the order in
	// which it came, and one queue does for every connection.
	chunks := make(chan chunk, 1<<16)
	go pace(chunks)
	for _, target := range args[1:] {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		fmt.Println(l.Addr())
		go func() {
			for {
				client, err := l.Accept()
				if err != nil {
					return
				}
				go proxy(client, target, delay, chunks)
			}
		}()
	}
	_, err = bufio.NewReader(os.Stdin).ReadByte()
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}

func proxy(client net.Conn, target string, delay time.Duration, chunks chan<- chunk) {
	defer client.Close()
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	go func() {
		io.Copy(client, server)
		client.Close()
	}()
	for {
		data := make([]byte, 32<<10)
		n, err := client.Read(data)
		due := time.Now().Add(delay)
		if err != nil {
			chunks <- chunk{due, server, nil}
			return
		}
		chunks <- chunk{due, server, data[:n]}
	}
}

// pace sends chunks on when they are due. It sleeps in the system: an idle
// process of Go's oversleeps by up to a millisecond, which is what epoll counts
// in.
func pace(chunks <-chan chunk) {
	runtime.LockOSThread()
	for c := range chunks {
		if wait := time.Until(c.due); wait > 0 {
			t := unix.NsecToTimeval(int64(wait))
			unix.Select(0, nil, nil, nil, &t)
		}
		if c.data == nil {
			c.to.Close()
		} else {
			c.to.Write(c.data)
		}
	}
}
