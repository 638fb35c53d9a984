// Command report ends a run of all benchmarks (scripts/bench/run): it prints the ratios
// with their goals and those of the kept run, and writes the run as JSON. The exit code is
// 1 if a ratio is worse than the kept one by half.
//
//	go run ./scripts/bench/results/report -results DIR -kept FILE -out FILE [-keep]
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/scripts/bench/compare"
	"github.com/bot-bottle/bottle/scripts/bench/results"
)

// tolerance is how many times worse than the kept one a ratio may be. Less would fail on
// a busy machine.
const tolerance = 1.5

var errWorse = errors.New("ratios are worse than those of the kept run by half")

func main() {
	dir := flag.String("results", "", "directory with the results of the benchmarks")
	kept := flag.String("kept", "scripts/bench/kept.json", "the kept run, to compare with")
	out := flag.String("out", "", "write the run to this file")
	keep := flag.Bool("keep", false, "replace the kept run")
	flag.Parse()
	if err := run(os.Stdout, *dir, *kept, *out, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(w io.Writer, dir, kept, out string, keep bool) error {
	now, err := describe()
	if err != nil {
		return err
	}
	if now.Results, err = results.Read(dir); err != nil {
		return err
	}
	if len(now.Results) == 0 {
		return fmt.Errorf("no results in %s", dir)
	}
	earlier, ok, err := results.ReadRun(kept)
	if err != nil {
		return err
	}
	if out != "" {
		if err := write(out, now); err != nil {
			return err
		}
	}
	worse, err := report(w, now, earlier, ok)
	if err != nil {
		return err
	}
	if keep {
		return write(kept, now)
	}
	if len(worse) > 0 {
		return fmt.Errorf("%w: %s", errWorse, strings.Join(worse, ", "))
	}
	return nil
}

// report prints the ratios and returns the names of those that are worse by half.
func report(w io.Writer, now, kept results.Run, compared bool) (worse []string, err error) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "BENCHMARK\tRATIO\tNOW\tGOAL\tKEPT\t")
	for _, result := range now.Results {
		for _, r := range result.Ratios {
			goal, before, note := "-", "-", ""
			if r.Goal != 0 {
				goal = fmt.Sprintf("<= %.2f", r.Goal)
				if r.More {
					goal = fmt.Sprintf(">= %.2f", r.Goal)
				}
			}
			if !r.Met() {
				note = "not met"
			}
			if earlier, ok := kept.Ratio(result.Benchmark, r.Name); ok {
				before = fmt.Sprintf("%.2f", earlier.Value)
				if r.Worse(earlier) > tolerance {
					worse = append(worse, result.Benchmark+": "+r.Name)
					note = strings.TrimSpace(note + " worse")
				}
			}
			_, _ = fmt.Fprintf(t, "%s\t%s\t%.2f\t%s\t%s\t%s\n", result.Benchmark, r.Name, r.Value, goal, before, note)
		}
	}
	if err := t.Flush(); err != nil {
		return nil, err
	}
	if compared {
		_, err = fmt.Fprintf(w, "kept: %s, %d × %s\n", kept.Time.Format(time.DateOnly), kept.Machine.Processors, kept.Machine.Processor)
	}
	return worse, err
}

func write(path string, r results.Run) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

// describe describes this machine and its programs.
func describe() (results.Run, error) {
	program, err := compare.Program()
	if err != nil {
		return results.Run{}, err
	}
	versions, err := exec.Command(program, "version", "--json").Output()
	if err != nil {
		return results.Run{}, fmt.Errorf("bottle version: %w", err)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return results.Run{}, fmt.Errorf("sysinfo: %w", err)
	}
	m := results.Machine{Processor: processor(), Processors: runtime.NumCPU(), MemoryMB: int(info.Totalram * uint64(info.Unit) / 1_000_000)}
	for i := range m.Load {
		// In units of 1/65536 (SI_LOAD_SHIFT, sysinfo(2)).
		m.Load[i], _ = strconv.ParseFloat(fmt.Sprintf("%.2f", float64(info.Loads[i])/65536), 64)
	}
	return results.Run{Time: time.Now().UTC().Truncate(time.Second), Machine: m, Versions: versions}, nil
}

var modelName = regexp.MustCompile(`(?m)^model name\s*: (.*)$`)

// processor returns the model's name, or the architecture if the kernel names none.
func processor() string {
	data, err := os.ReadFile("/proc/cpuinfo")
	if m := modelName.FindSubmatch(data); err == nil && m != nil {
		return string(m[1])
	}
	return runtime.GOARCH
}
