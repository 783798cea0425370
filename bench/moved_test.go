package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

var number = regexp.MustCompile(`\d+(\.\d+)?`)

// The numbers may be rounded otherwise on another processor.
func TestMovedPictureIsFresh(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, drawMoved(dir))
	read := func(path string) (shape string, numbers []float64) {
		svg, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, n := range number.FindAllString(string(svg), -1) {
			f, err := strconv.ParseFloat(n, 64)
			require.NoError(t, err)
			numbers = append(numbers, f)
		}
		return number.ReplaceAllString(string(svg), "0"), numbers
	}
	drawnShape, drawn := read(filepath.Join(dir, "moved.svg"))
	keptShape, kept := read("../docs/moved.svg")
	require.True(t, drawnShape == keptShape, "docs/moved.svg is not what is drawn now: make moved")
	require.InDeltaSlice(t, drawn, kept, 0.01, "docs/moved.svg is not what is drawn now: make moved")
}
