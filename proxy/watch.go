package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/segment"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/fsnotify/fsnotify"
)

// Waits before a proxy that keeps ending is started again.
const (
	restartFirst = time.Second
	restartMost  = 30 * time.Second
	// restartCalm is how long a proxy must have run to be well again.
	restartCalm = time.Minute
)

// WatchProxy starts a bottle's proxy again whenever it ends: at once the first
// time, later if it keeps ending. The policy is in force before the proxy listens,
// as it reads the same files again, and its namespace's packet filter stands
// meanwhile: without a proxy the agent reaches nothing. It returns when ctx ends
// or the bottle is gone or being removed. restarted is told of each time, with
// what kept it from running.
//
// Everybody who is attached to a bottle may watch: a lock decides who acts. When
// nobody is, the proxy stays down, and with it the agent's way out, until a
// session begins.
func (p *Manager) Watch(ctx context.Context, name string, restarted func(error)) {
	pause := time.Duration(0)
	for {
		began := time.Now()
		if err := p.rt.WaitTask(ctx, names.Proxy(name)); err != nil {
			p.logger.Info("watch proxy", "bottle", name, "error", err)
			pause = max(pause, restartFirst) // containerd does not answer
		}
		if time.Since(began) > restartCalm {
			pause = 0
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		done, err := p.Restart(ctx, name)
		if errors.Is(err, runtime.ErrNotRunning) || ctx.Err() != nil {
			return
		}
		if done || err != nil {
			restarted(err)
		}
		pause = min(max(2*pause, restartFirst), restartMost)
	}
}

// restartProxy starts the proxy unless it runs. The error wraps runtime.ErrNotRunning
// when the bottle is gone or going.
func (p *Manager) Restart(ctx context.Context, name string) (bool, error) {
	unlock, err := p.lock(ctx, name)
	if err != nil {
		return false, err
	}
	defer unlock()
	if p.removing(name) {
		return false, fmt.Errorf("start the proxy of %s: %w", name, runtime.ErrNotRunning)
	}
	task, err := p.rt.RecreateProxy(ctx, names.Proxy(name), p.program, p.LogFile(name))
	if task == nil {
		return false, err
	}
	if err := p.Start(ctx, name, task); err != nil {
		return false, fmt.Errorf("start the proxy of %s again: %w", name, err)
	}
	p.logger.Info("proxy started again", "bottle", name)
	return true, nil
}

// startProxy returns when the proxy's health endpoint has answered.
func (p *Manager) Start(ctx context.Context, name string, task *runtime.Task) error {
	log := p.LogFile(name)
	watch, err := watchFile(log)
	if err != nil {
		return err
	}
	defer func() { _ = watch.Close() }() // nothing was written by it
	if err := task.Start(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, p.StartTimeout)
	defer cancel()
	client := p.client(name)
	defer client.CloseIdleConnections()
	// A proxy says on its log that it has started; asking then, and not in
	// rounds, costs neither time nor sleep. The ticker is for a proxy that
	// speaks before it listens.
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-watch.Events:
		case <-tick.C:
		case <-task.Exited():
			return fmt.Errorf("the proxy ended at once%s", p.lastWords(ctx, name))
		case <-ctx.Done():
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return ctx.Err()
			}
			return fmt.Errorf("the proxy's health endpoint has not answered for %s%s", p.StartTimeout, p.lastWords(ctx, name))
		}
		if healthy(ctx, client) {
			return nil
		}
	}
}

// watchFile tells of writes to a file that may not exist yet.
func watchFile(file string) (*fsnotify.Watcher, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch the proxy's log: %w", err)
	}
	if err := w.Add(filepath.Dir(file)); err != nil {
		return nil, errors.Join(fmt.Errorf("watch the proxy's log: %w", err), w.Close())
	}
	return w, nil
}

// proxyClient speaks to the proxy from inside its own namespace: it listens
// nowhere else.
func (p *Manager) client(name string) *http.Client {
	return &http.Client{
		Timeout: 2 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return netns.DialIn(ctx, netns.ProxyPath(p.bottleDir(name)), network, addr)
		}},
	}
}

func healthy(ctx context.Context, client *http.Client) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, segment.ProxyURL()+"/health", nil)
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

// Bounds of what an error repeats of a proxy's log, and of the wait for it.
const (
	lastLines  = 5
	lastLength = 400 // of each, in bytes
	lastWait   = 500 * time.Millisecond
)

// lastWords is the end of a proxy's log, for an error's text. What the proxy
// wrote last may still be on its way to the file.
func (p *Manager) lastWords(ctx context.Context, name string) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWait)
	defer cancel()
	data := p.settledLog(ctx, name)
	if len(bytes.TrimSpace(data)) == 0 {
		return "; it said nothing"
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	lines = lines[max(0, len(lines)-lastLines):]
	for i, line := range lines {
		lines[i] = strings.ToValidUTF8(line[:min(len(line), lastLength)], "")
	}
	return "; it said: " + strings.Join(lines, " | ")
}

// settledLog reads the log until ctx ends or it has not grown for a while.
func (p *Manager) settledLog(ctx context.Context, name string) []byte {
	var before []byte
	for {
		data, err := os.ReadFile(p.LogFile(name))
		if err == nil && len(data) > 0 && len(data) == len(before) {
			return data
		}
		before = data
		select {
		case <-ctx.Done():
			return data
		case <-time.After(lastWait / 10):
		}
	}
}
