package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is how many microseconds of a CPU this process and those with pids have
// used so far; NaN where there is no schedstat to tell, as on all but Linux.
func cpuTime(pids []int) float64 {
	var own unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &own) != nil {
		return math.NaN()
	}
	total := time.Duration(own.Utime.Nano() + own.Stime.Nano())
	for _, pid := range pids {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		if len(threads) == 0 {
			return math.NaN()
		}
		for _, path := range threads {
			var ran time.Duration
			b, err := os.ReadFile(path)
			if err == nil {
				_, err = fmt.Sscan(string(b), &ran)
			}
			if err != nil {
				return math.NaN()
			}
			total += ran
		}
	}
	return float64(total) / 1e3
}
