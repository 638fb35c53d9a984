package main

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/agentwork"
	"github.com/bot-bottle/bottle/internal/names"
)

func (a *app) listCommand() *cobra.Command {
	var asJSON, all, quiet bool
	var filters []string
	var format string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls", "ps"},
		Short:   "List running bottles",
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			show, err := parseFormat(format)
			if err != nil {
				return err
			}
			keep, err := parseFilters(filters)
			if err != nil {
				return err
			}
			return a.withEngine(func(e *bottle.Engine) error {
				// A filter for a state includes bottles in it.
				done := a.busy(textBusyList)
				defer done()
				list, err := e.List(a.ctx, all || keep.has("status"))
				if err != nil {
					return err
				}
				list = slices.DeleteFunc(list, func(s bottle.Status) bool { return !keep.match(s) })
				if !quiet {
					o := a.workOptions(sizeFlag(agentwork.DefaultLimits.Bytes))
					o.Notice, o.Limits.Time = nil, listTime
					e.SummarizeAll(a.ctx, list, o)
				}
				for i := range list {
					list[i].Name = shownName(list[i].Name)
				}
				done()
				switch {
				case asJSON:
					return a.printJSON(list)
				case quiet:
					return printEach(a, func(v any) (string, error) { return v.(bottle.Status).Name, nil }, list)
				case show != nil:
					return printEach(a, show, list)
				}
				return a.printList(list)
			})
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	fs.BoolVarP(&all, "all", "a", false, "include bottles whose agent does not run, and kept work")
	fs.BoolVarP(&quiet, "quiet", "q", false, "print names only")
	fs.StringArrayVarP(&filters, "filter", "f", nil, "show only bottles for which KEY=VALUE is true: "+strings.Join(filterKeys, ", "))
	fs.StringVar(&format, "format", "", textFormatFlag)
	cmd.MarkFlagsMutuallyExclusive("json", "quiet", "format")
	return cmd
}

// listTime bounds the count of running agents' work.
const listTime = 3 * time.Second

// filterKeys are the keys of --filter.
var filterKeys = []string{"agent", "image", "name", "proxy", "runtime", "status"}

// filters are the values allowed for each key. A bottle matches if every key has a value
// that matches.
type filters map[string][]string

func parseFilters(list []string) (filters, error) {
	out := filters{}
	for _, f := range list {
		key, value, ok := strings.Cut(f, "=")
		if !ok || !slices.Contains(filterKeys, key) {
			return nil, withHint(fmt.Errorf(textBadFilter, f), hintBadFilter, strings.Join(filterKeys, ", "))
		}
		if _, err := path.Match(value, ""); err != nil {
			return nil, withHint(fmt.Errorf(textBadFilter, f), hintBadPattern)
		}
		out[key] = append(out[key], value)
	}
	return out, nil
}

func (f filters) has(key string) bool { return len(f[key]) > 0 }

// match compares with shell patterns; a name also without the prefix of all bottles, and
// a state also without its details.
func (f filters) match(s bottle.Status) bool {
	values := map[string][]string{
		"agent": {s.Agent}, "image": {s.Image}, "name": {s.Name, shownName(s.Name), strings.TrimPrefix(shownName(s.Name), names.Prefix)}, "proxy": {s.Proxy},
		"runtime": {s.Runtime}, "status": {s.Status, firstField(s.Status)},
	}
	for key, patterns := range f {
		matches := func(pattern string) bool {
			return slices.ContainsFunc(values[key], func(v string) bool {
				ok, _ := path.Match(pattern, v) // parseFilters has checked the pattern
				return ok || v == pattern
			})
		}
		if !slices.ContainsFunc(patterns, matches) {
			return false
		}
	}
	return true
}

// firstField returns a state without its details: "running" of "running, proxy is gone".
func firstField(status string) string {
	status, _, _ = strings.Cut(status, ",")
	status, _, _ = strings.Cut(status, " ")
	return status
}
