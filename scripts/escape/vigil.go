package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// Times of a vigil.
const (
	// vigilLimit bounds one attempt: a packet that is dropped is not waited for,
	// as the next attempt sends another.
	vigilLimit = 300 * time.Millisecond
	// vigilMost bounds all of it, should nobody end it.
	vigilMost = 2 * time.Minute
	tellEvery = 50 * time.Millisecond
)

// Files of a vigil, beside the one that tells how it fares: its attempts, what
// ends it, and what says that it has ended, and why.
func attemptsOf(vigil string) string { return vigil + ".attempts" }
func endOf(vigil string) string      { return vigil + ".end" }
func doneOf(vigil string) string     { return vigil + ".done" }

// vigil is attempts that are repeated, each at its own pace.
type vigil struct {
	mu      sync.Mutex
	results []result
	done    chan struct{}
}

// begin has a process of its own keep the vigil: who asked for it may be gone
// before its end, and what they started with them.
func (b batch) begin() error {
	data, err := json.Marshal(b)
	if err != nil {
		return err
	}
	if err := os.WriteFile(attemptsOf(b.Vigil), data, 0o600); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", "keep", b.Vigil)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd.Start()
}

// keep tries those attempts once that change what the others meet, then all
// others, each again and again, until it is told to end. Meanwhile a file tells how
// they fared.
func keep(file string) error {
	data, err := os.ReadFile(attemptsOf(file))
	if err != nil {
		return err
	}
	var b batch
	if err := json.Unmarshal(data, &b); err != nil {
		return err
	}
	err = b.keep()
	text := ""
	if err != nil {
		text = err.Error()
	}
	return errors.Join(err, os.WriteFile(doneOf(file), []byte(text), 0o600))
}

func (b batch) keep() error {
	limit = vigilLimit
	v := &vigil{results: make([]result, len(b.Attempts)), done: make(chan struct{})}
	for i, a := range b.Attempts {
		v.results[i].Name = a.Name
		if a.Alone {
			v.results[i] = b.try(a)
		}
	}
	var trying sync.WaitGroup
	for i, a := range b.Attempts {
		if !a.Alone {
			trying.Go(func() { v.repeat(i, a, b) })
		}
	}
	err := v.tellUntilEnded(b.Vigil)
	close(v.done)
	trying.Wait()
	return errors.Join(err, v.tell(b.Vigil))
}

func (v *vigil) repeat(i int, a attempt, b batch) {
	pace := time.NewTicker(time.Duration(a.Every) * time.Millisecond)
	defer pace.Stop()
	for last := time.Now(); ; {
		began := time.Now()
		r := b.try(a)
		v.add(i, r, began.Sub(last))
		last = began
		select {
		case <-pace.C:
		case <-v.done:
			return
		}
	}
}

// add keeps a success for ever.
func (v *vigil) add(i int, r result, gap time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	was := v.results[i]
	if was.Reached {
		r.Reached, r.Detail = true, was.Detail
	}
	r.Rounds, r.Gap = was.Rounds+1, max(was.Gap, gap.Milliseconds())
	v.results[i] = r
}

func (v *vigil) tellUntilEnded(file string) error {
	for end := time.Now().Add(vigilMost); time.Now().Before(end); time.Sleep(tellEvery) {
		if err := v.tell(file); err != nil {
			return err
		}
		if _, err := os.Stat(endOf(file)); err == nil {
			return nil
		}
	}
	return errors.New("nobody has ended the vigil")
}

// tell writes the file so that who reads it sees it whole.
func (v *vigil) tell(file string) error {
	v.mu.Lock()
	data, err := json.Marshal(v.results)
	v.mu.Unlock()
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// show prints what a vigil tells; stop ends it.
func show(file string, out io.Writer) error {
	data, err := os.ReadFile(file)
	if err == nil {
		_, err = out.Write(data)
	}
	return err
}

func stop(file string) error { return os.WriteFile(endOf(file), nil, 0o600) }
