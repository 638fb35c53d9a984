package worktree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"github.com/bot-bottle/bottle/internal/filetree"
)

// Inside runs commands in a bottle with the agent's rights: in a session of a running
// one, or in a sandbox without a network over the files of a stopped one.
type Inside interface {
	// Run runs a command until it ends, or kills it when ctx ends, and returns its exit
	// code. Stdin may be nil. An error of Stdout's Write may end the command.
	Run(ctx context.Context, cmd Command) (code int, err error)
}

// Command is a command in a bottle. Its working directory is not specified.
type Command struct {
	Args           []string
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Await returns what wait does, which waits for the end of a command. When ctx ends it calls stop,
// which ends the command and may wait for that on the channel.
func Await(ctx context.Context, wait func() (int, error), stop func(ended <-chan struct{})) (int, error) {
	var code int
	var err error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		code, err = wait()
	}()
	select {
	case <-ended:
		return code, err
	case <-ctx.Done():
		stop(ended)
		return 0, context.Cause(ctx)
	}
}

// Program is the program in every bottle that lists, packs and unpacks files
// (cmd/bottle/guest). It is mounted read-only.
const Program = "/.bottle/init"

// Limits bound what an agent can make the host store, read and wait for.
type Limits struct {
	Bytes   int64         // of content in one operation
	Files   int64         // that one operation changes or creates
	Listing int64         // of names and metadata, unchanged and ignored files included, in bytes
	Time    time.Duration // of one operation
}

// DefaultLimits are large enough for work of people's.
var DefaultLimits = Limits{Bytes: 10 << 30, Files: 200_000, Listing: 512 << 20, Time: 15 * time.Minute}

var (
	// ErrTooLarge means that what an agent returns exceeds a limit.
	ErrTooLarge = filetree.ErrTooLarge
	// ErrTimeout means that a bottle did not answer in time.
	ErrTimeout = errors.New("the bottle did not answer in time")
)

func (l Limits) context(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, l.Time, fmt.Errorf("%w: %s", ErrTimeout, l.Time))
}

// insideError is a failure of a command in a bottle.
type insideError struct {
	args   []string
	code   int
	stderr string
}

func (e *insideError) Error() string {
	lines := strings.Split(strings.TrimSpace(e.stderr), "\n")
	text := printable(lines[len(lines)-1])
	if text == "" {
		text = fmt.Sprintf("exit code %d", e.code)
	}
	return "in the bottle: " + text
}

// printable replaces what a terminal would interpret in a text of an agent's.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}

// maxText bounds a name or a line of an agent's in a message, in bytes.
const maxText = 300

// stream runs a command in a bottle and passes its output to consume, at most limit
// bytes. It returns when both have ended.
func stream(ctx context.Context, in Inside, cmd Command, limit int64, consume func(io.Reader) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r, w := io.Pipe()
	var stderr bytes.Buffer
	cmd.Stdout = &limited{w: w, left: limit, limit: limit}
	if diagnostics := (io.Writer)(&capped{w: &stderr, left: 16 << 10}); cmd.Stderr == nil {
		cmd.Stderr = diagnostics
	} else {
		cmd.Stderr = io.MultiWriter(diagnostics, cmd.Stderr)
	}
	ended := make(chan error, 1)
	go func() {
		code, err := in.Run(ctx, cmd)
		if err == nil && code != 0 {
			err = &insideError{cmd.Args, code, stderr.String()}
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if lerr := cmd.Stdout.(*limited).err; lerr != nil {
			err = lerr
		}
		_ = w.CloseWithError(err) // nil: EOF
		ended <- err
	}()
	stop := context.AfterFunc(ctx, func() { _ = w.CloseWithError(context.Cause(ctx)) })
	defer stop()
	err := consume(r)
	if err == nil {
		_, err = io.Copy(io.Discard, r) // the end of an archive may be followed by padding
	}
	if err != nil {
		_ = r.CloseWithError(err)
		cancel(err)
	}
	if eerr := <-ended; err == nil {
		err = eerr
	}
	return err
}

// limited fails after a number of bytes.
type limited struct {
	w           io.Writer
	left, limit int64
	err         error
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= int64(len(p)); l.left < 0 {
		l.err = fmt.Errorf("%w: more than %d bytes", ErrTooLarge, l.limit)
		return 0, l.err
	}
	return l.w.Write(p)
}

// files returns the arguments of a file command in a bottle.
func files(args ...string) []string { return append([]string{Program, "files"}, args...) }
