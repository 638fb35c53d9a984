package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/bot-bottle/bottle/egress"
	"github.com/bot-bottle/bottle/internal/segment"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/fsnotify/fsnotify"
)

// Delays before a repeatedly exiting proxy is restarted.
const (
	minRestartDelay = time.Second
	maxRestartDelay = 30 * time.Second
	// restartReset is how long a proxy must have run for the delay to be reset.
	restartReset = time.Minute
)

// LimitError is a limit that a task has reached.
type LimitError = runtime.LimitError

// Watch restarts a bottle's proxy whenever it exits: immediately the first time, with
// a growing delay if it keeps exiting. The proxy reads the same policy files again
// before it listens, and the packet filter of its namespace stays in place: without a
// proxy the agent reaches nothing. Watch returns when ctx ends or the bottle is
// suspended, removed or being removed. restarted is called after each attempt, with the limits that
// the proxy had reached when it exited and the error if it could not be started.
//
// Every process attached to a bottle may watch its proxy; a lock lets one of them
// act. Without a watcher an exited proxy stays down, and the agent has no egress,
// until the next session starts.
func (m *Manager) Watch(ctx context.Context, name string, restarted func([]*LimitError, error)) {
	// A later bottle of the name is another watcher's.
	bottle, err := os.Stat(m.bottleDir(name))
	if err != nil {
		return
	}
	state, err := m.Load(name)
	if err != nil {
		return // it is being removed
	}
	var all sync.WaitGroup
	defer all.Wait()
	if state.Front() {
		var one sync.Mutex
		each := restarted
		restarted = func(reached []*LimitError, err error) {
			one.Lock()
			defer one.Unlock()
			each(reached, err)
		}
		all.Go(func() { m.watch(ctx, name, m.front(name), bottle, restarted) })
	}
	m.watch(ctx, name, m.proxy(name), bottle, restarted)
}

// watch is Watch for one process of the bottle that has the given directory.
func (m *Manager) watch(ctx context.Context, name string, p process, bottle fs.FileInfo, restarted func([]*LimitError, error)) {
	delay := time.Duration(0)
	for {
		start := time.Now()
		if err := m.rt.WaitTask(ctx, p.id); err != nil {
			m.logger.Info("wait for proxy", "bottle", name, "error", err)
			delay = max(delay, minRestartDelay) // containerd does not answer
		}
		if time.Since(start) > restartReset {
			delay = 0
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(delay):
		}
		started, reached, err := m.restart(ctx, name, p, bottle, false)
		if errors.Is(err, runtime.ErrNotRunning) {
			return
		}
		if started || err != nil && ctx.Err() == nil {
			restarted(reached, err)
		}
		if ctx.Err() != nil {
			return
		}
		delay = min(max(2*delay, minRestartDelay), maxRestartDelay)
	}
}

// Restart starts the proxy unless it is running, and reports whether it did, and which
// limits the old one had reached. It logs these. The error wraps runtime.ErrNotRunning if
// the bottle is suspended, removed or being removed.
func (m *Manager) Restart(ctx context.Context, name string) (started bool, reached []*LimitError, err error) {
	return m.restartAll(ctx, name, false)
}

