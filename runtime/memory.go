package runtime

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs/pkg/errgrpc"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/hosttask"
	"github.com/bot-bottle/bottle/internal/lazyregexp"
	"github.com/bot-bottle/bottle/internal/unmount"
)

// A memory image is what gVisor writes of a sandbox: all processes that PID 1 has started,
// with their memory and open files, the file systems in memory, and what was written to the
// root file system. It contains every secret that is in the agent's memory, so it is on a
// tmpfs of its own, which is not swapped out where the kernel can do that.

// ErrNoMemoryImage is wrapped if the runtime of a bottle cannot write memory images.
var ErrNoMemoryImage = errors.New("only bottles under runsc can be suspended and forked")

// ErrWrongImage is wrapped if a memory image was not written by what would read it.
var ErrWrongImage = errors.New("the memory image belongs to another version of gVisor, of the image or of bottle")

// SpaceError reports that a memory image does not fit into the host's memory.
type SpaceError struct{ Need, Free int64 } // in bytes

func (e *SpaceError) Error() string {
	return fmt.Sprintf("a memory image may need %d MiB, and the host has %d MiB of memory for it", e.Need>>20, e.Free>>20)
}

// suspendedFile is in the directory of a bottle from when its memory image is complete until
// it runs again.
const suspendedFile = hosttask.SuspendedFile

// Suspension describes a suspended bottle.
type Suspension struct {
	Key  string `json:"key"` // MemoryKey of the sandbox that has written the image
	Size int64  `json:"size_bytes"`
}

// Suspension returns how a bottle was suspended. The error wraps fs.ErrNotExist if it was
// not.
func (c *Client) Suspension(name string) (s Suspension, err error) {
	data, err := os.ReadFile(filepath.Join(c.Dir(name), suspendedFile))
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	return s, err
}

// Suspended reports whether a bottle has a complete memory image.
func (c *Client) Suspended(name string) bool {
	_, err := os.Lstat(filepath.Join(c.Dir(name), suspendedFile))
	return err == nil
}

// ErrSuspended is wrapped if an operation needs a running bottle and it is suspended.
var ErrSuspended = fmt.Errorf("%w: it is suspended", ErrNotRunning)

// CheckSuspended returns an error that wraps ErrSuspended if a bottle is suspended.
func (c *Client) CheckSuspended(name string) error {
	if !c.Suspended(name) {
		return nil
	}
	return &hint.Error{Err: fmt.Errorf("%s: %w", name, ErrSuspended), Hint: "bottle resume " + name}
}

// SuspendedFile returns the path of the record of a suspended bottle.
func (c *Client) SuspendedFile(name string) string { return filepath.Join(c.Dir(name), suspendedFile) }

// MemoryDir returns the directory of a suspended bottle's memory image.
func (c *Client) MemoryDir(name string) string { return filepath.Join(c.Dir(name), "memory") }

// memoryKey is everything that a sandbox must have in common with the one whose memory image
// it reads. gVisor compares arguments, mounts, users and limits itself, but reports the same
// version for all of its builds.
type memoryKey struct {
	Runsc string // SHA-256 of the program
	Root  string // the image: the snapshot below the agent's
	Guest string // SHA-256 of the guest program
	Spec  string // SHA-256 of the container's
}

// MemoryKey returns the key of the memory images of a container. With running, that of the
// sandbox that runs, whose program may have been replaced on the host meanwhile.
func (c *Client) MemoryKey(ctx context.Context, id string, running bool) (string, error) {
	ctx = c.withNamespace(ctx)
	r, spec, err := c.agentRecord(ctx, id)
	if err != nil {
		return "", err
	}
	program, err := exec.LookPath("runsc")
	if err != nil {
		return "", fmt.Errorf("find runsc: %w", err)
	}
	if running {
		s, ok := c.hostState(r)
		if !ok {
			return "", fmt.Errorf("find the sandbox of %s: %w", id, ErrNotRunning)
		}
		program = fmt.Sprintf("/proc/%d/exe", s.pid)
	}
	key := memoryKey{Spec: sumOf(r.Spec.GetValue())}
	if key.Runsc, err = sumOfFile(program); err != nil {
		return "", err
	}
	info, err := c.ctrd.SnapshotService(c.cfg.Snapshotter).Stat(ctx, r.SnapshotKey)
	if err != nil {
		return "", fmt.Errorf("find root file system of %s: %w", id, err)
	}
	key.Root = info.Parent
	for _, m := range spec.Mounts {
		if m.Destination != spec.Process.Args[0] {
			continue
		}
		if key.Guest, err = sumOfFile(m.Source); err != nil {
			return "", err
		}
	}
	data, err := json.Marshal(key)
	return sumOf(data), err
}

func sumOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func sumOfFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("identify program: %w", err)
	}
	defer func() { _ = f.Close() }() // nothing was written
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("identify program: %w", err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// agentRecord returns the record of a container under runsc, and its spec.
func (c *Client) agentRecord(ctx context.Context, id string) (r containers.Container, spec *specs.Spec, err error) {
	if r, err = c.ctrd.ContainerService().Get(ctx, id); err != nil {
		return r, nil, fmt.Errorf("load container %s: %w", id, notRunning(err))
	}
	if r.Spec == nil {
		return r, nil, fmt.Errorf("read spec of %s: it has none", id)
	}
	if err := json.Unmarshal(r.Spec.GetValue(), &spec); err != nil {
		return r, nil, fmt.Errorf("read spec of %s: %w", id, err)
	}
	if !isRunsc(spec) {
		return r, nil, fmt.Errorf("%s: %w", id, ErrNoMemoryImage)
	}
	return r, spec, nil
}

// RuntimeOf returns the runtime of a bottle's agent. The error wraps ErrNotRunning if there
// is no such bottle.
func (c *Client) RuntimeOf(ctx context.Context, name string) (string, error) {
	_, spec, err := c.loadContainer(c.withNamespace(ctx), name)
	if err != nil {
		return "", err
	}
	return runtimeOf(spec), nil
}

// Pause stops all processes of a sandbox until Unpause. A paused sandbox is not an error.
func (c *Client) Pause(ctx context.Context, id string) error {
	_, err := c.ctrd.TaskService().Pause(c.withNamespace(ctx), &tasks.PauseTaskRequest{ContainerID: id})
	if err = errgrpc.ToNative(err); err == nil {
		return nil
	}
	if st, serr := c.taskState(ctx, id); serr == nil && st.status == statusPaused {
		return nil
	}
	return fmt.Errorf("pause %s: %w", id, notRunning(err))
}

// Unpause lets the processes of a paused sandbox continue.
func (c *Client) Unpause(ctx context.Context, id string) error {
	_, err := c.ctrd.TaskService().Resume(c.withNamespace(ctx), &tasks.ResumeTaskRequest{ContainerID: id})
	if err = errgrpc.ToNative(err); err != nil {
		return fmt.Errorf("continue %s: %w", id, err)
	}
	return nil
}

// ResetMemoryLimit sets the memory limit of a sandbox as it was before SaveMemory. Its memory
// image must have been removed.
func (c *Client) ResetMemoryLimit(ctx context.Context, id string) error {
	_, spec, err := c.agentRecord(c.withNamespace(ctx), id)
	if err != nil {
		return err
	}
	return c.setMemoryLimit(id, memoryLimit(spec))
}

const statusPaused = "paused"

// Paused reports whether the processes of a sandbox are stopped.
func (c *Client) Paused(ctx context.Context, id string) (bool, error) {
	st, err := c.taskState(ctx, id)
	return st.status == statusPaused, err
}

const (
	// imageOverhead is for what gVisor writes in addition to the sandbox's memory: the state
	// of its kernel.
	imageOverhead = 32 << 20
	// memoryReserve is the part of the host's memory that memory images leave free.
	memoryReserve = 20
)

// imageSize bounds the size of a memory image: the sandbox's memory, and the files that were
// written to its root file system.
func (c *Client) imageSize(ctx context.Context, id string, spec *specs.Spec) (int64, error) {
	disk, err := c.diskUsage(ctx, id, spec)
	return c.memory(id) + disk + imageOverhead, err
}

// MountMemory mounts the tmpfs for the memory image of a running sandbox on a directory,
// which it creates. The error is a SpaceError if it would not fit into the host's memory.
// After an error nothing is mounted.
func (c *Client) MountMemory(ctx context.Context, id, dir string) (err error) {
	ctx = c.withNamespace(ctx)
	_, spec, err := c.agentRecord(ctx, id)
	if err != nil {
		return err
	}
	need, err := c.imageSize(ctx, id, spec)
	if err != nil {
		return err
	}
	free, err := freeMemory()
	if err != nil {
		return err
	}
	if need > free {
		return &SpaceError{need, free}
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("create directory of memory image: %w", err)
	}
	options := fmt.Sprintf("mode=0700,size=%d", need)
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	err = unix.Mount("tmpfs", dir, "tmpfs", flags, options+",noswap")
	if errors.Is(err, unix.EINVAL) { // before Linux 6.4
		err = unix.Mount("tmpfs", dir, "tmpfs", flags, options)
	}
	if err == nil {
		// Not propagated to other mount namespaces, which would keep it.
		err = unix.Mount("", dir, "", unix.MS_PRIVATE, "")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("mount memory image: %w", err), RemoveMemory(dir))
	}
	return nil
}

