package main

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMovedShares(t *testing.T) {
	shares := movedShares(3)
	require.InDelta(t, 0.75, shares[byModulo], 0.02)
	require.InDelta(t, 0.25, shares[byKetama], 0.05)
	require.Equal(t, 0.25, shares[fair])
}

func TestMovedPictureIsFresh(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("it was drawn on amd64, and others may round differently")
	}
	dir := t.TempDir()
	require.NoError(t, drawMoved(dir))
	drawn, err := os.ReadFile(filepath.Join(dir, "moved.svg"))
	require.NoError(t, err)
	kept, err := os.ReadFile("../docs/moved.svg")
	require.NoError(t, err)
	require.True(t, string(drawn) == string(kept), "docs/moved.svg is not what is drawn now: make moved")
}
