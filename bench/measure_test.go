package main

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRatioIsOfTheSameRound(t *testing.T) {
	a, b := contestant{name: "a"}, contestant{name: "b"}
	m := measurement{
		{"a": {call: 1}, "b": {call: 2}},
		{"a": {call: 30}, "b": {call: 10}}, // a slow moment of the machine
		{"a": {call: 1}, "b": {call: 1}},
		{"a": {call: 1000}}, // b has had its share
	}
	require.Equal(t, spread{0.75, 1, 2}, m.ratio(a, b, perCall))
	require.Equal(t, spread{1, 15.5, 272.5}, m.of(a, perCall))
	require.True(t, math.IsNaN(m.of(contestant{name: "c"}, perCall).median))
}

// What nobody could measure is no promise kept.
func TestFigureWithoutMeasurementDoesNotHold(t *testing.T) {
	require.True(t, figure{value: 1, bound: 1}.held())
	require.False(t, figure{value: 1.001, bound: 1}.held())
	require.False(t, figure{value: spreadOf(nil).median, bound: 1}.held())
}

func TestEveryFigureIsMeasured(t *testing.T) {
	for _, f := range ratioFigures() {
		require.Contains(t, works(), f.work)
		var names []string
		for _, c := range f.work.contestants() {
			names = append(names, c.name)
		}
		require.Equal(t, ours.name, names[0])
		require.Subset(t, names, []string{f.ours.name, f.against.name}, f.work.title())
	}
}