// RemoveMemory removes a memory image and the tmpfs that it is on. It is idempotent.
func RemoveMemory(dir string) error {
	if err := unmount.Below(dir); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove memory image: %w", err)
	}
	return nil
}

// freeMemory returns the memory that images may use, in bytes.
func freeMemory() (int64, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("read the host's free memory: %w", err)
	}
	values := map[string]int64{}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 1 {
			n, _ := strconv.ParseInt(fields[1], 10, 64) // 0 if it is not a number
			values[strings.TrimSuffix(fields[0], ":")] = n << 10
		}
	}
	return values["MemAvailable"] - values["MemTotal"]/memoryReserve, nil
}

// SaveMemory writes the memory image of a paused sandbox into a directory that MountMemory
// has mounted. The sandbox stays paused, also after an error. It is not interrupted by the
// end of ctx: gVisor would continue to write. The sandbox's memory limit is raised by the size
// of the image until ResetMemoryLimit.
func (c *Client) SaveMemory(ctx context.Context, id, dir string) (size int64, err error) {
	ctx = context.WithoutCancel(c.withNamespace(ctx))
	_, spec, err := c.agentRecord(ctx, id)
	if err != nil {
		return 0, err
	}
	var space unix.Statfs_t
	if err := unix.Statfs(dir, &space); err != nil {
		return 0, fmt.Errorf("save memory of %s: %w", id, err)
	}
	// The sandbox itself writes the image, so that the kernel counts it as the sandbox's
	// memory.
	limit := memoryLimit(spec)
	if limit > 0 {
		if err := c.setMemoryLimit(id, limit+int64(space.Blocks)*space.Bsize); err != nil {
			return 0, err
		}
	}
	// Without compression: on tmpfs, reading and writing is a copy.
	out, err := c.runsc(ctx, id, "checkpoint", "--image-path", dir, "--leave-running", "--compression=none", id)
	if err != nil {
		return 0, fmt.Errorf("save memory of %s: %w: %s", id, err, oneLine(out))
	}
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		var fi os.FileInfo
		if fi, err = e.Info(); err != nil {
			break
		}
		size += fi.Size()
	}
	return size, err
}

// runsc runs gVisor's command line tool on a container. It gets nothing of this process's
// environment, which contains secrets.
func (c *Client) runsc(ctx context.Context, id string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "runsc", append([]string{"--root", filepath.Join(c.Dir(id), "runsc", c.cfg.Namespace)}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	return cmd.CombinedOutput()
}

// oneLine returns the end of a program's output as a line.
func oneLine(out []byte) string {
	const most = 500 // bytes
	text := strings.Join(strings.Fields(string(out)), " ")
	return strings.ToValidUTF8(text[max(0, len(text)-most):], "")
}

// setMemoryLimit changes the memory limit of a container's cgroup, in bytes. 0 changes
// nothing.
func (c *Client) setMemoryLimit(id string, limit int64) error {
	group := c.cgroupPath(id)
	files := []string{filepath.Join(hosttask.CgroupRoot, group, "memory.max")}
	if _, err := os.Stat(files[0]); err != nil { // cgroup version 1
		v1 := filepath.Join(hosttask.CgroupRoot, "memory", group)
		// The second, of memory and swap together, must not be lower than the first.
		files = []string{filepath.Join(v1, "memory.memsw.limit_in_bytes"), filepath.Join(v1, "memory.limit_in_bytes")}
		if now := c.cgroupNumber(id, "memory", "memory.limit_in_bytes"); now > limit {
			slices.Reverse(files)
		}
	}
	if limit == 0 {
		return nil
	}
	for _, file := range files {
		err := os.WriteFile(file, []byte(strconv.FormatInt(limit, 10)), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set memory limit of %s: %w", id, err)
		}
	}
	return nil
}

// EndSandbox ends a container's task, whatever its state, and keeps the container and its
// root file system without what the agent has written to it, for RestoreSandbox. The
// sandbox is killed as it is: a paused one does not run again, not even for a moment.
func (c *Client) EndSandbox(ctx context.Context, id string) error {
	ctx = context.WithoutCancel(c.withNamespace(ctx))
	socketDirs, err := c.shimSocketDirs() // while the shim is running
	if err != nil {
		return err
	}
	bundles, err := c.bundles(id)
	if err != nil {
		return err
	}
	// The shim too: it could not delete a task that was killed while it was paused.
	if err := c.killStrays(id); err != nil {
		return err
	}
	if err := c.removeTask(ctx, id); err != nil {
		return err
	}
	if err := c.endStrays(ctx, id, 0); err != nil {
		return err
	}
	if err := c.removeRemains(ctx, id, socketDirs, bundles); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(c.Dir(id), "runsc")); err != nil {
		return fmt.Errorf("remove state of %s: %w", id, err)
	}
	return c.removeFilestore(ctx, id)
}

