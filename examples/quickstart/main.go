// Quickstart opens a store on a Memcached server and shows the basic calls: set
// with a TTL, get, set only if absent, set only if present, batches, delete.
//
//	go run ./examples/quickstart
//
// The server is the one at MEMCACHED_ADDR, else the one at localhost:11211.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

// Session is what the example stores; the store encodes it as JSON.
type Session struct {
	User string `json:"user"`
	Cart int    `json:"cart"`
}

func main() {
	log.SetFlags(0)
	if err := run(context.Background(), cmp.Or(os.Getenv("MEMCACHED_ADDR"), "localhost:11211")); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, addr string) error {
	store, err := memcacheddriver.OpenStore(ctx, addr, memcacheddriver.WithTimeout(2*time.Second))
	if err != nil {
		return err
	}
	defer store.Close()

	// Opening dials nothing. Ping asks every server.
	if err := store.Ping(ctx); err != nil {
		return fmt.Errorf("%w\n\nThis needs a memcached: set MEMCACHED_ADDR to the address of one, or run make demo", err)
	}
	fmt.Printf("connected to memcached at %s\n\n", addr)

	// All keys of this example, so that it can run again.
	const session, lock, absent = "quickstart:session:ada", "quickstart:lock", "quickstart:session:nobody"
	defer store.Delete(ctx, session, lock)
	if err := store.Delete(ctx, session, lock, absent); err != nil {
		return err
	}

	if err := store.Set(ctx, session, Session{User: "Ada", Cart: 1}, kv.WithTTL(30*time.Minute)); err != nil {
		return err
	}
	fmt.Println("set     a session for 30 minutes")

	var got Session
	if err := store.Get(ctx, session, &got); err != nil {
		return err
	}
	fmt.Printf("get     %+v\n", got)

	err = store.Get(ctx, absent, &got)
	if !errors.Is(err, kv.ErrNotFound) {
		return fmt.Errorf("a key that is not there: %w", err)
	}
	fmt.Println("get     a key that is not there:", err)

	// Only if the key is not there yet: a simple lock, which ends by itself.
	if err := store.Set(ctx, lock, "worker 1", kv.WithNX(), kv.WithTTL(10*time.Second)); err != nil {
		return err
	}
	fmt.Println("set NX  worker 1 has the lock")
	err = store.Set(ctx, lock, "worker 2", kv.WithNX(), kv.WithTTL(10*time.Second))
	if !errors.Is(err, kv.ErrConflict) {
		return fmt.Errorf("a second lock: %w", err)
	}
	fmt.Println("set NX  worker 2 has not:", err)

	// Only if the key is there: a session that has ended stays ended.
	if err := store.Set(ctx, session, Session{User: "Ada", Cart: 2}, kv.WithXX(), kv.WithTTL(30*time.Minute)); err != nil {
		return err
	}
	fmt.Println("set XX  the session has a second thing in its cart")
	err = store.Set(ctx, absent, Session{User: "Nobody"}, kv.WithXX())
	if !errors.Is(err, kv.ErrNotFound) {
		return fmt.Errorf("updating what is not there: %w", err)
	}
	fmt.Println("set XX  a session that is not there:", err)

	if err := batch(ctx, store); err != nil {
		return err
	}

	if err := store.Delete(ctx, session, lock); err != nil {
		return err
	}
	n, err := store.Exists(ctx, session, lock)
	if err != nil {
		return err
	}
	fmt.Printf("delete  session and lock; %d of 2 are left\n", n)
	return nil
}

// batch writes and reads many keys in one exchange.
func batch(ctx context.Context, store *kv.Store) error {
	pairs := make(map[string]any)
	var keys []string
	for i := range 100 {
		key := fmt.Sprintf("quickstart:square:%d", i)
		pairs[key] = i * i
		keys = append(keys, key)
	}
	start := time.Now()
	if err := store.MSet(ctx, pairs, kv.WithTTL(time.Minute)); err != nil {
		return err
	}
	wrote := time.Since(start)

	start = time.Now()
	squares := make(map[string]any)
	if err := store.MGet(ctx, keys, squares); err != nil {
		return err
	}
	fmt.Printf("mset    100 keys in %v\n", wrote.Round(time.Microsecond))
	fmt.Printf("mget    %d keys in %v; 12 squared is %v\n", len(squares), time.Since(start).Round(time.Microsecond), squares["quickstart:square:12"])
	return store.Delete(ctx, keys...)
}
