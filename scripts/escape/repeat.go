package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// The suite repeats attempts while it breaks something: a firewall, a proxy,
// containerd. The results are in a file, because output would be lost with
// containerd.

const (
	// repeatTimeout bounds a repeated attempt. It is short: the next attempt
	// follows anyway.
	repeatTimeout = 300 * time.Millisecond
	// maxRepeat bounds the duration if nothing stops it.
	maxRepeat     = 2 * time.Minute
	writeInterval = 50 * time.Millisecond
)

// Files next to the results file: the batch, the request to stop, and the mark
// that repeating has ended, which contains the error if there was one.
func batchFile(results string) string { return results + ".batch" }
func stopFile(results string) string  { return results + ".stop" }
func doneFile(results string) string  { return results + ".done" }

// repeater repeats attempts, each at its own interval.
type repeater struct {
	mu      sync.Mutex
	results []result
	done    chan struct{}
}

// startRepeating starts a detached process that repeats the attempts, because
// this process and its session may end before.
func (b batch) startRepeating() error {
	data, err := json.Marshal(b)
	if err != nil {
		return err
	}
	if err := os.WriteFile(batchFile(b.ResultsFile), data, 0o600); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "repeat", b.ResultsFile)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd.Start()
}

// repeatAttempts is the detached process.
func repeatAttempts(file string) error {
	data, err := os.ReadFile(batchFile(file))
	if err != nil {
		return err
	}
	var b batch
	if err := json.Unmarshal(data, &b); err != nil {
		return err
	}
	err = b.repeat()
	text := ""
	if err != nil {
		text = err.Error()
	}
	return errors.Join(err, os.WriteFile(doneFile(file), []byte(text), 0o600))
}

// repeat makes the exclusive attempts once, then repeats all others until it is
// stopped.
func (b batch) repeat() error {
	timeout = repeatTimeout
	r := &repeater{results: make([]result, len(b.Attempts)), done: make(chan struct{})}
	for i, a := range b.Attempts {
		r.results[i].Name = a.Name
		if a.Exclusive {
			r.results[i] = b.try(a)
		}
	}
	var trying sync.WaitGroup
	for i, a := range b.Attempts {
		if !a.Exclusive {
			trying.Go(func() { r.repeatOne(i, a, b) })
		}
	}
	err := r.writeUntilStopped(b.ResultsFile)
	close(r.done)
	trying.Wait()
	return errors.Join(err, r.write(b.ResultsFile))
}

func (r *repeater) repeatOne(i int, a attempt, b batch) {
	ticker := time.NewTicker(time.Duration(a.Interval) * time.Millisecond)
	defer ticker.Stop()
	for last := time.Now(); ; {
		start := time.Now()
		r.add(i, b.try(a), start.Sub(last))
		last = start
		select {
		case <-ticker.C:
		case <-r.done:
			return
		}
	}
}

// add records a result. A success is never overwritten.
func (r *repeater) add(i int, latest result, gap time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	previous := r.results[i]
	if previous.Reached {
		latest.Reached, latest.Detail = true, previous.Detail
	}
	latest.Rounds, latest.Gap = previous.Rounds+1, max(previous.Gap, gap.Milliseconds())
	r.results[i] = latest
}

func (r *repeater) writeUntilStopped(file string) error {
	for end := time.Now().Add(maxRepeat); time.Now().Before(end); time.Sleep(writeInterval) {
		if err := r.write(file); err != nil {
			return err
		}
		if _, err := os.Stat(stopFile(file)); err == nil {
			return nil
		}
	}
	return errors.New("timed out waiting for the stop command")
}

// write replaces the results file atomically.
func (r *repeater) write(file string) error {
	r.mu.Lock()
	data, err := json.Marshal(r.results)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

func stopRepeating(file string) error { return os.WriteFile(stopFile(file), nil, 0o600) }
