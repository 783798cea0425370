package systemtest

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"strings"
	"sync"
	"sync/atomic"
)

// valueMark begins every value, so that it is known where it must not be.
const valueMark = "soak-value"

// soakValue makes a value that says which write of which key it is.
func soakValue(key string, seq int, payload string) []byte {
	text := fmt.Sprintf("%s %s %d %s ", valueMark, key, seq, payload)
	return fmt.Appendf(nil, "%s%08x", text, crc32.ChecksumIEEE([]byte(text)))
}

// readValue is the write that value is of.
func readValue(key string, value []byte) (seq int, err error) {
	end := bytes.LastIndexByte(value, ' ')
	var mark, of string
	if end < 0 || fmt.Sprintf("%08x", crc32.ChecksumIEEE(value[:end+1])) != string(value[end+1:]) {
		return 0, fmt.Errorf("no whole value: %.100q", value)
	}
	if _, err := fmt.Sscan(string(value[:min(end, 300)]), &mark, &of, &seq); err != nil || of != key {
		return 0, fmt.Errorf("another key's value: %.100q", value)
	}
	return seq, nil
}

// status is what is known of a write.
type status byte

const (
	underWay status = iota
	done            // acknowledged
	undone          // refused: it has not happened and never will
	unknown         // cut off: it may happen at any time after its call as well
)

// ownedKey is a key that one goroutine writes, one write after the other, and all
// read. A write that was acknowledged is never followed by an older one's value,
// except that of one whose outcome is unknown: what a stopped server has in its
// sockets it does when it runs on.
type ownedKey struct {
	name string
	site *site

	mu     sync.Mutex
	writes []status // by sequence number
	acked  int      // the last one done

	// The owner's own: the write whose value must be there as long as the site is
	// in that epoch, 0 for none, and the epoch at the end of the last unknown write.
	solid      int
	solidEpoch int64
	cutEpoch   int64
}

func newOwnedKey(name string, at *site) *ownedKey {
	return &ownedKey{name: name, site: at, writes: []status{undone}}
}

// begin returns the number of a write that begins.
func (k *ownedKey) begin() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.writes = append(k.writes, underWay)
	return len(k.writes) - 1
}

func (k *ownedKey) end(seq int, s status) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.writes[seq] = s
	if s == done {
		k.acked = max(k.acked, seq)
	}
}

// lastAcked is asked before a read.
func (k *ownedKey) lastAcked() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.acked
}

// check looks whether a read that began when acked was the last one done may have
// that value.
func (k *ownedKey) check(value []byte, acked int) error {
	seq, err := readValue(k.name, value)
	if err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case seq <= 0 || seq >= len(k.writes):
		return fmt.Errorf("write %d was never begun", seq)
	case k.writes[seq] == undone:
		return fmt.Errorf("write %d was refused", seq)
	case k.writes[seq] == done && seq < acked:
		return fmt.Errorf("write %d is older than %d, which was acknowledged before the read", seq, acked)
	}
	return nil
}

// settle says what a write that began in that state of the site means for what
// must be there afterwards: lasts is false for one after which nothing must.
func (k *ownedKey) settle(began *siteState, seq int, s status, lasts bool) {
	switch {
	case s == undone:
		return
	case s == unknown:
		k.solid, k.cutEpoch = 0, k.site.state.Load().epoch
	case lasts && (began.kind == isMeta || began.kind == isClassic) && began.epoch > k.cutEpoch:
		k.solid, k.solidEpoch = seq, began.epoch
	default:
		k.solid = 0
	}
}

// mustBeThere is asked after a call that did not find what was solid before it.
func (k *ownedKey) mustBeThere() bool {
	return k.solid > 0 && k.site.state.Load().epoch == k.solidEpoch
}

// counter is a key that many count up. Each time that it is made anew it is
// another generation, so that a value tells whether its server has lost it.
type counter struct {
	key  string
	in   *cluster
	site *site

	mu   sync.Mutex
	gens []*generation
	open int           // increments under way whose generation is not known
	lost map[int64]int // those with an unknown outcome, by the epoch at their end
}

// generation counts increments that were acknowledged, and those that may have
// happened.
type generation struct {
	epoch       int64 // when it was being made
	acked, most int
}

var counters atomic.Int64

func newCounter(in *cluster, at *site) *counter {
	for {
		key := fmt.Sprint("soak-counter-", counters.Add(1))
		if in.siteOf(key) == at {
			return &counter{key: key, in: in, site: at, lost: make(map[int64]int)}
		}
	}
}

// newGeneration returns the number of a generation that is about to be made.
func (k *counter) newGeneration() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.gens = append(k.gens, &generation{epoch: k.site.state.Load().epoch})
	return len(k.gens) - 1
}

// acked returns what each generation has at least.
func (k *counter) acked() []int {
	k.mu.Lock()
	defer k.mu.Unlock()
	least := make([]int, len(k.gens))
	for i, g := range k.gens {
		least[i] = g.acked
	}
	return least
}

// check looks whether a read that began when least was acked may say n.
func (k *counter) check(gen, n int, least []int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if gen < 0 || gen >= len(k.gens) {
		return fmt.Errorf("generation %d was never made", gen)
	}
	g := k.gens[gen]
	most := g.most + k.open
	for epoch, n := range k.lost {
		if epoch >= g.epoch {
			most += n
		}
	}
	if gen < len(least) && n < least[gen] {
		return fmt.Errorf("%d counted, %d acknowledged", n, least[gen])
	}
	if n > most {
		return fmt.Errorf("%d counted, at most %d done", n, most)
	}
	return nil
}

// countValue is the value of a counter that is swapped.
func countValue(key string, gen, n int) []byte {
	return soakValue(key, gen, fmt.Sprint("n=", n))
}

func readCount(key string, value []byte) (gen, n int, err error) {
	if gen, err = readValue(key, value); err != nil {
		return 0, 0, err
	}
	_, after, _ := strings.Cut(string(value), "n=")
	_, err = fmt.Sscan(after, &n)
	return gen, n, err
}
