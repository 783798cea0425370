// Native uses gomemcache's own calls on the driver's connections: Increment and
// Append by UnwrapClient, and the same with a context by Do.
//
//	go run ./examples/native
//
// The server is the one at MEMCACHED_ADDR, else the one at localhost:11211.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/bradfitz/gomemcache/memcache"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

func main() {
	log.SetFlags(0)
	if err := run(context.Background(), cmp.Or(os.Getenv("MEMCACHED_ADDR"), "localhost:11211")); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, addr string) error {
	store, err := memcacheddriver.OpenStore(ctx, addr)
	if err != nil {
		return err
	}
	defer store.Close()

	const views, entries = "native:page-views", "native:log"
	defer store.Delete(ctx, views, entries)

	// Increment counts what is there as decimal digits, as JSON has a number: the
	// store and the native client can share it. The key must be there before.
	if err := store.Set(ctx, views, 41, kv.WithTTL(time.Hour)); err != nil {
		return err
	}
	client := memcacheddriver.UnwrapClient(store)
	n, err := client.Increment(views, 1)
	if err != nil {
		return err
	}
	fmt.Println("increment  page-views is", n)
	var read int
	if err := store.Get(ctx, views, &read); err != nil {
		return err
	}
	fmt.Println("get        by the store it is", read, "too")

	// Append adds bytes to those that are there, so they are no JSON: SetRaw and
	// GetRaw go around the codec.
	if err := store.SetRaw(ctx, entries, []byte("first\n"), kv.WithTTL(time.Hour)); err != nil {
		return err
	}
	if err := client.Append(&memcache.Item{Key: entries, Value: []byte("second\n")}); err != nil {
		return err
	}

	// The client knows no context. Do runs the same calls with one.
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	err = memcacheddriver.Unwrap(store).Do(ctx, func(client *memcache.Client) error {
		return client.Append(&memcache.Item{Key: entries, Value: []byte("third\n")})
	})
	if err != nil {
		return err
	}
	text, err := store.GetRaw(ctx, entries)
	if err != nil {
		return err
	}
	fmt.Printf("append     the log is %q\n", text)
	return nil
}
