package memcachedtest

import (
	"fmt"
	"strings"
	"time"
)

// missReply returns what an empty memcached 1.6.18 answers; "" is nothing.
func missReply(cmd Command) string {
	switch cmd.Name {
	case "version":
		return "VERSION 1.6.18\r\n"
	case "get", "gets", "gat", "gats":
		return "END\r\n"
	case "set", "add":
		return "STORED\r\n"
	case "replace", "append", "prepend":
		return "NOT_STORED\r\n"
	case "cas", "delete", "touch", "incr", "decr":
		return "NOT_FOUND\r\n"
	case "stats":
		return fmt.Sprintf("STAT pid 1\r\nSTAT time %d\r\nEND\r\n", time.Now().Unix())
	case "verbosity", "flush_all":
		return "OK\r\n"
	case "mn":
		return "MN\r\n"
	case "mg", "md", "ma", "ms":
		return metaMissReply(cmd)
	}
	return "ERROR\r\n"
}

func metaMissReply(cmd Command) string {
	reply := map[string]string{"mg": "EN", "md": "NF", "ma": "NF", "ms": "HD"}[cmd.Name]
	flags := cmd.Args[min(1, len(cmd.Args)):]
	if cmd.Name == "ms" {
		flags = flags[min(1, len(flags)):] // the size
	}
	quiet, echo := false, ""
	for _, flag := range flags {
		switch {
		case flag == "q":
			quiet = true
		case flag == "k":
			echo += " k" + cmd.Args[0]
		case flag[0] == 'O':
			echo += " " + flag
		case cmd.Name == "ms" && flag == "c":
			echo += " c1"
		case cmd.Name == "ms" && flag[0] == 'C':
			reply = "NF"
		case cmd.Name == "ms" && flag[0] == 'M' && strings.ContainsAny(flag[1:], "APRapr"):
			reply = "NS"
		}
	}
	if quiet && (cmd.Name != "ms" || reply == "HD") {
		return ""
	}
	return reply + echo + "\r\n"
}
