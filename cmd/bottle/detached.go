package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/proxy"
	"github.com/bot-bottle/bottle/session"
)

// A detached bottle has a helper: the process that has launched it and continues in the
// background. It holds the ssh agent's keys, restarts the proxy, restores the host's
// rules, and stops the sandbox when the agent has ended. Nothing depends on it: without it
// the session continues, a dead proxy means no egress until the next command on the
// bottle, and `bottle stop` or `rm` ends what it would have.

// helperVariable contains the descriptor on which a helper reports the launch.
const helperVariable = "BOTTLE_HELPER_FD"

// launched is that report.
type launched struct {
	Name    string   `json:"name"`
	Agent   string   `json:"agent"`
	Command []string `json:"command"`
	// Names are those of several bottles.
	Names []string `json:"names,omitempty"`
}

// isHelper reports whether this process is a helper.
func isHelper() bool { return os.Getenv(helperVariable) != "" }

// runByHelper starts a helper with this process's arguments, waits until it has launched
// the bottle and, unless the session begins detached, attaches to the session.
func (a *app) runByHelper(f runFlags) error {
	report, err := a.startHelper()
	if err != nil {
		return err
	}
	if f.detach {
		a.note(textDetachedRun, shownName(report.Name), shownName(report.Name))
		_, err := fmt.Fprintln(a.stdout, shownName(report.Name))
		return err
	}
	return a.withEngine(func(e *bottle.Engine) error { return a.runHeld(e, f, report) })
}

// startHelper starts the helper and returns its report. If the helper ends without one, it
// has reported why, and the error is its exit code.
func (a *app) startHelper() (*launched, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find executable: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	files := inheritable()
	fd := len(files)
	pid, err := syscall.ForkExec(self, os.Args, &syscall.ProcAttr{
		Files: append(files, w.Fd()), Env: append(os.Environ(), helperVariable+"="+strconv.Itoa(fd)),
	})
	_ = w.Close()
	if err != nil {
		return nil, fmt.Errorf("start helper: %w", err)
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return nil, fmt.Errorf("find helper: %w", err)
	}
	// Keys reach the helper too: it is in the same process group until the launch is done.
	sigs := make(chan os.Signal, 4)
	signal.Notify(sigs, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT)
	defer signal.Stop(sigs)
	go func() {
		for s := range sigs {
			_ = p.Signal(s)
		}
	}()
	var report launched
	if err := json.NewDecoder(r).Decode(&report); err == nil {
		return &report, p.Release()
	}
	state, err := p.Wait()
	if err != nil {
		return nil, fmt.Errorf("wait for helper: %w", err)
	}
	if code := state.ExitCode(); code > 0 {
		return nil, exitError(code)
	}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return nil, exitError(signalCode(ws.Signal()))
	}
	return nil, exitError(exitBottle)
}

// inheritable returns the open descriptors that a child inherits, each at its own number:
// standard streams, and those that --env-from-fd or a /dev/fd path may name.
func inheritable() []uintptr {
	files := []uintptr{0, 1, 2}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return files
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < 3 {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC != 0 {
			continue
		}
		for len(files) <= fd {
			files = append(files, ^uintptr(0)) // closed in the child
		}
		files[fd] = uintptr(fd)
	}
	return files
}

// runHeld attaches to the session of a bottle that the helper has launched, and removes
// the bottle if the session ends meanwhile.
func (a *app) runHeld(e *bottle.Engine, f runFlags, report *launched) error {
	cfg := session.Config{Command: report.Command, Terminal: a.wantsTerminal(f.tty, f.noTTY)}
	left, err := a.attachHeld(e, report.Name, f.detachKeys, cfg, false, func(ctx context.Context, cfg session.Config) (*session.Client, error) {
		if err := e.AuditSession(report.Name, "exec", cfg); err != nil {
			return nil, err
		}
		return e.Sessions().Run(ctx, report.Name, cfg)
	})
	if left {
		return err
	}
	if hosts, serr := e.Proxies().Summary(context.WithoutCancel(a.ctx), report.Name, time.Time{}); serr == nil {
		a.showSummary(report.Agent, hosts)
	}
	end := a.beginEnd(e, report.Name, f)
	if rerr := e.Remove(context.WithoutCancel(a.ctx), report.Name); rerr != nil {
		a.printError(withHint(fmt.Errorf(textRemoveFailed, shownName(report.Name), rerr), hintRemoveFailed))
		if err == nil {
			err = exitError(exitBottle)
		}
	} else if werr := a.endWork(e, report.Name, end, f); werr != nil && err == nil {
		err = werr
	}
	return err
}

// runAsHelper starts the session of a launched bottle if it begins detached, reports the
// launch, and stays until the session has ended.
func (a *app) runAsHelper(e *bottle.Engine, b *bottle.Bottle, p *plan.Plan, f runFlags) error {
	if f.detach {
		cfg := session.Config{Command: p.Command, Terminal: !f.noTTY}
		if fd, ok := a.terminal(); ok {
			cfg.Width, cfg.Height = terminalSize(fd)
		}
		if err := e.AuditSession(b.Name, "exec", cfg); err != nil {
			return err
		}
		if err := e.Sessions().Start(a.ctx, b.Name, cfg); err != nil {
			return a.commandFailure(err)
		}
	}
	if err := e.Sessions().BeWatcher(b.Name); err != nil {
		return err
	}
	if err := reportLaunch(launched{Name: b.Name, Agent: p.Agent, Command: p.Command}); err != nil {
		return err
	}
	a.refillPool(p, f.trust)
	defer releaseWhenIdle()()
	a.watchDetached(e, b)
	return nil
}

// leave makes this process one of the background: keys and the end of the terminal do not
// reach it.
func leave() error {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT)
	if _, err := syscall.Setsid(); err != nil {
		return fmt.Errorf("leave the terminal: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	for fd := range 3 {
		if err := unix.Dup2(int(null.Fd()), fd); err != nil {
			return err
		}
	}
	return null.Close()
}

// watchDetached watches a bottle until its session has ended and the bottle is settled, or
// it is removed. SIGTERM ends the watch and nothing else.
func (a *app) watchDetached(e *bottle.Engine, b *bottle.Bottle) {
	ctx, cancel := context.WithCancel(a.ctx)
	defer cancel()
	defer e.WatchRules(ctx)()
	go b.WatchSecrets(ctx, func(string, error) {}) // nobody reads a report
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		for ctx.Err() == nil {
			err := b.Settle(ctx)
			if err == nil || errors.Is(err, session.ErrNotRunning) || errors.Is(err, session.ErrNone) {
				return
			}
			select { // containerd does not answer
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}()
	go func() {
		e.Proxies().Watch(ctx, b.Name, func([]*proxy.LimitError, error) {}) // returns when the bottle is removed
		cancel()
	}()
	select {
	case <-settled:
	case <-ctx.Done():
	}
}
