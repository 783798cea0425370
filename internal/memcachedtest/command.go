package memcachedtest

import (
	"bufio"
	"io"
	"strconv"
	"strings"
)

// Command is a command of memcached's text protocol.
type Command struct {
	Line string   // without its CR LF
	Name string   // the first field
	Args []string // the other ones
	Data []byte   // the data block of a storage command, without its CR LF
}

// Keys returns the keys that the command names.
func (cmd Command) Keys() []string {
	switch cmd.Name {
	case "get", "gets":
		return cmd.Args
	case "gat", "gats":
		return cmd.Args[min(1, len(cmd.Args)):]
	case "", "mn", "version", "verbosity", "stats", "flush_all", "quit":
		return nil
	}
	return cmd.Args[:min(1, len(cmd.Args))]
}

// readCommand reads a command and its data block.
func readCommand(r *bufio.Reader) (Command, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return Command{}, err
	}
	cmd := parseCommand(line)
	size := cmd.dataSize()
	if size < 0 {
		return cmd, nil
	}
	// Not in one piece: a size is anybody's claim.
	block, err := io.ReadAll(io.LimitReader(r, size+int64(len("\r\n"))))
	if err != nil {
		return cmd, err
	}
	if int64(len(block)) < size+int64(len("\r\n")) {
		return cmd, io.ErrUnexpectedEOF
	}
	cmd.Data = block[:size]
	return cmd, nil
}

func parseCommand(line string) Command {
	cmd := Command{Line: strings.TrimRight(line, "\r\n")}
	if fields := strings.Fields(line); len(fields) > 0 {
		cmd.Name, cmd.Args = fields[0], fields[1:]
	}
	return cmd
}

// dataSize returns the size of the data block that follows, -1 if none does.
func (cmd Command) dataSize() int64 {
	switch cmd.Name {
	case "set", "add", "replace", "append", "prepend", "cas":
		return cmd.sizeAt(3)
	case "ms":
		return cmd.sizeAt(1)
	}
	return -1
}

// sizeAt returns the size that an argument says, -1 if it says none.
func (cmd Command) sizeAt(place int) int64 {
	if place >= len(cmd.Args) {
		return -1
	}
	n, err := strconv.ParseUint(cmd.Args[place], 10, 31)
	if err != nil {
		return -1
	}
	return int64(n)
}