// killStrays kills all processes of a container.
func (c *Client) killStrays(id string) error {
	all, err := c.strays(id)
	for _, s := range all {
		_ = unix.PidfdSendSignal(s.fd, unix.SIGKILL, nil, 0) // it may have ended
		_ = unix.Close(s.fd)                                 // nothing was written
	}
	return err
}

// removeFilestore removes the file in which gVisor has kept what the agent wrote to its root
// file system. The memory image contains it, and with the file no sandbox can be created.
func (c *Client) removeFilestore(ctx context.Context, id string) error {
	mounts, err := c.ctrd.SnapshotService(c.cfg.Snapshotter).Mounts(ctx, id)
	if err != nil {
		return fmt.Errorf("get mounts of %s: %w", id, err)
	}
	err = os.Remove(filepath.Join(writableDir(mounts), filestore+id))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove what %s has written: %w", id, err)
	}
	return nil
}

// filestore begins the name of that file.
const filestore = ".gvisor.filestore."

// restoreScript makes gVisor's shim restore a sandbox where it would start one: it has no
// command for that, and runs what its configuration names in place of runsc. A container may
// be called "start", so the command is recognized by its place.
const restoreScript = `#!/bin/sh
n=$# i=0
for last; do :; done
while [ "$i" -lt "$n" ]; do
	arg=$1 i=$((i+1))
	shift
	if [ "$i" -eq "$((n-1))" ] && [ "$arg" = start ] && [ "$last" = %[1]s ]; then
		set -- "$@" restore --detach --image-path %[2]s
	else
		set -- "$@" "$arg"
	fi
done
exec %[3]s "$@"
`

// shellQuote quotes a word for a shell.
func shellQuote(word string) string { return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" }

var binaryName = lazyregexp.New(`(?m)^binary_name = .*$`)

// RestoreSandbox creates and starts a task in a container that has none, from a memory image
// that was written by a sandbox with an equal MemoryKey. The agent's namespace must have its
// addresses. After an error there is no task, and the image can be used again.
func (c *Client) RestoreSandbox(ctx context.Context, id, image string) (*Task, error) {
	ctx, cancel := c.withoutCancel(ctx)
	defer cancel()
	rec, spec, err := c.agentRecord(ctx, id)
	if err != nil {
		return nil, err
	}
	return c.restore(ctx, rec, spec, image)
}

func (c *Client) restore(ctx context.Context, rec containers.Container, spec *specs.Spec, image string) (_ *Task, err error) {
	id := rec.ID
	conf := filepath.Join(c.Dir(id), runscConfig)
	before, err := os.ReadFile(conf)
	if err != nil {
		return nil, fmt.Errorf("read runsc configuration: %w", err)
	}
	script, err := c.writeRestoreScript(id, image)
	if err != nil {
		return nil, err
	}
	after := binaryName().ReplaceAllLiteral(before, fmt.Appendf(nil, "binary_name = %q", script))
	if err := os.WriteFile(conf, after, 0o600); err != nil {
		return nil, fmt.Errorf("write runsc configuration: %w", err)
	}
	defer func() {
		// Whatever reads it later needs gVisor itself.
		if werr := os.WriteFile(conf, before, 0o600); werr != nil {
			err = errors.Join(err, werr)
		}
		if err != nil {
			err = errors.Join(err, c.EndSandbox(ctx, id))
		}
	}()
	t, err := c.createTask(ctx, rec, spec, taskIO{creator: c.agentIO(id)})
	if err != nil {
		return nil, err
	}
	if err := t.Start(ctx); err != nil {
		return nil, err
	}
	return t, t.HardenHostProcesses()
}

// SameProgram reports whether a sandbox runs the program runsc that the host has now.
func (c *Client) SameProgram(ctx context.Context, id string) (bool, error) {
	r, _, err := c.agentRecord(c.withNamespace(ctx), id)
	if err != nil {
		return false, err
	}
	s, ok := c.hostState(r)
	if !ok {
		return false, fmt.Errorf("find the sandbox of %s: %w", id, ErrNotRunning)
	}
	program, err := exec.LookPath("runsc")
	if err != nil {
		return false, fmt.Errorf("find runsc: %w", err)
	}
	running, err := os.Stat(fmt.Sprintf("/proc/%d/exe", s.pid))
	if err != nil {
		return false, err
	}
	found, err := os.Stat(program)
	if err != nil || os.SameFile(running, found) {
		return err == nil, err
	}
	a, aerr := sumOfFile(fmt.Sprintf("/proc/%d/exe", s.pid))
	b, berr := sumOfFile(program)
	return a == b, errors.Join(aerr, berr)
}
