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
	until atomic.Pointer[time.Time] // nil before the first one

	mu     sync.Mutex
	length time.Duration
}

// begin reports whether it had not begun yet, by another link.
func (p *pause) begin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lasts() {
		return false
	}
	now := time.Now()
	if last := p.until.Load(); last == nil || now.Sub(*last) > maxPause {
		p.length = firstPause
	} else {
		p.length = min(2*p.length, maxPause)
	}
	until := now.Add(p.length)
	p.until.Store(&until)
	return true
}

func (p *pause) lasts() bool {
	until := p.until.Load()
	return until != nil && time.Now().Before(*until)
}
