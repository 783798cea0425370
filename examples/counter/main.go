// Counter counts from many goroutines by CompareAndSwap in a retry loop, and ends
// with the exact count: no update is lost.
//
//	go run ./examples/counter
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
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/xraph/grove/kv"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

const (
	goroutines = 8
	increments = 100 // of each goroutine
	key        = "example-counter"
)

func main() {
	log.SetFlags(0)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := run(ctx, cmp.Or(os.Getenv("MEMCACHED_ADDR"), "localhost:11211")); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, addr string) error {
	store, err := memcacheddriver.OpenStore(ctx, addr)
	if err != nil {
		return err
	}
	defer store.Close()
	if err := store.Set(ctx, key, 0, kv.WithTTL(10*time.Minute)); err != nil {
		return err
	}
	defer store.Delete(ctx, key)

	fmt.Printf("%d goroutines count to %d each, on one key at %s\n", goroutines, increments, addr)
	db := memcacheddriver.Unwrap(store)
	var conflicts atomic.Int64
	failed := make(chan error, goroutines)
	var all sync.WaitGroup
	start := time.Now()
	for range goroutines {
		all.Go(func() {
			for range increments {
				lost, err := increment(ctx, db)
				conflicts.Add(lost)
				if err != nil {
					failed <- err
					return
				}
			}
		})
	}
	all.Wait()
	close(failed)
	if err := <-failed; err != nil {
		return err
	}

	var count int
	if err := store.Get(ctx, key, &count); err != nil {
		return err
	}
	fmt.Printf("after %v the counter is %d; %d swaps met another goroutine's and were tried again\n",
		time.Since(start).Round(time.Millisecond), count, conflicts.Load())
	if count != goroutines*increments {
		return fmt.Errorf("it should be %d", goroutines*increments)
	}
	return nil
}

// increment adds one, and tries again as often as another goroutine was faster.
// It returns how often that was.
func increment(ctx context.Context, db *memcacheddriver.MemcachedDB) (conflicts int64, err error) {
	for {
		err := db.CompareAndSwap(ctx, key, func(current []byte) ([]byte, error) {
			// The value is what the store's codec made of it: JSON.
			n, err := strconv.Atoi(string(current))
			if err != nil {
				return nil, err
			}
			return strconv.AppendInt(nil, int64(n)+1, 10), nil
		})
		if !errors.Is(err, kv.ErrConflict) {
			return conflicts, err
		}
		conflicts++
	}
}
