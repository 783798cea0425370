package pool

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestBeforeMeta(t *testing.T) {
	for version, want := range map[string]bool{
		"1.4.39": true, "1.5.22": true, "1.6.0": true, "1.6.9": true, "1.6.9_beta": true,
		"1.6.10": false, "1.6.18": false, "1.6.40": false, "1.7.0": false, "2.0.0": false, "mcrouter 1.0": false, "": false,
	} {
		assert.Equal(t, want, beforeMeta(version), version)
	}
}
