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

// updateReadme puts the first table of the report, and the plot, into the
// README.
func updateReadme(path string, report []byte) error {
	readme, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, found := bytes.Cut(readme, []byte(readmeBegin))
	_, after, closed := bytes.Cut(rest, []byte(readmeEnd))
	_, table, hasTable := bytes.Cut(report, []byte("\n| "))
	table, _, _ = bytes.Cut(table, []byte("\n\n"))
	if !found || !closed || !hasTable {
		return fmt.Errorf("%s has no place for the figures, or the report no table", path)
	}
	var b bytes.Buffer
	b.Write(before)
	fmt.Fprintf(&b, "%s| %s\n\n![Time against batch size, for each client](docs/batch.svg)\n\n%s", readmeBegin, table, readmeEnd)
	b.Write(after)
	return os.WriteFile(path, b.Bytes(), 0o644)
}
