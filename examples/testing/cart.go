// Package cart is some code that uses a store, and a test of it to copy.
package cart

import (
	"context"
	"errors"
	"time"

	"github.com/xraph/grove/kv"
)

// Carts keeps carts, for a day after their last change.
type Carts struct{ Store *kv.Store }

// Items returns what is in a user's cart, nothing where there is none.
func (c *Carts) Items(ctx context.Context, user string) (items []string, err error) {
	err = c.Store.Get(ctx, "cart:"+user, &items)
	if errors.Is(err, kv.ErrNotFound) {
		return nil, nil
	}
	return items, err
}

// Put replaces what is in a user's cart.
func (c *Carts) Put(ctx context.Context, user string, items ...string) error {
	return c.Store.Set(ctx, "cart:"+user, items, kv.WithTTL(24*time.Hour))
}
