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

	"github.com/bot-bottle/bottle/cmd/bottle/fastexec"
	"github.com/bot-bottle/bottle/internal/termmodes"
	"github.com/bot-bottle/bottle/proxy"
	"github.com/bot-bottle/bottle/session"
)

// terminal returns standard input's descriptor if standard input and standard
// output are terminals.
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

// attach connects the caller to a session until it ends and returns its exit code
// as an exitError. On a terminal, notices runs until its context ends and may show
// text in the terminal's title.
func (a *app) attach(start func(context.Context, session.Config) (process, error), cfg session.Config, notices func(context.Context, *screen)) error {
	// From here on, signals go to the session and do not end the program. This
	// includes the start, during which the session may already write output.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.ctx), startTimeout)
	defer cancel()
	sigs := make(chan os.Signal, 16)
	if begun := fastexec.Begun(); begun != nil {
		sigs = begun.Signals // with what it has received
	}
	signal.Notify(sigs, fastexec.Signals...)
	defer signal.Stop(sigs)

	var ended process
	defer func() { a.reportEnd(ended) }() // when the terminal is the user's again

	cfg.Stdin, cfg.Stdout, cfg.Stderr = a.stdin, a.stdout, a.stderr
	fd, interactive := a.terminal()
	raw := interactive && cfg.Terminal
	if raw {
		cfg.Width, cfg.Height = terminalSize(fd)
		// Raw: the terminal inside has already processed the agent's output, and
		// processing it again would garble a full-screen program.
		before, err := term.MakeRaw(fd)
		if err != nil {
			return err
		}
		defer func() { _ = term.Restore(fd, before) }()
		var stop func()
		cfg.Stdout, stop = a.withNotices(notices)
		defer stop()
		// The session may end in the middle of its drawing, or be left.
		modes := termmodes.New()
		cfg.Stdout = &modeWriter{cfg.Stdout, modes}
		defer func() { _, _ = io.WriteString(a.stdout, modes.Restore()) }()
	}
	if interactive {
		in, err := newInput(a.stdin.(*os.File))
		if err != nil {
			return err
		}
		cfg.Stdin = in
		defer func() { _ = in.stop() }() // before the terminal's mode is restored
	}
	s, err := start(ctx, cfg)
	if err != nil {
		return err
	}
	resize := func(context.Context) {}
	if raw {
		resize = func(ctx context.Context) {
			width, height := terminalSize(fd)
			_ = s.Resize(ctx, width, height) // the next change sends the size again
		}
	}
	code, done, err := a.follow(s, resize, sigs)
	if err != nil {
		return err
	}
	if done {
		ended = s
	}
	if code != 0 {
		return exitError(code)
	}
	return nil
}

// process is a session that the caller is connected to.
type process interface {
	Wait() (int, error)
	Signal(context.Context, syscall.Signal) error
	Resize(ctx context.Context, width, height uint16) error
	Killed() bool
	LimitsReached() []*proxy.LimitError
}

// modeWriter follows the output to know which modes of the terminal it has changed.
type modeWriter struct {
	io.Writer
	modes *termmodes.Tracker
}

func (w *modeWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	_, _ = w.modes.Write(p[:n])
	return n, err
}

// withNotices returns the output for a session and runs notices until stop is
// called.
func (a *app) withNotices(notices func(context.Context, *screen)) (out io.Writer, stop func()) {
	if !hasTitle(os.Getenv("TERM")) {
		return a.stdout, func() {}
	}
	s := newScreen(a.stdout)
	ctx, cancel := context.WithCancel(context.WithoutCancel(a.ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		notices(ctx, s)
	}()
	return s, func() {
		cancel()
		<-done
		s.close()
	}
}

// hangupGrace is how long a session may take to end after SIGTERM or SIGHUP;
// forceSignals is how many signals end it immediately.
const (
	hangupGrace  = 10 * time.Second
	forceSignals = 3
)

// follow forwards signals and terminal sizes until the session has ended. An agent
// that ignores SIGTERM or SIGHUP cannot delay the end: after the grace period the
// removal of the bottle ends the session.
func (a *app) follow(s process, resize func(context.Context), sigs <-chan os.Signal) (code int, ended bool, err error) {
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
	received := 0
	for {
		select {
		case r := <-done:
			return r.code, r.err == nil, r.err
		case <-giveUp:
			return signalCode(last), false, nil
		case sig := <-sigs:
			last = sig.(syscall.Signal)
			if last == syscall.SIGWINCH {
				resize(ctx)
				continue
			}
			switch last {
			case syscall.SIGTERM, syscall.SIGHUP:
				giveUp = time.After(hangupGrace)
				received++
			case syscall.SIGINT, syscall.SIGQUIT:
				received++
			}
			if received >= forceSignals {
				return signalCode(last), false, nil
			}
			// A process that has just ended accepts no signal.
			_ = s.Signal(ctx, last)
		}
	}
}

// terminalSize is in cells; 0 and 0 if the terminal does not report it.
func terminalSize(fd int) (width, height uint16) {
	w, h, err := term.GetSize(fd)
	if err != nil {
		return 0, 0
	}
	return uint16(w), uint16(h)
}

// confirm asks a yes-or-no question. Any answer but yes is a no.
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

// readLine reads one line and not a byte more: the rest may be the agent's input.
func (a *app) readLine() (string, error) {
	return a.interruptibly(0, func() (string, error) { return readUnbuffered(a.stdin) })
}

// interruptibly abandons a read when the program is interrupted, or after a time if
// that is not 0: the error is then context.DeadlineExceeded.
func (a *app) interruptibly(limit time.Duration, read func() (string, error)) (string, error) {
	type result struct {
		line string
		err  error
	}
	done := make(chan result, 1)
	go func() {
		line, err := read()
		done <- result{line, err}
	}()
	var late <-chan time.Time
	if limit > 0 {
		late = time.After(limit)
	}
	select {
	case <-late:
		return "", context.DeadlineExceeded
	case r := <-done:
		return r.line, r.err
	case <-a.ctx.Done():
		return "", exitError(interruptedCode(a.ctx))
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

// maxLine is the length at which the kernel silently truncates a line of terminal
// input, in bytes without the line's end (termios(3), canonical mode).
const maxLine = 4095

// readSecret asks a question and does not echo the answer.
func (a *app) readSecret(question string) (string, error) {
	fd, ok := a.terminal()
	if !ok {
		return "", withHint(fmt.Errorf(textNoTerminal, question), hintNoTerminal)
	}
	before, err := term.GetState(fd)
	if err != nil {
		return "", err
	}
	// An abandoned read would leave the echo off.
	defer func() { _ = term.Restore(fd, before); a.prompt("\n") }()
	// Before the question, so that an early answer is not echoed.
	if err := echoOff(fd); err != nil {
		return "", err
	}
	a.prompt(visible(question) + ": ")
	return a.interruptibly(0, func() (string, error) {
		line, err := term.ReadPassword(fd)
		if len(line) >= maxLine {
			return "", withHint(fmt.Errorf(textCut, question, maxLine), hintCut)
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
