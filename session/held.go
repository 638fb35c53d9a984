package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/bot-bottle/bottle/internal/atomicfile"
	"github.com/bot-bottle/bottle/internal/sessionclient"
	proto "github.com/bot-bottle/bottle/internal/sessionproto"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/runtime"
)

// State describes a held session.
type State struct {
	proto.State
	// Killed is set if the sandbox was killed during the session. Its output is lost then.
	Killed bool `json:"killed,omitempty"`
	// Limits are those that the sandbox had reached when the session had ended.
	Limits []*runtime.LimitError `json:"limits,omitempty"`
}

// Start starts a held session without a client and returns when it runs. The error is a
// Failure if the command cannot be run.
func (m *Manager) Start(ctx context.Context, name string, cfg Config) error {
	c, err := m.run(ctx, name, cfg, false)
	if err != nil {
		return err
	}
	_, err = c.Wait()
	return err
}

// Run starts a held session and joins it.
func (m *Manager) Run(ctx context.Context, name string, cfg Config) (*Client, error) {
	return m.run(ctx, name, cfg, true)
}

func (m *Manager) run(ctx context.Context, name string, cfg Config, attach bool) (*Client, error) {
	if len(cfg.Command) == 0 {
		return nil, errors.New("missing command")
	}
	exec, err := request(m.rt, name, cfg)
	if err != nil {
		return nil, err
	}
	if err := m.writeFile(name, heldFile, []byte("{}")); err != nil {
		return nil, fmt.Errorf("record session: %w", err)
	}
	req := proto.Request{Op: proto.OpStart, Size: proto.Size{Width: cfg.Width, Height: cfg.Height}, Attach: attach, Exec: exec}
	return m.dial(ctx, name, req, func() []string {
		args := []string{provision.GuestInit, "session",
			"--tty", fmt.Sprint(cfg.Terminal), "--stdin", fmt.Sprint(cfg.Stdin != nil), "--attach", fmt.Sprint(attach)}
		// What follows the program and its command are the same options.
		return append(args, guestArgs(exec.EnvFiles, sessionclient.WorkDir(m.guestDir(name)), cfg)[2:]...)
	}, cfg)
}

// Attach joins a held session. The error wraps ErrNone if there is none.
func (m *Manager) Attach(ctx context.Context, name string, cfg Config) (*Client, error) {
	return m.dial(ctx, name, proto.Request{Op: proto.OpAttach, Size: proto.Size{Width: cfg.Width, Height: cfg.Height}}, nil, cfg)
}

// State returns the state of the held session, or its last one if the bottle was stopped.
func (m *Manager) State(ctx context.Context, name string) (State, error) {
	return m.finalState(ctx, name, proto.Request{Op: proto.OpState})
}

// WaitEnd waits for the end of the held session and returns its final state.
func (m *Manager) WaitEnd(ctx context.Context, name string) (State, error) {
	return m.finalState(ctx, name, proto.Request{Op: proto.OpWait})
}

// WaitFirst is WaitEnd for a session that may not have been started yet.
func (m *Manager) WaitFirst(ctx context.Context, name string) (State, error) {
	return m.finalState(ctx, name, proto.Request{Op: proto.OpWait, Follow: true})
}

func (m *Manager) finalState(ctx context.Context, name string, req proto.Request) (State, error) {
	if state, err := m.Recorded(name); err == nil {
		return state, nil
	}
	if err := m.rt.CheckSuspended(name); err != nil {
		return State{}, err
	}
	held, _ := os.Stat(m.file(name, heldFile))
	c, err := m.dial(ctx, name, req, nil, Config{})
	if err != nil {
		return m.lost(ctx, name, held, err, nil)
	}
	stop := context.AfterFunc(ctx, c.Detach)
	defer stop()
	_, err = c.Wait()
	switch {
	case ctx.Err() != nil && c.state == nil:
		return State{}, ctx.Err()
	case c.state == nil:
		if c.failure != nil { // no session was started
			err = none(name)
		}
		return m.lost(ctx, name, held, err, c)
	case c.state.Started.IsZero():
		return State{}, none(name)
	}
	return m.ended(ctx, name, State{State: *c.state}), nil
}

// Resumed records that a held session continues in another sandbox: whoever was waiting for
// it in the old one must not take the end of that for the end of the session.
func (m *Manager) Resumed(name string) error { return m.writeFile(name, heldFile, []byte("{}")) }

// Held reports whether a held session was started in a bottle.
func (m *Manager) Held(name string) bool {
	_, err := os.Lstat(m.file(name, heldFile))
	return err == nil
}

