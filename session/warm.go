package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/bot-bottle/bottle/internal/sessionclient"
	proto "github.com/bot-bottle/bottle/internal/sessionproto"
	"github.com/bot-bottle/bottle/runtime"
)

// Ended is the error of a session that has ended before a client has claimed it.
type Ended struct {
	Code   int
	Output string // its last line
}

func (e *Ended) Error() string {
	text := fmt.Sprintf("it has ended with exit code %d", e.Code)
	if e.Output != "" {
		text += ": " + e.Output
	}
	return text
}

// quiet is how long a session that has drawn something must have written nothing to be ready:
// it waits for input. Ready is waited for at most warmTime, because a program may draw nothing.
const (
	quiet    = time.Second
	warmTime = 30 * time.Second
)

// StartWarm starts a session on a terminal ahead of its client, for Claim, and returns when it
// seems to wait for input. If it ends before it is claimed, the sandbox ends; the error is an
// Ended if that has happened already.
func StartWarm(ctx context.Context, rt *runtime.Client, name string, cfg Config) error {
	exec, err := request(rt, name, cfg)
	if err != nil {
		return err
	}
	conn, _, err := ask(ctx, rt, name, proto.Request{
		Op: proto.OpStart, Warm: true, Size: proto.Size{Width: cfg.Width, Height: cfg.Height}, Exec: exec,
	})
	if err != nil {
		return err
	}
	// The same connection then follows the session, so that its end is not missed.
	err = answered(ctx, conn, func() error {
		if err := started(conn, proto.KindStarted); err != nil {
			return err
		}
		return awaitReady(conn)
	})
	_ = conn.Close() // it only reads
	return err
}

// answered calls fn, which reads from a connection. The end of ctx ends it.
func answered(ctx context.Context, conn *os.File, fn func() error) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := fn(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	return nil
}

// started reads the answer to a request up to a frame of a kind.
func started(conn *os.File, last proto.Kind) error {
	for {
		kind, data, err := proto.Read(conn)
		if err != nil {
			return err
		}
		switch kind {
		case last:
			return nil
		case proto.KindError:
			var f proto.Failure
			if err := json.Unmarshal(data, &f); err != nil {
				return err
			}
			return &Failure{Text: proto.Printable(f.Text), Code: f.Code}
		}
	}
}

// awaitReady follows a session until it has drawn something and is quiet.
func awaitReady(conn *os.File) error {
	end := time.Now().Add(warmTime)
	var screen text
	for {
		wait := end
		if screen.drawn {
			if q := time.Now().Add(quiet); q.Before(end) {
				wait = q
			}
		}
		if err := conn.SetReadDeadline(wait); err != nil {
			return err
		}
		kind, data, err := proto.Read(conn)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			return err
		}
		switch kind {
		case proto.KindLog:
			if r, err := parseLog(data); err == nil {
				screen.add(r.Data)
			}
		case proto.KindState:
			var state proto.State
			if err := json.Unmarshal(data, &state); err != nil {
				return err
			}
			return &Ended{Code: state.Code, Output: screen.line()}
		case proto.KindError:
			return nil // it writes more than is kept, so it runs
		}
	}
}

// text is the last output of a session.
type text struct {
	raw   []byte
	drawn bool // something can be seen
}

// maxText bounds it, in bytes.
const maxText = 64 << 10

func (t *text) add(data []byte) {
	t.raw = append(t.raw, data...)
	t.drawn = t.drawn || t.line() != ""
	t.raw = t.raw[max(0, len(t.raw)-maxText):]
}

// line returns the last line that can be seen.
func (t *text) line() (last string) {
	for line := range strings.Lines(ansi.Strip(string(t.raw))) {
		if line = strings.TrimSpace(proto.Printable(line)); line != "" {
			last = line
		}
	}
	return last
}

// Warm is a session that a client has claimed. The client must call Begin or Close.
type Warm struct {
	conn   *os.File
	beside *runtime.Beside
}

// Claim claims the session of StartWarm. From then on it ends with the client. The error wraps
// ErrNotRunning if it has ended.
func Claim(ctx context.Context, rt *runtime.Client, name string) (*Warm, error) {
	conn, beside, err := ask(ctx, rt, name, proto.Request{Op: proto.OpClaim})
	if err == nil {
		if err = answered(ctx, conn, func() error { return started(conn, proto.KindStarted) }); err == nil {
			return &Warm{conn, beside}, nil
		}
		_ = conn.Close() // after another error
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("claim the session of %s: %w: %w", name, ErrNotRunning, err)
}

// Begin shows the session on the client's terminal. Its command and variables are those with
// which it was started.
func (w *Warm) Begin(cfg Config) (*Session, error) {
	size := proto.Size{Width: cfg.Width, Height: cfg.Height}
	if cfg.Stdout != nil {
		// The screen is drawn over what the terminal shows, which is kept above it.
		_, _ = io.WriteString(cfg.Stdout, strings.Repeat("\r\n", int(size.Height))) // the output reports an error
	}
	if _, err := w.conn.Write(proto.JSON(proto.KindResize, size)); err != nil {
		return nil, errors.Join(fmt.Errorf("begin session: %w", err), w.conn.Close())
	}
	streams := sessionclient.Streams{Stdin: cfg.Stdin, Stdout: cfg.Stdout, Stderr: cfg.Stderr}
	return &Session{process: &direct{Process: sessionclient.NewProcess(w.conn, streams), end: w.beside.End}}, nil
}

// Close ends a session that has not begun.
func (w *Warm) Close() {
	if w != nil {
		_ = w.conn.Close() // PID 1 notices
	}
}

// TerminalEnv returns the variables of this process that a session on a terminal gets.
func TerminalEnv() []string { return terminalEnv(Config{Terminal: true}) }
