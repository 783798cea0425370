package pool

import (
	"errors"
	"time"
)

// ErrTooManyConns is in the chain of a call's error when the server refused a
// connection because it has too many.
var ErrTooManyConns = errors.New("the server has too many connections (memcached -c)")

// isShort reports whether there are no more connections to be had, here or there: no
// failure of the server's. Local ports are short only where one has led there before: a
// machine without IPv6 says the same of every IPv6 address.
func (s *Server) isShort(err error) bool {
	return errors.Is(err, ErrTooManyConns) || isShortage(err) && (!isNoAddress(err) || s.proven.Load())
}

const (
	firstShortage = 50 * time.Millisecond // how long the first one lasts; each next one twice as long
	shortageTold  = time.Minute           // the log has a line at most so often
)

// shortage begins when there were no more connections to be had. For a time none is
// opened; then one at a time, until nobody waits any more. The server's mu guards it.
type shortage struct {
	err    error // nil where there is none
	length time.Duration
	until  time.Time
	timer  *time.Timer // runs the function of lasts when it is over
	told   time.Time
}

// begin makes it last, longer each time up to max, and reports whether the log is to
// be told.
func (s *shortage) begin(err error, max time.Duration) (tell bool) {
	now := time.Now()
	if s.err == nil || now.After(s.until) { // all dials that are under way meet the same one
		s.length = min(2*s.length, max)
		if s.err == nil {
			s.length = min(firstShortage, max)
		}
		s.until = now.Add(s.length)
	}
	s.err = err
	if now.Sub(s.told) < shortageTold {
		return false
	}
	s.told = now
	return true
}

// lasts reports whether none is to be opened yet, and runs then when that is over.
func (s *shortage) lasts(then func()) bool {
	left := time.Until(s.until)
	if s.err == nil || left <= 0 {
		return false
	}
	if s.timer == nil {
		s.timer = time.AfterFunc(left, then)
	} else {
		s.timer.Reset(left)
	}
	return true
}

// end says that there are enough again.
func (s *shortage) end() {
	s.err = nil
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}
