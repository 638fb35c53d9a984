package session

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// watcherFile is locked by the process that watches a detached bottle, and contains its
// process ID.
const watcherFile = "watcher"

// BeWatcher records this process as the one that watches a detached bottle. The lock ends
// with EndWatch, or with the process.
func (m *Manager) BeWatcher(name string) error {
	f, err := os.OpenFile(m.file(name, watcherFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("record the watcher of %s: %w", name, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		_, err = fmt.Fprintln(f, os.Getpid())
	}
	if err != nil {
		return errors.Join(fmt.Errorf("record the watcher of %s: %w", name, err), f.Close())
	}
	watching.Store(m.file(name, watcherFile), f)
	return nil
}

// EndWatch ends what BeWatcher has begun: another process may become the watcher.
func (m *Manager) EndWatch(name string) {
	if f, ok := watching.LoadAndDelete(m.file(name, watcherFile)); ok {
		_ = f.(*os.File).Close() // nothing more is written
	}
}

// watching are the open files of the bottles that this process watches, by path.
var watching sync.Map

// Watcher returns the process ID of the process that watches a detached bottle; 0 if there
// is none.
func (m *Manager) Watcher(name string) int {
	f, err := os.Open(m.file(name, watcherFile))
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }() // nothing was written
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		return 0
	}
	data, err := os.ReadFile(f.Name())
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(data))) // empty just before it is written
	return pid
}
