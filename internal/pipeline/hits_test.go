package pipeline_test

import (
	"slices"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/drivertest"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// hits scripts a server that holds every key, with its [drivertest.Value]. say
// sends its replies, each value of a get by itself, and "" for a quiet set.
func hits(say func(c *memcachedtest.FakeConn, reply string)) memcachedtest.Script {
	get := func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
		for _, key := range cmd.Args {
			say(c, memcachedtest.Value(key, string(drivertest.Value(key))))
		}
		c.Say("END\r\n")
	}
	always := func(reply string) memcachedtest.Handler {
		return func(c *memcachedtest.FakeConn, _ memcachedtest.Command) { say(c, reply) }
	}
	return memcachedtest.Script{
		"get":  get,
		"gets": get,
		"set":  always("STORED\r\n"),
		"ms": func(c *memcachedtest.FakeConn, cmd memcachedtest.Command) {
			reply := "HD c1\r\n"
			if slices.Contains(cmd.Args, "q") {
				reply = ""
			}
			say(c, reply)
		},
		"delete": always("DELETED\r\n"),
		"mg":     always("HD\r\n"),
	}
}

// classic takes the meta protocol from a script.
func classic(script memcachedtest.Script) memcachedtest.Script {
	script["mn"] = memcachedtest.Say("ERROR\r\n")
	return script
}
