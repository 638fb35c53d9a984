package main

import (
	"errors"
	"path/filepath"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/agentwork"
	"github.com/bot-bottle/bottle/internal/caller"
)

func (a *app) cpCommand() *cobra.Command {
	var size sizeFlag
	cmd := &cobra.Command{
		Use:     "cp NAME:PATH DEST | SOURCE NAME:PATH",
		Short:   "Copy files from a bottle or into one",
		Long:    textCpLong,
		Example: textCpExample,
		Args: func(_ *cobra.Command, args []string) error {
			_, err := cpArgs(args)
			return err
		},
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := cpArgs(args)
			if err != nil {
				return err
			}
			return a.withEngine(func(e *bottle.Engine) error { return a.cp(e, c, size) })
		},
	}
	size.register(cmd)
	return cmd
}

func (a *app) cp(e *bottle.Engine, c cpRequest, size sizeFlag) error {
	name, err := a.resolve(e, c.name)
	if err != nil {
		return err
	}
	o := a.workOptions(size)
	local := c.local
	if !filepath.IsAbs(local) { // not cleaned: "/" and "/." at the end have a meaning
		local = o.Caller.WorkDir + "/" + local
	}
	defer a.busy(textBusyCopy)()
	if c.out {
		return e.Work().CopyOut(a.ctx, name, c.path, local, o)
	}
	return e.Work().CopyIn(a.ctx, name, local, c.path, o)
}

// cpRequest is a copy between a path of the host and one of a bottle.
type cpRequest struct {
	name, path string // in the bottle; the path is absolute
	local      string
	out        bool // from the bottle
}

func cpArgs(args []string) (cpRequest, error) {
	if len(args) != 2 {
		return cpRequest{}, withHint(errors.New(textCpArgs), hintCp)
	}
	from, fromPath := splitCopyArg(args[0])
	to, toPath := splitCopyArg(args[1])
	switch {
	case (from == "") == (to == ""):
		return cpRequest{}, withHint(errors.New(textCpArgs), hintCp)
	case from != "":
		return cpRequest{from, fromRoot(fromPath), toPath, true}, nil
	}
	return cpRequest{to, fromRoot(toPath), fromPath, false}, nil
}

// splitCopyArg splits NAME:PATH as docker does: a path that begins with a slash or a dot
// is the host's, even if it contains a colon.
func splitCopyArg(arg string) (name, path string) {
	name, path, ok := strings.Cut(arg, ":")
	if !ok || filepath.IsAbs(arg) || strings.HasPrefix(arg, ".") || name == "" || path == "" {
		return "", arg
	}
	return name, path
}

// fromRoot makes a path in a bottle absolute: as with docker, relative to the root.
func fromRoot(path string) string { return "/" + strings.TrimLeft(path, "/") }

// sizeFlag is --max-size, in bytes.
type sizeFlag int64

func (s *sizeFlag) register(cmd *cobra.Command) {
	*s = sizeFlag(agentwork.DefaultLimits.Bytes)
	cmd.Flags().Var(s, "max-size", "copy at most this much")
}

// String, Set and Type implement pflag.Value.
func (s *sizeFlag) String() string { return units.BytesSize(float64(*s)) }

// Set reads a size as docker writes it.
func (s *sizeFlag) Set(text string) error {
	n, err := units.RAMInBytes(text)
	if err == nil && n <= 0 {
		err = errors.New("it must be positive")
	}
	*s = sizeFlag(n)
	return err
}

// Type names the value in the help.
func (s *sizeFlag) Type() string { return "size" }

// workOptions are the options of all commands that exchange files with a bottle.
func (a *app) workOptions(size sizeFlag) agentwork.Options {
	limits := agentwork.DefaultLimits
	limits.Bytes = int64(size)
	return agentwork.Options{Caller: caller.Current(), Limits: limits, Notice: func(text string) { a.note("%s", text) }}
}
