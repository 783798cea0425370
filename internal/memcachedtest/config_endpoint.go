package memcachedtest

import (
	"fmt"
	"strings"
)

// clusterKey is where an engine before 1.4.14 keeps its list of nodes.
const clusterKey = "AmazonElastiCache:cluster"

// ConfigEndpoint is the script of a configuration endpoint, as AWS ElastiCache and
// Google Memorystore have it: an empty memcached that says which nodes, host|ip|port,
// its cluster has. [Fake.SetScript] changes the list; a "config" in place of this one
// says something else, and [Fake.Count] of "config" has the look-ups.
func ConfigEndpoint(version int64, nodes ...string) Script {
	return Script{"config": func(c *FakeConn, cmd Command) {
		if cmd.Line == "config get cluster" {
			body := ClusterBody(version, nodes...)
			c.Say(fmt.Sprintf("CONFIG cluster 0 %d\r\n%s\r\nEND\r\n", len(body), body))
			return
		}
		c.Default(cmd)
	}}
}

// OldConfigEndpoint is the same of an engine before 1.4.14, which keeps the list as
// a value.
func OldConfigEndpoint(version int64, nodes ...string) Script {
	return Script{"get": func(c *FakeConn, cmd Command) {
		if cmd.Line == "get "+clusterKey {
			c.Say(Value(clusterKey, ClusterBody(version, nodes...)))
		}
		c.Default(cmd)
	}}
}

// ClusterBody returns the list of nodes as an endpoint has it.
func ClusterBody(version int64, nodes ...string) string {
	return fmt.Sprintf("%d\n%s\n", version, strings.Join(nodes, " "))
}

// Flood is a handler that repeats text until the client closes the connection, or
// the test ends.
func Flood(text string) Handler {
	text = strings.Repeat(text, 1+(16<<10)/len(text))
	return func(c *FakeConn, _ Command) {
		for c.Say(text) {
		}
	}
}
