package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/internal/termmodes"
	"github.com/bot-bottle/bottle/session"
)

func (a *app) logsCommand() *cobra.Command {
	var follow, timestamps bool
	var from string
	var tail int
	cmd := &cobra.Command{
		Use:   "logs NAME",
		Short: "Show the output of a detached bottle's session",
		Args:  oneName,
		RunE: func(_ *cobra.Command, args []string) error {
			begin, err := since(from, time.Now())
			if err != nil {
				return err
			}
			return a.eachBottle(args, func(e *bottle.Engine, name string) error {
				w := &logWriter{a: a, tail: tail, timestamps: timestamps, modes: termmodes.New()}
				defer w.restore()
				if err := e.Sessions().Logs(a.ctx, name, begin, follow, w.write); err != nil {
					return err
				}
				return w.flush()
			})
		},
	}
	fs := cmd.Flags()
	fs.BoolVarP(&follow, "follow", "f", false, "continue with new output until the session ends")
	fs.StringVar(&from, "since", "", "only output since then: 10m, or 2026-01-02T15:04:05Z")
	fs.IntVarP(&tail, "tail", "n", -1, "only so many lines at the end (default: all)")
	fs.BoolVarP(&timestamps, "timestamps", "t", false, "print the time of each line")
	return cmd
}

// logWriter writes records to standard output and error.
type logWriter struct {
	a          *app
	tail       int // negative: everything
	timestamps bool
	modes      *termmodes.Tracker
	lines      []session.LogRecord // the last ones, if tail is set
	inLine     bool
}

// write writes a record. With a tail, it writes what was kept when all of it is known.
func (w *logWriter) write(r session.LogRecord) error {
	switch {
	case len(r.Data) == 0:
		w.tail = -1
		return w.flush()
	case w.tail < 0:
		return w.print(r)
	}
	w.lines = append(w.lines, r)
	// Records end with lines, except parts of long ones.
	lines := 0
	for i := len(w.lines) - 1; i >= 0; i-- {
		if i < len(w.lines)-1 && !bytes.HasSuffix(w.lines[i].Data, []byte("\n")) {
			continue
		}
		if lines++; lines > w.tail {
			w.lines = append([]session.LogRecord{}, w.lines[i+1:]...)
			break
		}
	}
	return nil
}

func (w *logWriter) flush() error {
	for _, r := range w.lines {
		if err := w.print(r); err != nil {
			return err
		}
	}
	w.lines = nil
	return nil
}

func (w *logWriter) print(r session.LogRecord) error {
	out := w.a.stdout
	if r.Stderr {
		out = w.a.stderr
	}
	if w.timestamps && !w.inLine {
		if _, err := fmt.Fprintf(out, "%s ", r.Time.UTC().Format("2006-01-02T15:04:05.000000000Z")); err != nil {
			return err
		}
	}
	w.inLine = !bytes.HasSuffix(r.Data, []byte("\n"))
	_, _ = w.modes.Write(r.Data)
	_, err := out.Write(r.Data)
	return err
}

// restore restores the modes of a terminal that the output has changed.
func (w *logWriter) restore() {
	if _, ok := w.a.terminal(); ok {
		_, _ = io.WriteString(w.a.stdout, w.modes.Restore())
	}
}

func (a *app) waitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "wait NAME...",
		Short: "Wait for the end of sessions and print their exit codes",
		Args:  oneOrMoreNames,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.eachBottle(args, func(e *bottle.Engine, name string) error {
				state, err := e.Sessions().WaitEnd(a.ctx, name)
				if err != nil {
					return err
				}
				// Without a watcher, the sandbox still waits.
				if err := e.Settle(a.ctx, name); err != nil && !errors.Is(err, session.ErrNotRunning) {
					return err
				}
				_, err = fmt.Fprintln(a.stdout, state.Code)
				return err
			})
		},
	}
}
