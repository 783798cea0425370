package memcacheddriver

import (
	"fmt"

	"github.com/xraph/grove/kv"
)

// checkKey refuses what would not be one key on the wire, behind the prefix.
func checkKey(prefix, key string) error {
	switch {
	case key == "":
		return kv.ErrKeyEmpty
	case len(prefix)+len(key) > maxKey && prefix != "":
		return fmt.Errorf("%w; the %d bytes of the key prefix count", ErrInvalidKey, len(prefix))
	case len(key) > maxKey || !isKey(key):
		return ErrInvalidKey
	}
	return nil
}

func isKey(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// checkKeys checks a whole batch, before any of it is sent.
func checkKeys(op, prefix string, keys ...string) error {
	for _, key := range keys {
		if err := checkKey(prefix, key); err != nil {
			return &OpError{Op: op, Keys: []string{key}, Err: err}
		}
	}
	return nil
}

// serverKeys returns keys as they are on the servers.
func (s *session) serverKeys(keys []string) []string {
	if s.cfg.keyPrefix == "" {
		return keys
	}
	whole := make([]string, len(keys))
	for i, key := range keys {
		whole[i] = s.cfg.keyPrefix + key
	}
	return whole
}

// callerKeys is the reverse of serverKeys.
func (s *session) callerKeys(keys []string) []string {
	if s.cfg.keyPrefix == "" || keys == nil {
		return keys
	}
	own := make([]string, len(keys))
	for i, key := range keys {
		own[i] = key[len(s.cfg.keyPrefix):]
	}
	return own
}
