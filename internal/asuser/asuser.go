// Package asuser performs file-system operations with the rights of another user.
// bottle runs as root on behalf of a user: whatever it reads for that user must be
// readable by that user. Operations run on threads with the user's file-system ids
// and no capabilities, so the kernel checks every access, without races.
//
// Functions passed to this package must not start processes or goroutines that
// access files: only the calling thread has the user's rights.
package asuser

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// User is a user whose rights are used. The zero User is root.
type User struct {
	UID, GID int
	Groups   []int // supplementary groups
}

// current reports whether the process already has the user's rights: it cannot
// change them unless it is root.
func (u User) current() bool { return u.UID == 0 || unix.Geteuid() != 0 }

// Run calls fn on a thread with the rights of user u and returns its error. If u is
// root, or the process is not root, it calls fn directly.
func Run(u User, fn func() error) error {
	if u.current() {
		return fn()
	}
	result := make(chan error, 1)
	go func() {
		// The thread is never unlocked, so the Go runtime destroys it with the
		// goroutine and nothing else can run on it.
		runtime.LockOSThread()
		if err := u.assume(); err != nil {
			result <- err
			return
		}
		call(fn, result)
	}()
	return <-result
}

// call sends the result of fn, also if fn ends its goroutine by runtime.Goexit.
func call(fn func() error, result chan<- error) {
	err := errors.New("function did not return")
	defer func() { result <- err }()
	err = fn()
}

// assume gives the calling thread the user's file-system ids and groups, and drops all
// its capabilities. setfsuid(2) itself drops only those that concern the file system
// (capabilities(7)); others, such as CAP_SYS_PTRACE, open files in /proc. The real
// and effective ids stay root's: the user cannot send signals to the thread or trace
// it.
func (u User) assume() error {
	if err := u.setIDs(); err != nil {
		return fmt.Errorf("assume the rights of uid %d: %w", u.UID, err)
	}
	return nil
}

func (u User) setIDs() error {
	if err := setgroups(u.Groups); err != nil {
		return fmt.Errorf("set supplementary groups: %w", err)
	}
	// Both calls return the previous id instead of an error. An invalid id changes
	// nothing and returns the current one.
	for _, set := range []struct {
		id   int
		call func(int) (int, error)
	}{{u.GID, unix.SetfsgidRetGid}, {u.UID, unix.SetfsuidRetUid}} {
		if _, err := set.call(set.id); err != nil {
			return err
		}
		if now, err := set.call(-1); err != nil || now != set.id {
			return fmt.Errorf("set file-system id %d: %w", set.id, errors.Join(err, unix.EPERM))
		}
	}
	// Version 3 has two data elements (capget(2)).
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

// setgroups is setgroups(2) for the calling thread only; unix.Setgroups changes all
// threads.
func setgroups(groups []int) error {
	list := make([]uint32, len(groups)+1) // never empty, to have an address
	for i, g := range groups {
		list[i] = uint32(g)
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&list[0])), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// Pool is a set of threads with one user's rights, for many short operations.
type Pool struct {
	user  User
	tasks chan func()
	done  chan struct{}
}

// NewPool starts n threads with the rights of user u. The caller must call Close.
func NewPool(u User, n int) (*Pool, error) {
	p := &Pool{user: u, tasks: make(chan func()), done: make(chan struct{})}
	if u.current() {
		return p, nil
	}
	started := make(chan error, n)
	for range n {
		go func() {
			runtime.LockOSThread() // never unlocked, see Run
			err := u.assume()
			started <- err
			if err == nil {
				p.work()
			}
		}()
	}
	var errs []error
	for range n {
		errs = append(errs, <-started)
	}
	if err := errors.Join(errs...); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Pool) work() {
	for {
		select {
		case task := <-p.tasks:
			task()
		case <-p.done:
			return
		}
	}
}

// User returns the user whose rights the pool uses.
func (p *Pool) User() User { return p.user }

// Do calls fn on one of the threads and returns when it is finished. fn must not wait
// for another call of Do. After Close it returns an error without calling fn.
func (p *Pool) Do(fn func() error) error {
	if p.user.current() {
		return fn()
	}
	result := make(chan error, 1)
	select {
	case p.tasks <- func() { call(fn, result) }:
		return <-result
	case <-p.done:
		return errors.New("the pool is closed")
	}
}

// Close ends the threads once their current calls are finished. It must be called
// once.
func (p *Pool) Close() { close(p.done) }
