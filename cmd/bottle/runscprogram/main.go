// Command runscprogram is what gVisor's shim runs in place of runsc. It answers the three short
// calls that the shim makes most often, each of which takes runsc tens of milliseconds of
// processor time to start, and the longest, a wait for the end of the sandbox, in which runsc
// occupies several times as much memory. Everything else it leaves to runsc, and these calls too
// unless everything is as expected: a record that it understands, and a sandbox that answers.
// `make build` embeds it in the bottle binary.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/bot-bottle/bottle/cmd/bottle/shim"
)

func main() {
	if shim.IsCall(os.Args[1:]) { // and package shim has not acted on it
		fmt.Fprintln(os.Stderr, shim.Exec(os.Args[1:]))
		os.Exit(1)
	}
	// It does one thing and ends: a collection would start more threads than it frees memory.
	debug.SetGCPercent(-1)
	err := answer(os.Args[1:], os.Stdout)
	if errors.Is(err, errLeave) {
		err = runsc(os.Args)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(failed)
	}
}

// failed is runsc's exit code after an error.
const failed = 128

// errLeave means that runsc is to execute the call. Nothing was done.
var errLeave = errors.New("leave to runsc")

// runsc executes runsc in place of this program. Beside the program is a link to it.
func runsc(args []string) error {
	path := filepath.Join(filepath.Dir(args[0]), "runsc")
	err := syscall.Exec(path, append([]string{path}, args[1:]...), os.Environ())
	return fmt.Errorf("execute %s: %w", path, err)
}

// call is one of the shim's calls (gVisor pkg/shim/v1/runsccmd).
type call struct {
	root, id string
	out      io.Writer
}

func answer(args []string, out io.Writer) error {
	root := ""
	for len(args) > 0 && strings.HasPrefix(args[0], "--") {
		name, value, ok := strings.Cut(args[0], "=")
		if !ok {
			return errLeave // its value would be the next argument
		}
		if name == "--root" {
			root = value
		}
		args = args[1:]
	}
	if root == "" || len(args) < 2 {
		return errLeave
	}
	command, args := args[0], args[1:]
	switch {
	case command == "state" && len(args) == 1:
		return call{root, args[0], out}.state()
	case command == "wait" && len(args) == 1:
		return call{root, args[0], out}.wait()
	case command == "kill" && len(args) == 3 && args[0] == "--all":
		return call{root, args[1], out}.killAll(args[2])
	}
	return errLeave
}

// ociVersion is that of the state that runsc prints.
const ociVersion = "1.2.0"

// state prints the state of a sandbox (runtime-spec, "Query State").
func (c call) state() error {
	s, err := c.read()
	if err != nil {
		return err
	}
	switch s.Status {
	case "paused": // runsc does not look further either
	case "created", "running":
		if s.Status, err = c.now(s); err != nil {
			return err
		}
	default:
		return errLeave
	}
	pid := s.Sandbox.Pid
	if s.Status == "stopped" {
		pid = -1
	}
	return json.NewEncoder(c.out).Encode(map[string]any{
		"ociVersion": ociVersion, "id": c.id, "status": s.Status, "pid": pid,
		"bundle": s.BundleDir, "annotations": s.Spec.Annotations,
	})
}

// The states of a container in a sandbox (gVisor runsc/boot, ContainerRuntimeState).
const (
	runtimeStateCreating = 1
	runtimeStateRunning  = 2
	runtimeStateStopped  = 3
)

// now returns the status of a container that was created or running when it was recorded
// (gVisor runsc/container, CheckStopped).
func (c call) now(s record) (string, error) {
	var state int
	switch err := s.call("containerManager.ContainerRuntimeState", c.id, &state); {
	case err != nil && s.ended():
		return "stopped", nil
	case err != nil:
		return "", errLeave
	case state == runtimeStateStopped:
		return "stopped", nil
	case state == runtimeStateCreating, state == runtimeStateRunning:
		return s.Status, nil
	}
	return "", errLeave
}

// wait waits until the first process of a sandbox, and then the sandbox, have ended, and prints
// the exit code.
func (c call) wait() error {
	s, err := c.read()
	if err != nil {
		return err
	}
	if s.Status != "running" {
		return errLeave
	}
	sandbox, err := s.open()
	if err != nil {
		return errLeave // it may have ended
	}
	var status syscall.WaitStatus
	if err := s.call("containerManager.Wait", c.id, &status); err != nil {
		var refused *refusedError
		if errors.As(err, &refused) {
			return errLeave
		}
		// The connection ends with the sandbox. runsc cannot find out the exit code either.
		if err := waitFor(sandbox); err != nil {
			return err
		}
		return fmt.Errorf("wait for container %s: the sandbox ended, and its exit code is not known", c.id)
	}
	if err := waitFor(sandbox); err != nil {
		return err
	}
	code := status.ExitStatus()
	if status.Signaled() {
		code = 128 + int(status.Signal())
	}
	return json.NewEncoder(c.out).Encode(struct {
		ID         string `json:"id"`
		ExitStatus int    `json:"exitStatus"`
	}{c.id, code})
}

// deliverToAll is a mode of a signal (gVisor runsc/boot, SignalDeliveryMode).
const deliverToAll = 1

// killAll sends SIGKILL to all processes of a container.
func (c call) killAll(signal string) error {
	if signal != "9" {
		return errLeave
	}
	s, err := c.read()
	if err != nil {
		return err
	}
	// A container that was only created is ended in another way.
	if s.Status != "running" && s.Status != "stopped" {
		return errLeave
	}
	if s.ended() {
		return fmt.Errorf("kill container %s: the sandbox is not running", c.id)
	}
	args := map[string]any{"CID": c.id, "Signo": int(syscall.SIGKILL), "PID": 0, "Mode": deliverToAll}
	if err := s.call("containerManager.Signal", args, nil); err != nil {
		return errLeave
	}
	return nil
}
