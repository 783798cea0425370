package memcacheddriver_test

import (
	"bufio"
	"context"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/xraph/grove/kv/drivers/memcacheddriver"
	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/memcachedtest"
)

// TestBatchTimeouts are for each reply, not for the batch: one that moves along
// takes as long as it takes.
func TestBatchTimeouts(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	keys := batchKeys("k", 16)
	for name, call := range map[string]func(context.Context, *memcacheddriver.MemcachedDB) error{
		"MGet": func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.MGet(ctx, keys)
			return err
		},
		"MSet": func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			return db.MSet(ctx, batchPairs(keys), 0)
		},
		"Delete": func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.Delete(ctx, keys...)
			return err
		},
		"Exists": func(ctx context.Context, db *memcacheddriver.MemcachedDB) error {
			_, err := db.Exists(ctx, keys...)
			return err
		},
	} {
		t.Run("moves along/"+name, func(t *testing.T) {
			t.Parallel()
			server := (&batchServer{slow: timeout / 8, speaksMeta: name != "MSet"}).start(t)
			db := batchDB(t, server.addr, memcacheddriver.WithTimeout(timeout))
			start := time.Now()
			require.NoError(t, call(t.Context(), db))
			assert.Greater(t, time.Since(start), 3*timeout/2, "the test is too quick to tell")
		})
	}

	for name, begin := range map[string]string{
		"a value": "VALUE k-000000 0 1000000\r\n",
		"a line":  "VALUE k-0",
	} {
		t.Run("drips/"+name, func(t *testing.T) {
			t.Parallel()
			addr := acceptAll(t, func(c net.Conn, stop chan struct{}) {
				if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
					return
				}
				_, err := io.WriteString(c, begin)
				for err == nil {
					select {
					case <-stop:
						return
					case <-time.After(timeout / 20):
						_, err = io.WriteString(c, "x")
					}
				}
			})
			db := batchDB(t, addr, memcacheddriver.WithTimeout(timeout))
			ctx, cancel := context.WithTimeout(t.Context(), 10*timeout)
			defer cancel()
			start := time.Now()
			_, err := db.MGet(ctx, keys)
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			require.NotErrorIs(t, err, context.DeadlineExceeded, "only the context ended it")
			assert.GreaterOrEqual(t, time.Since(start), timeout)
			assert.EqualValues(t, 1, db.Stats()[0].Timeouts)
		})
	}

	// A server that takes what is written so slowly that all of it would not be
	// soon enough, but each value is.
	t.Run("moves along/MSet of large values", func(t *testing.T) {
		t.Parallel()
		server := memcachedtest.Start(t, "-m", "128")
		addr := acceptAll(t, func(c net.Conn, stop chan struct{}) {
			s, err := net.Dial("tcp", server.Addr())
			if err != nil {
				t.Error(err)
				return
			}
			var back sync.WaitGroup
			defer back.Wait()
			defer s.Close()
			back.Go(func() { _, _ = io.Copy(c, s) })
			for chunk := make([]byte, 1<<20); err == nil; {
				select {
				case <-stop:
					return
				case <-time.After(timeout / 20):
				}
				var n int
				if n, err = c.Read(chunk); err == nil {
					_, err = s.Write(chunk[:n])
				}
			}
		})
		db := batchDB(t, addr, memcacheddriver.WithTimeout(timeout))
		large := make(map[string][]byte)
		for _, key := range batchKeys("large", 40) {
			large[key] = make([]byte, 1000<<10)
		}
		start := time.Now()
		require.NoError(t, db.MSet(t.Context(), large, 0))
		assert.Greater(t, time.Since(start), 3*timeout/2, "the test is too quick to tell")
	})
}
