// Pageviews is a small web service that keeps three things in Memcached: sessions
// with a TTL, a counter of page views, and the answers of something slow. It goes
// on working, without them, while Memcached is down.
//
//	go run ./examples/pageviews
//
// The server is the one at MEMCACHED_ADDR, else the one at localhost:11211.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"time"

	loglib "github.com/xraph/go-utils/log"
	"github.com/xraph/grove/kv/driver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver"
)

func main() {
	log.SetFlags(0)
	listen := flag.String("listen", "localhost:8080", "`address` to serve on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *listen, cmp.Or(os.Getenv("MEMCACHED_ADDR"), "localhost:11211")); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, listen, memcached string) error {
	// A page does not wait long for its cache. The logger is told when the server goes
	// down and when it is back.
	store, err := memcacheddriver.OpenStore(ctx, memcached,
		memcacheddriver.WithTimeout(200*time.Millisecond),
		driver.WithLogger(loglib.NewProductionLogger()),
	)
	if err != nil {
		return err
	}
	defer store.Close()
	if err := store.Ping(ctx); err != nil {
		log.Println("going on without a cache:", err)
	}

	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	fmt.Printf(`Serving on http://%[1]s with the memcached at %[2]s. Try

	curl -c jar -d user=Ada http://%[1]s/login
	curl -b jar http://%[1]s/
	curl -i http://%[1]s/report/q3        slow the first time in a minute, then from the cache

and then stop the memcached and go on. Ctrl-C ends it.

`, l.Addr(), memcached)

	server := &http.Server{Handler: newService(store).handler(), ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		shutdown, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = server.Shutdown(shutdown)
	}()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	for _, st := range memcacheddriver.Unwrap(store).Stats() {
		fmt.Printf("\n%s is %s: %d connections made, %d of them failed, %d timeouts\n",
			st.Addr, st.State, st.Dials, st.DialErrors, st.Timeouts)
	}
	return nil
}
