package memcacheddriver

import (
	_ "github.com/anishathalye/porcupine"
	_ "github.com/stretchr/testify/require"
	_ "github.com/testcontainers/testcontainers-go"
	_ "github.com/xraph/grove/kv/keyspace"
	_ "github.com/xraph/grove/kv/kvtest"
	_ "github.com/xraph/grove/kv/plugins"
	_ "go.uber.org/goleak"
	_ "pgregory.net/rapid"
)
