// Command bench measures memcacheddriver beside other clients, in turns and on
// servers of its own, and prints tables in Markdown and whether the driver's
// figures hold:
//
//	go run . [-quick] [-check] [-write DIRECTORY]
//	go run . -moved DIRECTORY
//
// "make bench" runs it; setup.sh installs the servers where they are missing. CPU
// is told on Linux alone. "make moved" draws the picture of docs/servers.md, for
// which nothing is measured.
package main

import (
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// plan is how long to measure.
type plan struct {
	onlyFigures bool
	share       time.Duration // of each client, for a work that has figures; half of it for another
	freeze      freeze
}

var (
	full  = plan{share: 1600 * time.Millisecond, freeze: freeze{2, 10, 3}}
	quick = plan{onlyFigures: true, share: 500 * time.Millisecond, freeze: freeze{1, 3, 1}}
)

// results are all that was measured.
type results struct {
	works       map[work]measurement
	storms      map[string]map[string]tally // by the storm's title and the client's name
	frozen      map[string][]tally          // by the client's name; one for each second
	allocations map[work]float64
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == delayCommand {
		if err := serveDelay(os.Args[2:]); err != nil {
			log.Fatal(err)
		}
		return
	}
	short := flag.Bool("quick", false, "only what the figures need, and less often: a minute and a half")
	check := flag.Bool("check", false, "exit with 1 if a figure does not hold")
	dir := flag.String("write", "", "write benchmarks.md and the pictures to this `directory` as well")
	moved := flag.String("moved", "", "only draw moved.svg, into this `directory`")
	flag.Parse()
	if *moved != "" {
		if err := drawMoved(*moved); err != nil {
			log.Fatal(err)
		}
		return
	}
	p := full
	if *short {
		p = quick
		if *dir != "" {
			log.Fatal("-write needs all that is measured without -quick")
		}
	}
	failed, err := run(p, *dir)
	if err != nil {
		log.Fatal(err)
	}
	if failed > 0 && *check {
		os.Exit(1)
	}
}

func run(p plan, dir string) (failed int, err error) {
	s, err := startServers()
	if err != nil {
		return 0, err
	}
	defer s.stop()
	r, err := s.results(p)
	if err != nil {
		return 0, err
	}
	for _, f := range r.figures() {
		if !f.held() {
			failed++
		}
	}
	report := r.report(p, s.versions)
	os.Stdout.Write(report)
	if dir == "" {
		return failed, nil
	}
	if err := os.WriteFile(filepath.Join(dir, "benchmarks.md"), report, 0o644); err != nil {
		return failed, err
	}
	return failed, r.draw(p, dir)
}

// results measures everything, each once.
func (s *servers) results(p plan) (*results, error) {
	r := &results{
		works:       make(map[work]measurement),
		storms:      make(map[string]map[string]tally),
		frozen:      make(map[string][]tally),
		allocations: make(map[work]float64),
	}
	var err error
	for _, w := range works() {
		contestants, share, promised := w.contestants(), p.share, w.promised()
		if len(promised) == 0 {
			share /= 2
		}
		if p.onlyFigures {
			contestants = slices.DeleteFunc(contestants, func(c contestant) bool { return !promised[c.name] })
		}
		if len(contestants) == 0 {
			continue
		}
		progress(w.title())
		if r.works[w], err = s.measure(w, contestants, share); err != nil {
			return nil, err
		}
	}
	for _, a := range allocationBounds {
		if r.allocations[a.work], err = s.allocated(a.work); err != nil {
			return nil, err
		}
	}
	for _, st := range storms {
		r.storms[st.title] = make(map[string]tally)
		for _, c := range stormClients {
			progress(st.title + ": " + c.name)
			if r.storms[st.title][c.name], err = s.weather(st, c); err != nil {
				return nil, fmt.Errorf("%s, %s: %w", st.title, c.name, err)
			}
			if err := r.storms[st.title][c.name].err; err != nil {
				progress("its first other error: " + err.Error())
			}
		}
	}
	for _, c := range stormClients {
		progress("a frozen server: " + c.name)
		if r.frozen[c.name], err = s.frozen(p.freeze, c); err != nil {
			return nil, fmt.Errorf("a frozen server, %s: %w", c.name, err)
		}
	}
	return r, nil
}

var started = time.Now()

// progress says what comes next.
func progress(what string) {
	fmt.Fprintf(os.Stderr, "%4.0f s  %s\n", time.Since(started).Seconds(), what)
}
