package main

import (
	"bytes"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/bot-bottle/bottle"
)

func (a *app) diffCommand() *cobra.Command {
	var size sizeFlag
	var stat bool
	cmd := &cobra.Command{
		Use:   "diff NAME",
		Short: "Show what an agent has changed in its copy of your directory",
		Long:  textDiffLong,
		Args:  oneBottle("diff"),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withBottle(args[0], func(e *bottle.Engine, name string) error {
				done := a.busy(textBusyDiff, shownName(name))
				defer done()
				var out io.Writer = &firstWrite{a.stdout, done}
				if f, ok := a.stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
					out = &visibleWriter{w: out}
				}
				return e.Work().Diff(a.ctx, name, out, stat, a.workOptions(size))
			})
		},
	}
	cmd.Flags().BoolVar(&stat, "stat", false, "list the files and the number of changed lines")
	size.register(cmd)
	return cmd
}

// firstWrite calls a function before it writes.
type firstWrite struct {
	io.Writer
	before func()
}

func (w *firstWrite) Write(p []byte) (int, error) {
	w.before()
	return w.Writer.Write(p)
}

// visibleWriter replaces what a terminal would interpret, except line breaks and tabs. A
// character may be split between two writes.
type visibleWriter struct {
	w    io.Writer
	held []byte
}

func (v *visibleWriter) Write(p []byte) (int, error) {
	text := slices.Concat(v.held, p)
	end := bytes.LastIndexByte(text, '\n') + 1
	v.held = bytes.Clone(text[end:])
	for line := range strings.Lines(string(text[:end])) {
		line = strings.TrimSuffix(line, "\n")
		parts := strings.Split(line, "\t")
		for i := range parts {
			parts[i] = visible(parts[i])
		}
		if _, err := io.WriteString(v.w, strings.Join(parts, "\t")+"\n"); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}
