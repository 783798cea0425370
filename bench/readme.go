package main

import (
	"bytes"
	"fmt"
	"os"
)

// The marks in the README between which the figures stand.
const (
	readmeBegin = "<!-- benchmarks -->\n"
	readmeEnd   = "<!-- /benchmarks -->"
)

// readmeWorks are what the README shows of them all.
var readmeWorks = []work{{opGet, 0, 1, near}, {opGet, 0, 64, near}, {opMSet, 100, 1, near}}

// updateReadme puts three works and the pictures into the README.
func (r *results) updateReadme(path string) error {
	readme, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, found := bytes.Cut(readme, []byte(readmeBegin))
	_, after, closed := bytes.Cut(rest, []byte(readmeEnd))
	if !found || !closed {
		return fmt.Errorf("%s has no place for the benchmarks", path)
	}
	var b bytes.Buffer
	b.Write(before)
	b.WriteString(readmeBegin)
	r.table(&b, readmeWorks, readmeColumns)
	fmt.Fprint(&b, `
The time of a call, and as a ratio to the others' times: below 1 memcacheddriver is
quicker, **bold** the other one. In brackets are the quartiles of many rounds.

![Time per call, and the 99th percentile, against the number of callers](docs/callers.svg)

One of two servers is frozen for 10 s, under 64 callers:

![Calls answered in each second, and the slowest of it, while one of two servers is frozen](docs/frozen.svg)

![Time against batch size, for each client](docs/batch.svg)

`)
	b.WriteString(readmeEnd)
	b.Write(after)
	return os.WriteFile(path, b.Bytes(), 0o644)
}
