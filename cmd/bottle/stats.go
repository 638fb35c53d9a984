package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/session"
)

// stats is what one bottle uses, as bottle stats prints it.
type stats struct {
	Name        string  `json:"name"`
	CPU         float64 `json:"cpu_percent"` // of one processor
	Memory      int64   `json:"memory_bytes"`
	MemoryLimit int64   `json:"memory_limit_bytes"`
	Pids        int     `json:"pids"`
	PidsLimit   int64   `json:"pids_limit"`
	Disk        int64   `json:"disk_bytes"`
	DiskLimit   int64   `json:"disk_limit_bytes"`
}

// statsInterval is the time over which the use of the processors is measured, and the
// time between two tables.
const statsInterval = time.Second

func (a *app) statsCommand() *cobra.Command {
	var once, asJSON bool
	var format string
	cmd := &cobra.Command{
		Use:   "stats [NAME...]",
		Short: "Show what bottles use: processors, memory, processes and disk",
		RunE: func(_ *cobra.Command, args []string) error {
			if asJSON {
				format = "json"
			}
			show, err := parseFormat(format)
			if err != nil {
				return err
			}
			defer catchBrokenPipes()()
			return a.withEngine(func(e *bottle.Engine) error { return a.stats(e, args, once, show) })
		},
	}
	cmd.Flags().BoolVar(&once, "no-stream", false, "print once and stop")
	cmd.Flags().StringVar(&format, "format", "", textFormatFlag)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON lines")
	cmd.MarkFlagsMutuallyExclusive("format", "json")
	return cmd
}

// stats prints tables until it is interrupted, or the named bottles have ended.
func (a *app) stats(e *bottle.Engine, args []string, once bool, show formatter) error {
	var names []string
	for _, arg := range args {
		name, err := a.resolve(e, arg)
		if err != nil {
			return err
		}
		if _, err := e.Usage(a.ctx, name); err != nil {
			return err
		}
		names = append(names, name)
	}
	// The first table needs two measurements.
	measured := a.busy(textBusyUsage)
	defer measured()
	before, err := a.measure(e, names)
	for err == nil {
		select {
		case <-time.After(statsInterval):
		case <-a.ctx.Done():
			return a.ctx.Err()
		}
		var now []bottle.Usage
		if now, err = a.measure(e, names); err != nil {
			return err
		}
		measured()
		if err := a.printStats(compareUsage(before, now), show, !once); err != nil || once {
			return err
		}
		if names != nil && len(now) == 0 {
			return nil
		}
		before = now
	}
	return err
}

// clearScreen moves the cursor to the top left corner and erases the screen.
const clearScreen = "\x1b[H\x1b[2J"

func (a *app) printStats(list []stats, show formatter, again bool) error {
	if show != nil {
		return printEach(a, show, list)
	}
	var b strings.Builder
	if _, ok := a.terminal(); ok && again {
		b.WriteString(clearScreen)
	}
	t := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "NAME\tCPU\tMEMORY / LIMIT\tPROCESSES / LIMIT\tDISK / LIMIT")
	for _, s := range list {
		disk := "not limited"
		if s.DiskLimit > 0 {
			disk = size(s.Disk) + " / " + size(s.DiskLimit)
		}
		_, _ = fmt.Fprintf(t, "%s\t%.1f%%\t%s / %s\t%d / %d\t%s\n", visible(s.Name), s.CPU, size(s.Memory), size(s.MemoryLimit), s.Pids, s.PidsLimit, disk)
	}
	_ = t.Flush() // to memory
	_, err := io.WriteString(a.stdout, b.String())
	return err
}

// measure measures the named bottles, or all running ones, in the order of List.
func (a *app) measure(e *bottle.Engine, names []string) ([]bottle.Usage, error) {
	list, err := e.List(a.ctx, false)
	if err != nil {
		return nil, err
	}
	var out []bottle.Usage
	for _, s := range list {
		if names != nil && !slices.Contains(names, s.Name) {
			continue
		}
		u, err := e.Usage(a.ctx, s.Name)
		if errors.Is(err, session.ErrNotRunning) {
			continue // it has ended meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, u)
	}
	return out, nil
}

// compareUsage returns what was used between two measurements. A bottle that is new in the
// second one is left out: the use of its processors is not known yet.
func compareUsage(before, now []bottle.Usage) []stats {
	out := []stats{}
	for _, u := range now {
		i := slices.IndexFunc(before, func(b bottle.Usage) bool { return b.Name == u.Name && b.CPU <= u.CPU })
		if i < 0 {
			continue
		}
		s := stats{
			Name: shownName(u.Name), Memory: u.Memory, MemoryLimit: u.Limits.Memory, Pids: u.Pids, PidsLimit: u.Limits.Pids,
			Disk: u.Disk, DiskLimit: u.Limits.Disk,
		}
		if d := u.At.Sub(before[i].At); d > 0 {
			s.CPU = 100 * float64(u.CPU-before[i].CPU) / float64(d)
		}
		out = append(out, s)
	}
	return out
}
