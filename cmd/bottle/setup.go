package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/doctor"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/setup"
)

// setupFlags are the flags of bottle setup.
type setupFlags struct {
	packages, undo, yes, noInput, dryRun, asJSON bool
	from, checksums                              []string
	bundle, makeBundle, arch                     string
}

func (a *app) setupCommand() *cobra.Command {
	var f setupFlags
	cmd := &cobra.Command{
		Use:     "setup",
		Short:   "Install what bottles need on this host, after confirmation",
		Long:    textSetupLong,
		Example: textSetupExample,
		Args:    noArgs,
		RunE:    func(*cobra.Command, []string) error { return a.setup(f) },
	}
	fs := cmd.Flags()
	fs.StringVar(&f.bundle, "bundle", "", "take release files from a bundle")
	fs.StringArrayVar(&f.from, "from", nil, "take release files from a directory or a URL of one; may be repeated")
	fs.StringArrayVar(&f.checksums, "checksums", nil, "accept the release files with the checksums in a file, as sha256sum prints them; may be repeated")
	fs.BoolVar(&f.packages, "packages", false, "install what the host's packages have in a suitable version (apt)")
	fs.StringVar(&f.makeBundle, "make-bundle", "", "write the release files of --from as a bundle to this file, and change nothing")
	fs.StringVar(&f.arch, "arch", runtime.GOARCH, "with --make-bundle: architecture of the other host")
	fs.BoolVar(&f.undo, "undo", false, "remove what setup has made")
	fs.BoolVarP(&f.yes, "yes", "y", false, "change the host without confirmation")
	fs.BoolVar(&f.noInput, "no-input", false, "fail instead of asking")
	fs.BoolVar(&f.dryRun, "dry-run", false, "show only")
	fs.BoolVar(&f.asJSON, "json", false, "print the changes as JSON")
	return cmd
}

func (a *app) setup(f setupFlags) (err error) {
	if err := f.combined(); err != nil {
		return err
	}
	who := caller.Current()
	req, closeRequest, err := a.setupRequest(f, who)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeRequest()) }()
	if f.makeBundle != "" {
		return a.makeBundle(f, who, req)
	}
	if os.Geteuid() != 0 {
		return withHint(fmt.Errorf(textNeedsRoot, os.Geteuid()), hintSetupRoot)
	}
	sys, err := a.system()
	if err != nil {
		return err
	}
	if !sys.rules.Unbound() {
		return withHint(errors.New(textSetupBound), hintSetupBound)
	}
	host, err := a.config()
	if err != nil {
		return err
	}
	cfg := a.setupConfig(host)
	if f.undo {
		return a.undoSetup(f, cfg)
	}
	done := a.busy(textBusyInspect)
	p, err := setup.Prepare(a.ctx, cfg, req)
	done()
	if err != nil {
		return err
	}
	if err := a.showSetup(f, p); err != nil {
		return err
	}
	if f.dryRun || len(p.Changes) == 0 {
		return nil
	}
	if err := a.confirmed(f, textSetupStart); err != nil {
		return err
	}
	if err := a.while(textBusySetup, func() error { return p.Apply(a.ctx) }); err != nil {
		return err
	}
	if p.Start != "" {
		a.note(textSetupStartBy, p.Start)
		return nil
	}
	return a.afterSetup()
}

// combined returns an error about flags that exclude each other.
func (f setupFlags) combined() error {
	sources := f.bundle != "" || len(f.from) > 0 || f.packages || len(f.checksums) > 0
	switch {
	case f.undo && (sources || f.makeBundle != ""):
		return withHint(errors.New(textSetupUndoAlone), hintHelp, "bottle setup")
	case f.makeBundle != "" && (f.bundle != "" || f.packages):
		return withHint(errors.New(textSetupFromOnly), hintNoFrom)
	}
	return nil
}

// setupConfig connects package setup with containerd and with the user.
func (a *app) setupConfig(host bottle.Config) setup.Config {
	return setup.Config{
		Address: host.Address, CNIPath: host.CNIPath, Arch: runtime.GOARCH,
		Notify: func(text string) {
			a.note("%s", visible(text))
			a.lines.replace(text)
		},
		Copied: func(name string, n int64) {
			a.lines.replace(fmt.Sprintf(textBusyCopied, name, units.HumanSize(float64(n))))
		},
		Version: func(ctx context.Context, address string) (string, error) {
			host.Address = address
			e, err := bottle.Open(ctx, host)
			if err != nil {
				return "", err
			}
			version, err := e.Version(ctx)
			return version, errors.Join(err, e.Close())
		},
	}
}

