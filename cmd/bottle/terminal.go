package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/bot-bottle/bottle"
)

// terminal returns the descriptor of the terminal behind standard input, if both
// it and standard output are one.
func (a *app) terminal() (fd int, ok bool) {
	in, iok := a.stdin.(*os.File)
	out, ook := a.stdout.(*os.File)
	if !iok || !ook || !term.IsTerminal(int(out.Fd())) {
		return 0, false
	}
	return int(in.Fd()), term.IsTerminal(int(in.Fd()))
}

func (a *app) wantsTerminal(tty, noTTY bool) bool {
	_, ok := a.terminal()
	return (ok || tty) && !noTTY
}

// startTimeout bounds the start of a session.
const startTimeout = time.Minute

// talk joins the caller to a session until it ends, and ends with its exit code.
// On a terminal, aside may tell something beside what the session writes, until
// its context ends.
func (a *app) talk(start func(context.Context, bottle.SessionConfig) (*bottle.Session, error), cfg bottle.SessionConfig, aside func(context.Context, *screen)) error {
	// From here on signals are the session's, not the program's: also while it
	// is being started, as it may have spoken already.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), startTimeout)
	defer cancel()
	sigs := make(chan os.Signal, 16)
	signal.Notify(sigs, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	defer signal.Stop(sigs)

	cfg.Stdin, cfg.Stdout, cfg.Stderr = a.stdin, a.stdout, a.stderr
	fd, raw := a.terminal()
	raw = raw && cfg.Terminal
	if raw {
		cfg.Width, cfg.Height = terminalSize(fd)
		// Nothing is left to this terminal: what the agent writes has been
		// through the one inside, and a full screen does not bear it twice.
		before, err := term.MakeRaw(fd)
		if err != nil {
			return err
		}
		defer func() { _ = term.Restore(fd, before) }()
		var stop func()
		cfg.Stdout, stop = a.withAside(aside)
		defer stop()
	}
	s, err := start(ctx, cfg)
	if err != nil {
		return err
	}
	resize := func(context.Context) {}
	if raw {
		resize = func(ctx context.Context) {
			width, height := terminalSize(fd)
			_ = s.Resize(ctx, width, height) // the next change tells again
		}
	}
	code, err := a.follow(s, resize, sigs)
	if err != nil {
		return err
	}
	if code != 0 {
		return exitError(code)
	}
	return nil
}

// withAside is the terminal for a session, and for what is told beside it until
// stop.
func (a *app) withAside(aside func(context.Context, *screen)) (out io.Writer, stop func()) {
	if !hasTitle(os.Getenv("TERM")) {
		return a.stdout, func() {}
	}
	s := newScreen(a.stdout)
	ctx, cancel := context.WithCancel(context.WithoutCancel(a.ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		aside(ctx, s)
	}()
	return s, func() {
		cancel()
		<-done
		s.close()
	}
}

// hangupGrace is how long a session may take to end by itself after bottle was
// told to end; insistence is how many signals to end do not wait for that.
const (
	hangupGrace = 10 * time.Second
	insistence  = 3
)

// follow passes signals and sizes on until the session has ended. A caller who
// has gone, or wants bottle gone, need not wait for an agent that does not
// listen: after the grace the session is left to the teardown.
func (a *app) follow(s *bottle.Session, resize func(context.Context), sigs <-chan os.Signal) (int, error) {
	type result struct {
		code int
		err  error
	}
	done := make(chan result, 1)
	go func() {
		code, err := s.Wait()
		done <- result{code, err}
	}()
	ctx := context.WithoutCancel(a.ctx)
	var giveUp <-chan time.Time
	var last syscall.Signal
	asked := 0
	for {
		select {
		case r := <-done:
			return r.code, r.err
		case <-giveUp:
			return signalCode(last), nil
		case sig := <-sigs:
			last = sig.(syscall.Signal)
			if last == syscall.SIGWINCH {
				resize(ctx)
				continue
			}
			switch last {
			case syscall.SIGTERM, syscall.SIGHUP:
				giveUp = time.After(hangupGrace)
				asked++
			case syscall.SIGINT, syscall.SIGQUIT:
				asked++
			}
			if asked >= insistence {
				return signalCode(last), nil
			}
			// A process that has ended meanwhile takes no signal.
			_ = s.Signal(ctx, last)
		}
	}
}

// terminalSize is in cells; 0 and 0 where the terminal does not tell.
func terminalSize(fd int) (width, height uint16) {
	w, h, err := term.GetSize(fd)
	if err != nil {
		return 0, 0
	}
	return uint16(w), uint16(h)
}

// confirm asks a yes-or-no question; anything but yes is no.
func (a *app) confirm(question string) error {
	a.prompt(question + " [y/N] ")
	answer, err := a.readLine()
	if err != nil {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	a.note(textNothingDone)
	return exitError(1)
}

// readLine reads one line and nothing behind it: what follows may be meant for
// the agent.
func (a *app) readLine() (string, error) {
	return a.unlessEnded(func() (string, error) { return readUnbuffered(a.stdin) })
}

// unlessEnded gives a read up when the program is told to end.
func (a *app) unlessEnded(read func() (string, error)) (string, error) {
	type result struct {
		line string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		line, err := read()
		done <- result{line, err}
	}()
	select {
	case r := <-done:
		return r.line, r.err
	case <-a.ctx.Done():
		return "", exitError(signalCode(syscall.SIGINT))
	}
}

func readUnbuffered(r io.Reader) (string, error) {
	var line []byte
	one := make([]byte, 1)
	for len(line) < bufio.MaxScanTokenSize {
		n, err := r.Read(one)
		if n == 1 && one[0] == '\n' {
			return string(line), nil
		}
		line = append(line, one[:n]...)
		if errors.Is(err, io.EOF) {
			return string(line), nil
		}
		if err != nil {
			return "", err
		}
	}
	return string(line), nil
}

// maxLine is where a terminal cuts a line, in bytes without its end (termios(3),
// canonical mode): the kernel drops the rest without a word.
const maxLine = 4095

// readSecret asks without echo.
func (a *app) readSecret(question string) (string, error) {
	fd, ok := a.terminal()
	if !ok {
		return "", usage(textNoTerminal, question)
	}
	before, err := term.GetState(fd)
	if err != nil {
		return "", err
	}
	// Given up, the read would leave the terminal without echo.
	defer func() { _ = term.Restore(fd, before); a.prompt("\n") }()
	// Before the question, so that a quick answer does not show either.
	if err := echoOff(fd); err != nil {
		return "", err
	}
	a.prompt(visible(question) + ": ")
	return a.unlessEnded(func() (string, error) {
		line, err := term.ReadPassword(fd)
		if len(line) >= maxLine {
			return "", usage(textCut, question)
		}
		return string(line), err
	})
}

func echoOff(fd int) error {
	settings, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("read the terminal's settings: %w", err)
	}
	settings.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, settings); err != nil {
		return fmt.Errorf("turn the terminal's echo off: %w", err)
	}
	return nil
}
