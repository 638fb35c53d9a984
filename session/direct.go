package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/bot-bottle/bottle/internal/hosttask"
	"github.com/bot-bottle/bottle/internal/sessionclient"
	proto "github.com/bot-bottle/bottle/internal/sessionproto"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/runtime"
)

// direct is a session that PID 1 has started. Its task is observed beside it.
type direct struct {
	*sessionclient.Process
	end func(lost bool, code int) (killed bool, limits []*runtime.LimitError) // Beside.End

	// Set by Wait.
	killed bool
	limits []*runtime.LimitError
}

// startDirect asks PID 1 to start a session. The error wraps sessionclient.ErrNotReached if
// the caller may start it in another way.
func startDirect(ctx context.Context, rt *runtime.Client, name string, cfg Config) (*direct, error) {
	exec, err := request(rt, name, cfg)
	if err != nil {
		return nil, err
	}
	conn, beside, err := ask(ctx, rt, name, proto.Request{
		Op: proto.OpRun, Size: proto.Size{Width: cfg.Width, Height: cfg.Height}, Exec: exec,
	})
	if err != nil {
		return nil, fmt.Errorf("start session in %s: %w", name, err)
	}
	return &direct{
		Process: sessionclient.NewProcess(conn, sessionclient.Streams{Stdin: cfg.Stdin, Stdout: cfg.Stdout, Stderr: cfg.Stderr}),
		end:     beside.End,
	}, nil
}

// Begun returns a session that was begun without this package, with the events of its task
// that were counted before.
func (m *Manager) Begun(ctx context.Context, name string, p *sessionclient.Process, before hosttask.Events) *Session {
	return &Session{process: &direct{Process: p, end: m.rt.BesideSince(ctx, name, before).End}}
}

// request describes the process of a session.
func request(rt *runtime.Client, name string, cfg Config) (*proto.Exec, error) {
	exec, err := sessionclient.NewExec(GuestDir(rt.Dir(name)), cfg.Command, cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("read environment: %w: %w", ErrNotRunning, err)
	}
	exec.Terminal, exec.Stdin = cfg.Terminal, cfg.Stdin != nil
	for _, kv := range terminalEnv(cfg) {
		exec.Env = append(exec.Env, []byte(kv))
	}
	for kv := range bytes.SplitSeq(provision.EnvFile(cfg.Env), []byte{0}) {
		if len(kv) > 0 {
			exec.Env = append(exec.Env, kv)
		}
	}
	return exec, nil
}

// Wait waits until the process has ended and its output has been written, and returns the
// exit code, as runtime.Session's does.
func (d *direct) Wait() (int, error) {
	state, werr := d.Close()
	code := 0
	if state != nil {
		code = state.Code
	}
	d.killed, d.limits = d.end(state == nil, code)
	switch {
	case werr != nil:
		return 0, werr
	case d.killed:
		return 128 + int(syscall.SIGKILL), nil
	case state == nil:
		return 0, errors.New("wait for session: the connection with the sandbox was lost")
	}
	return code, nil
}

// Killed and LimitsReached are those of runtime.Session.
func (d *direct) Killed() bool { return d.killed }

// LimitsReached returns the limits that the agent's task reached during the session.
func (d *direct) LimitsReached() []*runtime.LimitError { return d.limits }
