package link

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	firstPause = 10 * time.Second // each next one twice as long, if it comes soon
	maxPause   = time.Minute
)

// pause is a time in which no call shares, after a link fell silent: a proxy may have one
// frozen server, whose keys on a link hold up all that is behind them. Calls that go
// alone find out.
type pause struct {
	until atomic.Int64 // Unix nanoseconds, 0 for none

	mu     sync.Mutex
	length time.Duration
}

// begin reports whether it had not begun yet, by another link.
func (p *pause) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, last := time.Now(), time.Unix(0, p.until.Load())
	switch {
	case now.Before(last):
		return false
	case now.Sub(last) > maxPause:
		p.length = firstPause
	default:
		p.length = min(2*p.length, maxPause)
	}
	p.until.Store(now.Add(p.length).UnixNano())
	return true
}

func (p *pause) lasts() bool {
	until := p.until.Load()
	return until != 0 && time.Now().UnixNano() < until
}
