package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/scripts/bench/results"
)

// TestReport compares a run with a kept one: only a ratio that is worse by half fails, in
// the direction that is worse for it.
func TestReport(t *testing.T) {
	run := func(launch, throughput, list float64) results.Run {
		return results.Run{Results: []results.Result{
			{Benchmark: "launch", Ratios: []results.Ratio{{Name: "bottle / minimal", Value: launch, Goal: 1.3}}},
			{Benchmark: "egress", Ratios: []results.Ratio{{Name: "proxy / relay", Value: throughput, Goal: 0.9, More: true}}},
			{Benchmark: "many", Ratios: []results.Ratio{{Name: "list", Value: list}}},
		}}
	}
	for _, c := range []struct {
		name  string
		now   results.Run
		worse []string
	}{
		{"equal", run(1.2, 1, 2), nil},
		{"a little worse", run(1.7, 0.7, 2.9), nil},
		{"better", run(0.1, 9, 0.1), nil},
		{"launch", run(1.9, 1, 2), []string{"launch: bottle / minimal"}},
		{"throughput", run(1.2, 0.6, 2), []string{"egress: proxy / relay"}},
		{"all", run(2, 0.1, 4), []string{"launch: bottle / minimal", "egress: proxy / relay", "many: list"}},
	} {
		var out bytes.Buffer
		worse, err := report(&out, c.now, run(1.2, 1, 2), true)
		if err != nil || !slices.Equal(worse, c.worse) {
			t.Errorf("%s: worse is %q, %v", c.name, worse, err)
		}
		if strings.Count(out.String(), " worse\n") != len(c.worse) {
			t.Errorf("%s: printed\n%s", c.name, &out)
		}
	}
	var out bytes.Buffer
	if worse, err := report(&out, run(9, 0.1, 9), results.Run{}, false); err != nil || len(worse) != 0 {
		t.Errorf("without a kept run: worse is %q, %v", worse, err)
	}
	if !strings.Contains(out.String(), "<= 1.30") || !strings.Contains(out.String(), ">= 0.90") || strings.Count(out.String(), "not met") != 2 {
		t.Errorf("without a kept run, printed\n%s", &out)
	}
}