// setupRequest opens the sources, with the rights of the caller.
func (a *app) setupRequest(f setupFlags, who caller.Caller) (req setup.Request, closeAll func() error, err error) {
	req = setup.Request{Packages: f.packages, Checksums: setup.Checksums{}}
	closeAll = func() error { return nil }
	add := func(sums setup.Checksums) {
		for name, digest := range sums {
			req.Checksums[name] = digest
		}
	}
	if f.bundle != "" {
		file, err := who.Open(f.bundle)
		if err != nil {
			return req, closeAll, err
		}
		done := a.busy(textBusyBundleRead)
		b, err := setup.OpenBundle(file)
		done()
		if err != nil {
			return req, closeAll, err
		}
		closeAll = b.Close
		a.note(textBundleChecksum, b, b.Digest)
		req.Sources = append(req.Sources, b)
		add(b.Checksums)
	}
	for _, from := range f.from {
		readDir := func(name string) (list []fs.DirEntry, err error) {
			err = who.Do(func() (err error) { list, err = os.ReadDir(name); return err })
			return list, err
		}
		s, err := setup.Open(from, readDir, who.Open)
		if err != nil {
			return req, closeAll, errors.Join(err, closeAll())
		}
		req.Sources = append(req.Sources, s)
	}
	// After those of the bundle, which they precede.
	for _, name := range f.checksums {
		text, err := who.ReadRegular(name, maxChecksums)
		if err == nil {
			var sums setup.Checksums
			sums, err = setup.ParseChecksums(name, text)
			add(sums)
		}
		if err != nil {
			return req, closeAll, errors.Join(err, closeAll())
		}
	}
	return req, closeAll, nil
}

// maxChecksums bounds a file of checksums, in bytes.
const maxChecksums = 1 << 20

// makeBundle writes a bundle with the caller's rights. The file has its name only when it is
// complete.
func (a *app) makeBundle(f setupFlags, who caller.Caller, req setup.Request) (err error) {
	if len(req.Sources) == 0 {
		return withHint(errors.New(textNoFrom), hintNoFrom)
	}
	var out *os.File
	if err := who.Do(func() (err error) {
		if _, err := os.Lstat(f.makeBundle); err == nil {
			return withHint(fmt.Errorf("create bundle %s: %w", f.makeBundle, fs.ErrExist), hintBundleExists)
		}
		out, err = os.CreateTemp(filepath.Dir(f.makeBundle), "."+filepath.Base(f.makeBundle)+".*")
		return err
	}); err != nil {
		return err
	}
	cfg := a.setupConfig(bottle.Config{})
	cfg.Arch = f.arch
	done := a.busy(textBusyBundle)
	names, digest, err := setup.MakeBundle(a.ctx, out, cfg, req.Sources, req.Checksums)
	done()
	if err = errors.Join(err, out.Chmod(0o644), out.Close()); err == nil {
		err = who.Do(func() error { return os.Rename(out.Name(), f.makeBundle) })
	}
	if err != nil {
		return errors.Join(err, who.Do(func() error { return os.Remove(out.Name()) }))
	}
	a.note(textBundleMade, f.makeBundle, strings.Join(names, ", "))
	_, err = fmt.Fprintf(a.stdout, "%s  %s\n", digest, visible(f.makeBundle))
	return err
}

func (a *app) undoSetup(f setupFlags, cfg setup.Config) error {
	u, err := setup.PrepareUndo(cfg)
	if err != nil {
		return err
	}
	if len(u.Changes) == 0 {
		a.note(textNothingLeft)
		return nil
	}
	if err := a.showUndo(f, u); err != nil || f.dryRun {
		return err
	}
	if err := a.bottlesEnded(); err != nil {
		return err
	}
	if err := a.confirmed(f, textSetupUndo); err != nil {
		return err
	}
	done := a.busy(textBusyUndo)
	kept, err := u.Undo(a.ctx)
	done()
	for _, c := range kept {
		a.note(textSetupKept, visible(c.Target), visible(c.Detail))
	}
	return err
}

// bottlesEnded refuses to remove a containerd that still has bottles.
func (a *app) bottlesEnded() error {
	err := a.withEngine(func(e *bottle.Engine) error {
		left, err := e.FindLeftovers(a.ctx)
		if err != nil || len(left) == 0 {
			return err
		}
		return withHint(fmt.Errorf(textSetupBottles, count(len(left), "bottle")), hintSetupBottles)
	})
	if errors.Is(err, bottle.ErrNoContainerd) {
		return nil // and so no bottle
	}
	return err
}

func (a *app) confirmed(f setupFlags, question string) error {
	if f.yes {
		return nil
	}
	if f.noInput {
		return withHint(errors.New(textConfirm), hintConfirm)
	}
	return a.confirm(question)
}

// afterSetup reports what doctor finds on the host now, with the configuration that setup
// may have changed.
func (a *app) afterSetup() error {
	a.sys = nil
	cfg, err := a.config()
	if err != nil {
		return err
	}
	var problems []doctor.Finding
	failed := false
	for _, f := range a.checkHost(cfg) {
		if f.Level != doctor.LevelOK {
			problems = append(problems, f)
		}
		failed = failed || f.Level == doctor.LevelFail
	}
	if failed {
		if err := a.printFindings(problems); err != nil {
			return err
		}
		return exitError(1)
	}
	a.note(textSetupReady)
	return nil
}
