// Package memcacheddriver makes Memcached a backend of Grove KV
// (github.com/xraph/grove/kv).
//
// # Getting started
//
// A store on one server, or on several that share the keys:
//
//	store, err := memcacheddriver.OpenStore(ctx, "localhost:11211")
//	store, err := memcacheddriver.OpenStore(ctx, "mc1:11211,mc2:11211,mc3:11211")
//
// [OpenStore] opens a driver and a store on it in one call. The long form is
// [New], [MemcachedDB.Open] and [kv.Open], and by name, for those who have only a
// configuration file, kv.OpenDriver(ctx, "memcached", dsn). None of them dials: a
// service starts while a cache server is down. Store.Ping is the check.
//
// The store encodes and decodes values (as JSON, unless [WithStoreOptions] brings
// another codec), and answers [kv.ErrNotFound] for a key that is not there:
//
//	err = store.Set(ctx, "session:abc", session, kv.WithTTL(30*time.Minute))
//	err = store.Get(ctx, "session:abc", &session)
//	if errors.Is(err, kv.ErrNotFound) {
//		// a miss, which is normal for a cache
//	}
//
// Open one store for the whole program and close it at the end; stores and
// drivers are safe for concurrent use.
//
// # Data source names
//
//	[memcached://[user:password@]]server{,server}[?name=value{&name=value}]
//
// A server is host, host:port, [IPv6], [IPv6]:port, or the path of a Unix socket,
// /path or unix:///path. The port is 11211 if it is not given. After a port or a path
// may come a weight, host:port:weight, which is 1 if it is not given: a server with
// weight 2, or one that is listed twice, gets about twice the keys. Spaces around
// commas do not matter.
// User and password are percent-encoded, and come once, before all servers. A path
// is written as it is, without @, :, %, comma, ? and control characters. Every option
// that a string can express has a parameter, which its documentation names; an
// option beats the parameter:
//
//	mc1,mc2:11212?timeout=500ms&max_idle_conns=64
//	memcached://app:s3cr%40t@cache.example.com?tls=true
//
// The key decides on the server, in the same way as in gomemcache's ServerList:
// programs that list the same servers in the same order share their data, with
// this driver or without it. With [WithDistribution] it decides in libmemcached's way,
// where few keys move when a server is added. [MemcachedDB.SetServers] replaces the
// servers while calls run, and with [WithDiscovery] the DSN names where to ask for them:
//
//	mc1,mc2,mc3:11212:2?distribution=ketama
//	mycluster.abc123.cfg.use1.cache.amazonaws.com:11211?discovery=elasticache
//	_memcached._tcp.memcached.default.svc.cluster.local?discovery=srv
//
// # Keys, values and times to live
//
// A key has 1 to 250 bytes, with that of [WithKeyPrefix] where there is one, and none of
// them is a space or a control character. A value
// is any bytes, up to the server's limit (1 MB unless it was started with another).
// A bad key stops a call, a batch too, before anything is sent; a value that the
// server refuses spoils only its own key.
//
// A TTL of 0 is no expiry, and a negative one has expired already. memcached
// counts whole seconds by a clock of its own, so a TTL of seconds may end up to a
// second early. One under a second is kept to a few milliseconds, by the driver
// that wrote it, through Expire, CASTTL and CompareAndSwap too; see
// [MemcachedDB.Set].
//
// # Contexts, failures and retries
//
// Every call ends when its context does, within milliseconds and with an error
// that is [context.Canceled] or [context.DeadlineExceeded], whatever it was waiting
// for. Beside the context there are timeouts; see [WithTimeout]. A write that was
// cut off, by its context or by a failure, may or may not have happened.
//
// A server that was restarted, or that closed idle connections, costs no call (on
// Windows one that writes for each such connection): a connection is looked at
// before it is used again. A server that keeps failing is taken to be down: calls to
// it give [ErrServerDown] at once, while the other servers serve their keys; see
// [WithServerFailureLimit]. A failure is never reported as a miss. No write is sent
// twice, as the driver cannot know whether it has happened. A read (Get, MGet,
// Exists, TTL, and Get and GetMulti of gomemcache, the last with keys of up to 4 KB
// together) is sent again, once and on a new connection, where the server closed one
// that had been used before without a byte of an answer.
//
// Every failure of the driver's own calls is an [OpError], or several of them for
// a batch. It says in one line what happened, on which server and for which keys,
// and holds no password and no value. Ask for its kind with [errors.Is]:
//
//	switch {
//	case errors.Is(err, kv.ErrNotFound):                   // not there
//	case errors.Is(err, memcacheddriver.ErrServerDown):    // do without the cache
//	case errors.Is(err, memcacheddriver.ErrValueTooLarge): // a value to split
//	}
//
// # Batches
//
// MGet, MSet, Delete and Exists with several keys are one pipelined exchange with
// each server, all servers at the same time. A call on the store that fails for
// some keys gives only the error; [MemcachedDB.MGet] also gives what the other
// servers hold.
//
// # Cache-aside
//
// [Fetch] returns the value of a key, or loads it, and a cache that is down is no error.
// Of all that miss a key, in all processes, one loads and the others wait for it.
// [DeleteFetched] is for when the source has changed:
//
//	user, err := memcacheddriver.Fetch(ctx, store, "user:42", 10*time.Minute, loadUser)
//
// # Beyond the store
//
// [Unwrap] gets the driver of a store, for what the store has no method for:
// [MemcachedDB.CompareAndSwap] reads a value, changes it and writes it back if
// nobody has changed it in between; [MemcachedDB.Do] runs any calls of gomemcache,
// such as Increment and Append, with a context; [MemcachedDB.Stats] tells how the
// servers and the connections are, and what was found and stored there. [UnwrapClient] is
// the gomemcache client without contexts. A [Tracer] is told of every call as it begins
// and ends; see [WithTracer].
//
// These see the bytes that the store's codec made: with JSON the number 42 is "42",
// which Increment can count, and a string has quotes.
//
// # What Memcached does not do
//
// There is no scan, publish and subscribe, transaction or stream: the store
// answers [kv.ErrNotSupported]. So does TTL, unless the driver was opened with
// [WithTTLQuery]. A value may go at any time before its TTL is over: a server that
// is full evicts what was not used for long, and one that restarts begins empty.
//
// Proxies such as twemproxy, and servers before memcached 1.6.10, work too, within
// the classic protocol: there a swap loses the value's TTL unless [CASTTL] sets
// one, a TTL under a second is rounded up, Exists fetches the values, and TTL gives
// [kv.ErrNotSupported]. Behind memcached's own proxy each swap may give or take a
// second of the TTL.
package memcacheddriver
