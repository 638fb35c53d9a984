package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/term"
)

// busyAfter is how long a command works before a line on the terminal says at what, and the time
// between two updates of the line.
const busyAfter = time.Second

// busyLines are what the command is doing. The one that began last is on the terminal's last line,
// which disappears before anything else is written. The zero value shows nothing.
type busyLines struct {
	terminal *os.File

	mu     sync.Mutex
	active []*busyLine
	drawn  bool
}

type busyLine struct {
	text  string
	since time.Time
}

// eraseLine moves to the first column and erases the line, ECMA-48.
const eraseLine = "\r\x1b[K"

// terminalLines returns the lines of standard error, if that is a terminal.
func terminalLines(stderr io.Writer) *busyLines {
	f, ok := stderr.(*os.File)
	if !ok || os.Getenv("TERM") == "dumb" || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	return &busyLines{terminal: f}
}

// busy shows on a terminal what the command is doing, if it takes over a second, until the returned
// function is called. Nothing is shown with --quiet and --json, and elsewhere than on a terminal.
func (a *app) busy(format string, args ...any) (done func()) {
	if a.lines == nil || a.quiet || a.machine {
		return func() {}
	}
	return a.lines.begin(visible(fmt.Sprintf(format, args...)))
}

// while calls fn and meanwhile shows what the command is doing.
func (a *app) while(text string, fn func() error) error {
	defer a.busy("%s", text)()
	return fn()
}

func (b *busyLines) begin(text string) (done func()) {
	line := &busyLine{text, time.Now()}
	b.mu.Lock()
	b.active = append(b.active, line)
	b.mu.Unlock()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		t := time.NewTicker(busyAfter)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				b.draw(line)
			case <-stop:
				return
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(stop)
		<-stopped
		b.mu.Lock()
		defer b.mu.Unlock()
		b.active = slices.DeleteFunc(b.active, func(l *busyLine) bool { return l == line })
		b.erase()
	})
}

// draw draws a line, unless another was begun after it.
func (b *busyLines) draw(line *busyLine) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.active); n == 0 || b.active[n-1] != line {
		return
	}
	width, _, err := term.GetSize(int(b.terminal.Fd()))
	if err != nil || width <= 0 {
		width = defaultWidth
	}
	_, _ = fmt.Fprintf(b.terminal, "%s%s", eraseLine, fit(fmt.Sprintf("%s: %d s", line.text, int(time.Since(line.since).Seconds())), width))
	b.drawn = true
}

// erase erases the line, if there is one. The caller has the lock.
func (b *busyLines) erase() {
	if b.drawn {
		_, _ = fmt.Fprint(b.terminal, eraseLine)
		b.drawn = false
	}
}

// replace replaces the text of what the command is doing.
func (b *busyLines) replace(text string) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.active); n > 0 {
		b.active[n-1].text = visible(text)
	}
}

// write calls a function that writes to standard error, without a line on it.
func (b *busyLines) write(fn func()) {
	if b != nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.erase()
	}
	fn()
}
