// Command bench measures memcacheddriver beside other clients, in turns and on
// servers of its own, and prints one Markdown table and whether the driver's
// figures hold:
//
//	go run . [-quick] [-write] [-check]
//
// "make bench" runs it; setup.sh installs the servers where they are missing.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"time"
)

// addedRoundTrip is what the delaying proxies add.
const addedRoundTrip = 500 * time.Microsecond

// plan is how long to measure. A round is one turn of one client; rounds are
// short, so that what else the machine does spoils few of them, and the median
// none.
type plan struct {
	quick        bool
	rounds       int // of the table
	figureRounds int
	budget       time.Duration // after which a slow client has no more rounds of a row
}

const round = 5 * time.Millisecond

// With many goroutines a round must be longer, and there are fewer.
const (
	manyRound = 40 * time.Millisecond
	manyTimes = 6 // how many rounds one of these stands for
)

var (
	full      = plan{rounds: 36, figureRounds: 400, budget: time.Second}
	quickPlan = plan{quick: true, rounds: 12, figureRounds: 120, budget: 200 * time.Millisecond}
)

// of returns how many rounds a work has, and how long they are.
func (w work) of(rounds int) (int, time.Duration) {
	if w.goroutines > 1 {
		return max(rounds/manyTimes, 3), manyRound
	}
	return rounds, round
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == delayCommand {
		if err := serveDelay(os.Args[2:]); err != nil {
			log.Fatal(err)
		}
		return
	}
	short := flag.Bool("quick", false, "one server without added round trip, fewer rounds: under a minute")
	check := flag.Bool("check", false, "exit with 1 if a figure does not hold")
	only := flag.Bool("figures", false, "only the figures, without the table")
	write := flag.String("write", "", "write benchmarks.md and batch.svg to this `directory`, and the README beside it, as well")
	flag.Parse()

	p := full
	if *short {
		p = quickPlan
	}
	failed, err := run(p, *only, *write)
	if err != nil {
		log.Fatal(err)
	}
	if failed > 0 {
		fmt.Fprintf(os.Stderr, "%d figures do not hold\n", failed)
		if *check {
			os.Exit(1)
		}
	}
}

func run(p plan, onlyFigures bool, dir string) (failed int, err error) {
	s, err := startServers(3, addedRoundTrip)
	if err != nil {
		return 0, err
	}
	defer s.stop()

	var file bytes.Buffer
	out := io.MultiWriter(os.Stdout, &file)
	if failed, err = s.writeFigures(out, p); err != nil || onlyFigures {
		return failed, err
	}
	results, err := s.writeTable(out, p)
	if err != nil || dir == "" {
		return failed, err
	}
	if err := os.WriteFile(filepath.Join(dir, "benchmarks.md"), file.Bytes(), 0o644); err != nil {
		return failed, err
	}
	if err := updateReadme(filepath.Join(dir, "..", "README.md"), file.Bytes()); err != nil {
		return failed, err
	}
	return failed, plotBatches(results, filepath.Join(dir, "batch.svg"))
}

// title names a work in a table.
func (w work) title() string {
	if w.batch() {
		return fmt.Sprintf("%s of %s", w.op, thousands(w.keys))
	}
	if w.goroutines == 1 {
		return fmt.Sprintf("%s, 1 goroutine", w.op)
	}
	return fmt.Sprintf("%s, %d goroutines", w.op, w.goroutines)
}
