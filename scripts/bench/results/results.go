// Package results records what benchmarks have measured, as JSON, and compares runs.
package results

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// DirVar is the environment variable that names a directory for the results of
// benchmarks. They are written to it as JSON if it is set.
const DirVar = "BOTTLE_BENCH_RESULTS"

// Result is what a benchmark has measured in one run.
type Result struct {
	Benchmark string   `json:"benchmark"`
	Figures   []Figure `json:"figures"`
	Ratios    []Ratio  `json:"ratios"`
}

// Figure is a value that depends on the machine. Low and High are the quartiles of the
// measured rounds.
type Figure struct {
	Name   string  `json:"name"`
	Unit   string  `json:"unit"` // ms, MB or MB/s
	Rounds int     `json:"rounds"`
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
}

// Ratio is the ratio of two figures of the same run, which is comparable between
// machines.
type Ratio struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	// Goal is the highest acceptable value, or with More the lowest; 0: there is none.
	Goal float64 `json:"goal,omitempty"`
	More bool    `json:"more,omitempty"` // more is better
}

// Met reports whether the ratio reaches its goal.
func (r Ratio) Met() bool {
	return r.Goal == 0 || r.More && r.Value >= r.Goal || !r.More && r.Value <= r.Goal
}

// Worse returns how many times worse the ratio is than an earlier one: over 1 if it is
// worse.
func (r Ratio) Worse(earlier Ratio) float64 {
	if r.More {
		return earlier.Value / r.Value
	}
	return r.Value / earlier.Value
}

// FigureOf returns the figure of values in one unit.
func FigureOf(name, unit string, values []float64) Figure {
	f := Figure{Name: name, Unit: unit, Rounds: len(values)}
	if len(values) == 0 {
		return f
	}
	sorted := slices.Sorted(slices.Values(values))
	f.Low, f.Median, f.High = quantile(sorted, 1), quantile(sorted, 2), quantile(sorted, 3)
	return f
}

// quantile interpolates a quartile of sorted values.
func quantile(sorted []float64, quartile int) float64 {
	at := float64(quartile) / 4 * float64(len(sorted)-1)
	i := int(at)
	if i+1 == len(sorted) {
		return sorted[i]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// Millis returns a time in milliseconds.
func Millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// Record writes a result to the directory that DirVar names. A benchmark can record
// several results under different names.
func Record(r Result) error {
	dir := os.Getenv(DirVar)
	if dir == "" {
		return nil
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, r.Benchmark+".json"), append(data, '\n'), 0o644)
}

// Run is the results of all benchmarks, and what they ran on.
type Run struct {
	Time     time.Time       `json:"time"`
	Machine  Machine         `json:"machine"`
	Versions json.RawMessage `json:"versions"` // bottle version --json
	Results  []Result        `json:"results"`
}

// Machine describes where benchmarks ran.
type Machine struct {
	Processor  string     `json:"processor"`
	Processors int        `json:"processors"`
	MemoryMB   int        `json:"memory_mb"`
	Load       [3]float64 `json:"load"` // at the end: 1, 5 and 15 minutes
}

// Read reads the results in a directory, in the order of their names.
func Read(dir string) ([]Result, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var out []Result
	for _, file := range files {
		var r Result
		if err := readJSON(file, &r); err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

// ReadRun reads a kept run. ok is false if there is none.
func ReadRun(path string) (run Run, ok bool, err error) {
	err = readJSON(path, &run)
	if errors.Is(err, fs.ErrNotExist) {
		return Run{}, false, nil
	}
	return run, err == nil, err
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Ratio returns a ratio of a run. ok is false if the run has none of that name.
func (r Run) Ratio(benchmark, name string) (ratio Ratio, ok bool) {
	for _, result := range r.Results {
		if result.Benchmark != benchmark {
			continue
		}
		i := slices.IndexFunc(result.Ratios, func(x Ratio) bool { return x.Name == name })
		if i >= 0 {
			return result.Ratios[i], true
		}
	}
	return Ratio{}, false
}
