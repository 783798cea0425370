package pool

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestSilence(t *testing.T) {
	at := func(ms int) time.Duration { return time.Duration(ms) * time.Millisecond }
	type call struct{ sent, heard, gaveUp int }
	for name, c := range map[string]struct {
		calls []call
		want  int
	}{
		"one call":                               {[]call{{100, 0, 150}}, 50},
		"calls at the same time count once":      {[]call{{0, -1, 50}, {10, -1, 60}, {20, -1, 60}}, 60},
		"time in which nothing was due":          {[]call{{0, -1, 50}, {100, -1, 150}}, 100},
		"only what follows the last byte":        {[]call{{0, 440, 450}}, 10},
		"the byte came before another one left":  {[]call{{0, 440, 450}, {400, 440, 850}}, 410},
		"the byte came after another one left":   {[]call{{0, -1, 400}, {300, 440, 850}}, 410},
		"a byte ends the silence before it once": {[]call{{0, 10, 50}, {50, 10, 100}}, 90},
	} {
		var s silence
		var got time.Duration
		for _, c := range c.calls {
			got = s.add(at(c.sent), at(c.heard), at(c.gaveUp))
		}
		assert.Equal(t, at(c.want), got, name)
	}
}