// ended adds the limits that a sandbox has reached to the state of a session that has ended.
func (m *Manager) ended(ctx context.Context, name string, s State) State {
	if s.Running() {
		return s
	}
	limits, err := m.rt.LimitsReached(ctx, name)
	if err != nil {
		m.log.Warn("find the limits that a sandbox has reached", "bottle", name, "error", err)
	}
	s.Limits = limits
	return s
}

// lost returns the state of a session that PID 1 does not report: it was recorded
// meanwhile, or the sandbox was killed. A session of a bottle that is or was suspended since
// held was its file continues.
func (m *Manager) lost(ctx context.Context, name string, held fs.FileInfo, err error, c *Client) (State, error) {
	if state, rerr := m.Recorded(name); rerr == nil { // stopped meanwhile
		return state, nil
	}
	killed := c != nil && c.killed
	if !killed && !errors.Is(err, ErrNotRunning) {
		return State{}, err
	}
	if err := m.rt.CheckSuspended(name); err != nil {
		return State{}, err
	}
	file, serr := os.Stat(m.file(name, heldFile))
	if serr != nil {
		return State{}, none(name)
	}
	if held != nil && !os.SameFile(held, file) {
		return State{}, fmt.Errorf("%s: %w meanwhile", name, runtime.ErrSuspended)
	}
	now := time.Now()
	state := m.ended(ctx, name, State{Killed: true, State: proto.State{Started: now, Ended: now, Code: 128 + int(syscall.SIGKILL)}})
	return state, m.writeState(name, state)
}

// killWait bounds the wait for the end of a session after SIGKILL, and for an answer of a
// sandbox that may not give one.
const killWait = 5 * time.Second

// End ends the held session, if there is one: its process gets SIGTERM and, after grace,
// SIGKILL. Its final state and its output are stored. killed reports whether grace was too
// short.
func (m *Manager) End(ctx context.Context, name string, grace time.Duration) (killed bool, err error) {
	if _, err := os.Stat(m.file(name, heldFile)); err != nil {
		return false, nil // there is none
	}
	query, cancel := context.WithTimeout(ctx, killWait)
	state, err := m.State(query, name)
	cancel()
	if err != nil || state.Killed { // it does not answer, and is killed with the sandbox
		return false, ctx.Err()
	}
	if state.Running() {
		if killed, err = m.kill(ctx, name, grace); err != nil {
			return killed, err
		}
	}
	query, cancel = context.WithTimeout(ctx, killWait)
	defer cancel()
	if err := m.Record(query, name); err != nil {
		m.log.Warn("store the session's output", "bottle", name, "error", err)
	}
	return killed, ctx.Err()
}

func (m *Manager) kill(ctx context.Context, name string, grace time.Duration) (killed bool, err error) {
	for _, step := range []struct {
		sig   syscall.Signal
		limit time.Duration
	}{{syscall.SIGTERM, grace}, {syscall.SIGKILL, killWait}} {
		killed = step.sig == syscall.SIGKILL
		if step.limit <= 0 {
			continue
		}
		wait, cancel := context.WithTimeout(ctx, step.limit)
		_, err := m.finalState(wait, name, proto.Request{Op: proto.OpSignal, Signal: int(step.sig)})
		if err == nil {
			_, err = m.WaitEnd(wait, name)
		}
		cancel()
		if err == nil || ctx.Err() != nil {
			return killed, ctx.Err()
		}
	}
	return killed, nil
}

// Files of a held session in the bottle's directory on tmpfs: output may contain secrets
// and must not be written to disk.
const (
	heldFile   = "session-held"   // exists if a session was started
	stateFile  = "session-state"  // the final state
	outputFile = "session-output" // log frames
)

func (m *Manager) file(name, file string) string { return m.rt.Dir(name) + "/" + file }

func (m *Manager) writeFile(name, file string, data []byte) error {
	return atomicfile.Write(m.file(name, file), data, 0o600)
}

func (m *Manager) writeState(name string, state State) error {
	data, err := json.Marshal(state)
	if err == nil {
		err = m.writeFile(name, stateFile, data)
	}
	if errors.Is(err, fs.ErrNotExist) { // the bottle was removed
		return nil
	}
	return err
}

// Recorded returns the final state of a held session whose sandbox was stopped.
func (m *Manager) Recorded(name string) (state State, err error) {
	data, err := os.ReadFile(m.file(name, stateFile))
	if err == nil {
		err = json.Unmarshal(data, &state)
	}
	return state, err
}

// Summary describes a final state in a few words.
func (s State) Summary() string {
	text := []string{fmt.Sprintf("exit code %d", s.Code)}
	if s.Killed {
		text = []string{"killed"}
	}
	for _, l := range s.Limits {
		text = append(text, "limit of "+string(l.Limit)+" reached")
	}
	return strings.Join(text, ", ")
}
