// Fetch keeps the answers of something slow in Memcached, so that it is asked once for
// each, however many want it at the same time, and again when it has changed.
//
//	go run ./examples/fetch
//
// The server is the one at MEMCACHED_ADDR, else the one at localhost:11211. Without one it
// says the same, only that every round asks anew.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

// product is what the shop asks its database for.
type product struct {
	Name  string `json:"name"`
	Cents int    `json:"cents"`
}

// database answers slowly, and counts how often it is asked.
type database struct {
	mu      sync.Mutex
	coffee  product
	queries atomic.Int32
}

func (d *database) find(ctx context.Context) (product, error) {
	d.queries.Add(1)
	select {
	case <-time.After(200 * time.Millisecond):
	case <-ctx.Done(): // nobody waits for it any more
		return product{}, ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.coffee, nil
}

func (d *database) setPrice(cents int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.coffee.Cents = cents
}

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

	db := &database{coffee: product{"coffee", 250}}
	const key = "fetch:product:coffee"
	// What an earlier run has left.
	if err := memcacheddriver.DeleteFetched(ctx, store, key); err != nil {
		log.Println("going on without a cache:", err)
	}
	for _, visitors := range []int{1000, 1000} {
		if err := visit(ctx, store, key, db, visitors); err != nil {
			return err
		}
	}

	// First the source, then the cache: what is being loaded meanwhile is not stored.
	db.setPrice(275)
	if err := memcacheddriver.DeleteFetched(ctx, store, key); err != nil {
		log.Println("the old price stays for up to a minute:", err)
	}
	return visit(ctx, store, key, db, 1000)
}

// visit lets visitors ask for the product at the same time.
func visit(ctx context.Context, store *kv.Store, key string, db *database, visitors int) error {
	var all sync.WaitGroup
	var cents atomic.Int32
	failed := make(chan error, visitors)
	for range visitors {
		all.Go(func() {
			p, err := memcacheddriver.Fetch(ctx, store, key, time.Minute, db.find)
			if err != nil {
				failed <- err
				return
			}
			cents.Store(int32(p.Cents))
		})
	}
	all.Wait()
	select {
	case err := <-failed:
		return err
	default:
	}
	fmt.Printf("%d visitors see coffee for %d cents; queries so far: %d\n", visitors, cents.Load(), db.queries.Load())
	return nil
}