// Suspend calls mark, which marks the bottle as suspended, and ends its proxy, which nothing
// starts again until Resume.
func (m *Manager) Suspend(ctx context.Context, name string, mark func() error) error {
	unlock, err := m.lock(ctx, name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := mark(); err != nil {
		return err
	}
	var errs []error
	for _, p := range []process{m.front(name), m.proxy(name)} {
		_, err := m.rt.Stop(ctx, p.id, 0)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Resume starts the proxy of a suspended bottle.
func (m *Manager) Resume(ctx context.Context, name string) error {
	_, _, err := m.restartAll(ctx, name, true)
	return err
}

// restartAll is Restart, also of a suspended bottle.
func (m *Manager) restartAll(ctx context.Context, name string, suspended bool) (started bool, reached []*LimitError, err error) {
	bottle, err := os.Stat(m.bottleDir(name))
	if errors.Is(err, fs.ErrNotExist) {
		err = runtime.ErrNotRunning
	}
	if err != nil {
		return false, nil, fmt.Errorf("restart proxy of %s: %w", name, err)
	}
	started, reached, err = m.restart(ctx, name, m.proxy(name), bottle, suspended)
	state, lerr := m.Load(name)
	if err != nil || lerr != nil || !state.Front() {
		return started, reached, errors.Join(err, lerr)
	}
	front, more, err := m.restart(ctx, name, m.front(name), bottle, suspended)
	return started || front, append(reached, more...), err
}

// restart is restartAll for one process of the bottle that has the given directory.
func (m *Manager) restart(ctx context.Context, name string, p process, bottle fs.FileInfo, suspended bool) (started bool, reached []*LimitError, err error) {
	unlock, err := m.lock(ctx, name)
	ctx = context.WithoutCancel(ctx) // what is begun is ended: a session that ends must not leave half a proxy
	if err != nil {
		return false, nil, err
	}
	defer unlock()
	// A bottle is removed only by a process that has had this lock.
	if now, err := os.Stat(m.bottleDir(name)); err != nil || !os.SameFile(now, bottle) || m.Removing(name) {
		return false, nil, fmt.Errorf("restart proxy of %s: %w", name, runtime.ErrNotRunning)
	}
	if !suspended && m.rt.Suspended(name) {
		return false, nil, fmt.Errorf("restart proxy of %s: %w", name, runtime.ErrNotRunning)
	}
	task, reached, err := m.rt.RecreateProxy(ctx, p.id, m.Program(name), p.log)
	for _, l := range reached {
		if lerr := egress.LogProxyEnd(p.log, limitReason(l)); lerr != nil {
			m.logger.Warn("cannot log the end of the proxy", "bottle", name, "error", lerr)
		}
	}
	if task == nil {
		return false, reached, err
	}
	if err := m.start(ctx, name, p, task); err != nil {
		return false, reached, fmt.Errorf("restart proxy of %s: %w", name, err)
	}
	m.logger.Info("proxy restarted", "container", p.id)
	return true, reached, nil
}

// limitReason describes a limit that a proxy has reached in its log.
func limitReason(l *LimitError) string {
	if l.Limit == runtime.LimitMemory {
		return fmt.Sprintf("limit of %d MiB of memory reached (proxy.memory in the manifest raises it)", l.Value>>20)
	}
	return l.Error()
}

// Start starts the proxy's task and returns when its health endpoint has answered.
func (m *Manager) Start(ctx context.Context, name string, task *runtime.Task) error {
	return m.start(ctx, name, m.proxy(name), task)
}

// StartFront starts the task in front of the proxy, and returns when the proxy's health
// endpoint has answered through it.
func (m *Manager) StartFront(ctx context.Context, name string, task *runtime.Task) error {
	return m.start(ctx, name, m.front(name), task)
}

func (m *Manager) start(ctx context.Context, name string, p process, task *runtime.Task) error {
	state, err := m.Load(name)
	if err != nil {
		return err
	}
	listen := segment.ProxyAddrPort()
	if p == m.proxy(name) {
		listen = state.listen()
	}
	watch, err := watchFile(p.log)
	if err != nil {
		return err
	}
	defer func() { _ = watch.Close() }() // only reads
	if err := task.Start(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, m.StartTimeout)
	defer cancel()
	client := m.client(name)
	defer client.CloseIdleConnections()
	// A proxy logs that it has started. Checking its health on each write to the log
	// avoids polling delays. The ticker covers a proxy that logs before it listens.
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-watch.Events:
		case <-tick.C:
		case <-task.Exited():
			return fmt.Errorf("proxy exited immediately; %s", logTail(ctx, p.log))
		case <-ctx.Done():
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return ctx.Err()
			}
			return fmt.Errorf("proxy health endpoint did not answer within %s; %s", m.StartTimeout, logTail(ctx, p.log))
		}
		if isHealthy(ctx, client, listen) {
			return nil
		}
	}
}

// watchFile watches the directory of a file that may not exist yet.
func watchFile(file string) (*fsnotify.Watcher, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch proxy log: %w", err)
	}
	if err := w.Add(filepath.Dir(file)); err != nil {
		return nil, errors.Join(fmt.Errorf("watch proxy log: %w", err), w.Close())
	}
	return w, nil
}

// client returns a client that dials in the proxy's own namespace, the only place where
// the proxy listens.
func (m *Manager) client(name string) *http.Client {
	return &http.Client{
		Timeout: 2 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return netns.DialIn(ctx, netns.ProxyPath(m.bottleDir(name)), network, addr)
		}},
	}
}

// isHealthy reports whether the proxy's health endpoint answers with status 200.
func isHealthy(ctx context.Context, client *http.Client, listen netip.AddrPort) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+listen.String()+"/health", nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16))
	return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
}

// Limits of the log tail in an error, and of the wait for it.
const (
	tailLines      = 5
	tailLineLength = 400 // in bytes
	tailWait       = 500 * time.Millisecond
)

// logTail describes the end of a proxy's log in an error's text. The proxy's last
// lines may not have reached the file yet.
func logTail(ctx context.Context, log string) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tailWait)
	defer cancel()
	data := settledLog(ctx, log)
	if len(bytes.TrimSpace(data)) == 0 {
		return "its log is empty"
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	lines = lines[max(0, len(lines)-tailLines):]
	for i, line := range lines {
		lines[i] = strings.ToValidUTF8(line[:min(len(line), tailLineLength)], "")
	}
	return "its log ends with: " + strings.Join(lines, " | ")
}

// settledLog reads the log until it has stopped growing or ctx ends.
func settledLog(ctx context.Context, log string) []byte {
	var before []byte
	for {
		data, err := os.ReadFile(log)
		if err == nil && len(data) > 0 && len(data) == len(before) {
			return data
		}
		before = data
		select {
		case <-ctx.Done():
			return data
		case <-time.After(tailWait / 10):
		}
	}
}
