package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
)

// SRV looks up the SRV records of name. The targets stay names, which are looked up
// at each dial. They are sorted, as the name service gives them in any order, and a
// key may go by its place in the list. Priority and weight count for nothing: they
// say which server a client should rather use, and a key has but one.
func SRV(ctx context.Context, resolver *net.Resolver, name string) (Answer, error) {
	// It returns an error beside the good records where one is malformed.
	_, records, err := cancellable(resolver).LookupSRV(ctx, "", "", name)
	var lookup *net.DNSError
	switch {
	case errors.As(err, &lookup) && lookup.IsNotFound:
		return Answer{}, fmt.Errorf("%w (check the name, and that it has SRV records)", err)
	case err != nil:
		return Answer{}, err
	case len(records) == 0:
		return Answer{}, errors.New("the name has no SRV records")
	}
	for _, record := range records {
		// In lower case, or a server would be two.
		record.Target = strings.ToLower(strings.TrimSuffix(record.Target, "."))
		if record.Target == "" { // RFC 2782: there is decidedly no such service
			return Answer{}, errors.New(`the name has an SRV record with the target ".", which stands for no server`)
		}
		if record.Port == 0 {
			return Answer{}, fmt.Errorf("the SRV record of %s has the port 0", record.Target)
		}
	}
	slices.SortFunc(records, func(a, b *net.SRV) int {
		return cmp.Or(strings.Compare(a.Target, b.Target), cmp.Compare(a.Port, b.Port))
	})
	answer := Answer{Version: NoVersion}
	for _, record := range records {
		answer.Servers = append(answer.Servers, net.JoinHostPort(record.Target, strconv.Itoa(int(record.Port))))
	}
	answer.Servers = slices.Compact(answer.Servers)
	return answer, nil
}

// cancellable returns a resolver like r that ends a look-up with its context: by itself
// it heeds the deadline alone while it waits for an answer.
func cancellable(r *net.Resolver) *net.Resolver {
	dial := r.Dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	return &net.Resolver{
		PreferGo:     r.PreferGo,
		StrictErrors: r.StrictErrors,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dial(ctx, network, address)
			if err == nil {
				context.AfterFunc(ctx, func() { c.Close() }) // ctx ends with the exchange
			}
			return c, err
		},
	}
}
