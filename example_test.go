package memcacheddriver_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strconv"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/codec"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// exampleDSN is the server of the examples: "localhost:11211" in a program.
func exampleDSN() string { return memcachedtest.Addr(exampleTB{}) }

// exampleTB stands for a test where there is none.
type exampleTB struct{ testing.TB }

func (exampleTB) Helper()           {}
func (exampleTB) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

func Example() {
	ctx := context.Background()
	store, err := memcacheddriver.OpenStore(ctx, exampleDSN()) // "localhost:11211"
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()

	type Session struct {
		User string
		Cart int
	}
	err = store.Set(ctx, "example:session:abc", Session{"Ada", 1}, kv.WithTTL(30*time.Minute))
	if err != nil {
		log.Fatal(err)
	}
	var session Session
	if err := store.Get(ctx, "example:session:abc", &session); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%+v\n", session)

	err = store.Get(ctx, "example:session:nobody", &session)
	if errors.Is(err, kv.ErrNotFound) {
		fmt.Println("a miss")
	}

	if err := store.Delete(ctx, "example:session:abc"); err != nil {
		log.Fatal(err)
	}
	// Output:
	// {User:Ada Cart:1}
	// a miss
}

func ExampleOpenStore() {
	ctx := context.Background()
	store, err := memcacheddriver.OpenStore(ctx, "mc1:11211,mc2:11211?timeout=500ms",
		memcacheddriver.WithMaxIdleConns(64),
		memcacheddriver.WithStoreOptions(kv.WithCodec(codec.MsgPack())),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()

	// Nothing has been dialled: the servers need not be there yet.
	for _, st := range memcacheddriver.Unwrap(store).Stats() {
		fmt.Println(st.Addr, st.State, st.Dials)
	}
	// Output:
	// mc1:11211 up 0
	// mc2:11211 up 0
}

func ExampleNew() {
	ctx := context.Background()
	db := memcacheddriver.New()
	if err := db.Open(ctx, exampleDSN(), memcacheddriver.WithTimeout(time.Second)); err != nil {
		log.Fatal(err)
	}
	store, err := kv.Open(db)
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close() // closes db as well

	fmt.Println(store.Driver().Name())
	// Output: memcached
}

func ExampleMemcachedDB_CompareAndSwap() {
	ctx := context.Background()
	store, err := memcacheddriver.OpenStore(ctx, exampleDSN())
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	if err := store.Set(ctx, "example:counter", 41, kv.WithTTL(time.Hour)); err != nil {
		log.Fatal(err)
	}

	db := memcacheddriver.Unwrap(store)
	for {
		err = db.CompareAndSwap(ctx, "example:counter", func(current []byte) ([]byte, error) {
			// The bytes are what the store's codec made: JSON.
			n, err := strconv.Atoi(string(current))
			return []byte(strconv.Itoa(n + 1)), err
		})
		if !errors.Is(err, kv.ErrConflict) {
			break
		}
		// Somebody else changed it in between: once more.
	}
	if err != nil {
		log.Fatal(err)
	}

	var n int
	if err := store.Get(ctx, "example:counter", &n); err != nil {
		log.Fatal(err)
	}
	fmt.Println(n)
	// Output: 42
}

func ExampleCASTTL() {
	ctx := context.Background()
	store, err := memcacheddriver.OpenStore(ctx, exampleDSN(), memcacheddriver.WithTTLQuery())
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	if err := store.Set(ctx, "example:lease", "me", kv.WithTTL(time.Minute)); err != nil {
		log.Fatal(err)
	}

	keep := func(current []byte) ([]byte, error) { return current, nil }
	err = memcacheddriver.Unwrap(store).CompareAndSwap(ctx, "example:lease", keep, memcacheddriver.CASTTL(time.Hour))
	if err != nil {
		log.Fatal(err)
	}
	left, err := store.TTL(ctx, "example:lease")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(left > 50*time.Minute)
	// Output: true
}

func ExampleMemcachedDB_Do() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	db := memcacheddriver.New()
	if err := db.Open(ctx, exampleDSN()); err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	if err := db.Set(ctx, "example:views", []byte("41"), time.Hour); err != nil {
		log.Fatal(err)
	}

	// All of gomemcache's calls, with the context's deadline.
	var views uint64
	err := db.Do(ctx, func(client *memcache.Client) (err error) {
		views, err = client.Increment("example:views", 1)
		return err
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(views)
	// Output: 42
}

func ExampleUnwrapClient() {
	ctx := context.Background()
	store, err := memcacheddriver.OpenStore(ctx, exampleDSN())
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	if err := store.SetRaw(ctx, "example:log", []byte("one,"), kv.WithTTL(time.Hour)); err != nil {
		log.Fatal(err)
	}

	client := memcacheddriver.UnwrapClient(store)
	if err := client.Append(&memcache.Item{Key: "example:log", Value: []byte("two")}); err != nil {
		log.Fatal(err)
	}
	text, err := store.GetRaw(ctx, "example:log")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", text)
	// Output: one,two
}

func ExampleMemcachedDB_MGet() {
	ctx := context.Background()
	db := memcacheddriver.New()
	if err := db.Open(ctx, exampleDSN()); err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	err := db.MSet(ctx, map[string][]byte{
		"example:mget:a": []byte("1"),
		"example:mget:b": {},
	}, time.Hour)
	if err != nil {
		log.Fatal(err)
	}

	values, err := db.MGet(ctx, []string{"example:mget:b", "example:mget:missing", "example:mget:a"})
	if err != nil {
		log.Fatal(err)
	}
	for _, v := range values {
		fmt.Printf("%q, a miss: %t\n", v, v == nil)
	}
	// Output:
	// "", a miss: false
	// "", a miss: true
	// "1", a miss: false
}

func ExampleOpError() {
	db := memcacheddriver.New()
	if err := db.Open(context.Background(), exampleDSN()); err != nil {
		log.Fatal(err)
	}
	defer db.Close()

	err := db.Set(context.Background(), "user 42", nil, 0)
	var op *memcacheddriver.OpError
	if errors.As(err, &op) {
		fmt.Printf("%s of %q: an invalid key: %t\n", op.Op, op.Keys, errors.Is(err, memcacheddriver.ErrInvalidKey))
	}
	// Output: set of ["user 42"]: an invalid key: true
}

func ExampleWithTTLQuery() {
	ctx := context.Background()
	store, err := memcacheddriver.OpenStore(ctx, exampleDSN(), memcacheddriver.WithTTLQuery())
	if err != nil {
		log.Fatal(err)
	}
	defer store.Close()
	if err := store.Set(ctx, "example:forever", true); err != nil {
		log.Fatal(err)
	}

	left, err := store.TTL(ctx, "example:forever")
	if err != nil {
		log.Fatal(err)
	}
	if left == memcacheddriver.NoExpiry {
		fmt.Println("for ever")
	}
	if err := store.Expire(ctx, "example:forever", time.Hour); err != nil {
		log.Fatal(err)
	}
	left, err = store.TTL(ctx, "example:forever")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("within the hour:", 0 < left && left <= time.Hour)
	// Output:
	// for ever
	// within the hour: true
}
