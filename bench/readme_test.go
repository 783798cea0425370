package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReadmeKeepsTheRest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "README.md")
	r := &results{works: map[work]measurement{readmeWorks[0]: {{
		ours.name:       {call: 30},
		gomemcache.name: {call: 60},
		redis.name:      {call: 20},
	}}}}
	update := func(text string) (string, error) {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		err := r.updateReadme(path)
		b, _ := os.ReadFile(path)
		return string(b), err
	}
	once, err := update("before\n" + readmeBegin + "stale\n" + readmeEnd + "\nafter\n")
	require.NoError(t, err)
	require.Regexp(t, `^before\n`+readmeBegin, once)
	require.Regexp(t, readmeEnd+`\nafter\n$`, once)
	require.NotContains(t, once, "stale")
	require.Contains(t, once, "| Get, 1 caller | 30 (30–30) | 0.500 (0.50–0.50) | **1.500 (1.50–1.50)** |")

	twice, err := update(once)
	require.NoError(t, err)
	require.Equal(t, once, twice)

	_, err = update("no marks\n")
	require.Error(t, err)
}
