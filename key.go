package memcacheddriver

import "github.com/xraph/grove/kv"

// checkKey refuses what would not be one key on the wire.
func checkKey(key string) error {
	if key == "" {
		return kv.ErrKeyEmpty
	}
	if len(key) > maxKey {
		return ErrInvalidKey
	}
	for i := range len(key) {
		if key[i] <= ' ' || key[i] == 0x7f {
			return ErrInvalidKey
		}
	}
	return nil
}

// checkKeys checks a whole batch, before any of it is sent.
func checkKeys(op string, keys ...string) error {
	for _, key := range keys {
		if err := checkKey(key); err != nil {
			return &OpError{Op: op, Keys: []string{key}, Err: err}
		}
	}
	return nil
}
