package link

// Queued counts the calls that wait to be written.
func Queued(ls *Links) (n int) {
	for _, l := range ls.links {
		l.mu.Lock()
		for r := l.queue.first; r != nil; r = r.next {
			n++
		}
		l.mu.Unlock()
	}
	return n
}

// InFlight counts those that are written and not answered.
func InFlight(ls *Links) (n int) {
	for _, l := range ls.links {
		l.mu.Lock()
		n += l.inFlight
		l.mu.Unlock()
	}
	return n
}
