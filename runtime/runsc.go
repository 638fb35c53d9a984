package runtime

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/program"
)

// runscOptions are the settings of runsc that differ between containers.
type runscOptions struct {
	// Program is what the shim runs: runsc, or the program that writeRunscProgram writes.
	program string
	// Disk limits the agent's writes to its root file system, in bytes; 0: no limit. gVisor
	// stores them in a file in the root file system's directory, which is its default.
	disk int64
	// Exclusive makes gVisor cache names and attributes of all mounts that have no other
	// annotation (sharedHints).
	exclusive bool
	// Dentries is the number of files whose names and attributes it caches; 0: its default.
	dentries uint64
}

// agentOptions returns the settings for an agent's container.
func (c *Client) agentOptions(ctx context.Context, cfg AgentConfig) runscOptions {
	o := runscOptions{disk: cfg.Disk, exclusive: hasExclusive(cfg.Mounts)}
	if o.exclusive {
		o.dentries = cachedDentries(c.maxFiles(ctx), cfg.Memory)
	}
	return o
}

// writeRunscConfig writes runsc's configuration. PID 1 connects to sockets of bottle's in a
// mount. That is permitted for all mounts, but only bottle can create sockets in one: those
// that the agent creates exist in the sandbox only. gVisor shows as many CPUs as the agent may
// use, but at least two (gVisor runsc/sandbox, CPUNumFromQuota).
func writeRunscConfig(file, root string, o runscOptions) error {
	text := fmt.Sprintf("binary_name = %q\nroot = %q\n[runsc_config]\nplatform = \"systrap\"\nnetwork = \"sandbox\"\ncpu-num-from-quota = \"true\"\nhost-uds = \"open\"\n", o.program, root)
	if o.disk > 0 {
		text += fmt.Sprintf("overlay2 = \"root:self,size=%d\"\n", o.disk)
	}
	if o.exclusive {
		text += "file-access-mounts = \"exclusive\"\n"
	}
	if o.dentries > 0 {
		text += fmt.Sprintf("dcache = \"%d\"\n", o.dentries)
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write runsc configuration: %w", err)
	}
	return nil
}

// runscCalls is the name of the program that the shim runs in place of runsc.
const runscCalls = "runsc-calls"

// runscProgram returns the path of the program that the shim runs in place of runsc, if there is
// one. It begins with "runsc", as the names of gVisor's programs do (claimedOwner).
func (c *Client) runscProgram(id string) string {
	return filepath.Join(c.cfg.StateDir, id, runscCalls)
}

// writeRunscProgram writes the program that the shim runs in place of runsc, and beside it a link to
// runsc. It returns its path, or that of runsc if there is no such program.
func (c *Client) writeRunscProgram(id string) (string, error) {
	runsc, err := exec.LookPath("runsc")
	if err != nil {
		return "", fmt.Errorf("find runsc: %w", err)
	}
	if c.cfg.Runsc == nil {
		return runsc, nil
	}
	file := c.runscProgram(id)
	dir := filepath.Dir(file)
	link := filepath.Join(dir, "runsc")
	_ = os.Remove(link) // an interrupted removal can have left it
	if err := os.Symlink(runsc, link); err != nil {
		return "", fmt.Errorf("write link to runsc: %w", err)
	}
	return program.Program{Open: c.cfg.Runsc, Bottle: runsc, Store: c.cfg.Programs}.Write(dir, filepath.Base(file))
}

// ownShim returns the runtime of a container: the program that the shim runs in place of runsc, if
// there is one, in place of Config.Shim. It answers as a shim in the same way, and is smaller by
// tens of MB, which containerd would wait for twice.
func (c *Client) ownShim(runtime, id, program string) string {
	if runtime == c.cfg.Shim && program == c.runscProgram(id) {
		return program
	}
	return runtime
}

const (
	// gVisor's default for each mount (pkg/sentry/fsimpl/gofer), of which one command in a
	// repository of usual size leaves nothing.
	minDentries = 1000
	maxDentries = 32768
	// The sandbox has at most four descriptors of a cached file open: for its name, for
	// reading, for writing and for mappings. A third of them must remain for other uses:
	// without descriptors it can do nothing.
	filesPerDentry = 6
	// The memory of an entry, with the host's own of what it holds open, is charged to the
	// agent's limit. It is about 4 KiB; 1/32 of the limit is used at most.
	memoryPerDentry = 128 << 10
)

// cachedDentries returns how many files gVisor caches for an agent with a memory limit, in
// a process that can open a number of files. 0: its default, which is per mount.
func cachedDentries(files uint64, memory int64) uint64 {
	n := min(files/filesPerDentry, uint64(max(memory, 0))/memoryPerDentry, maxDentries)
	if n <= minDentries {
		return 0
	}
	return n
}

// maxFiles returns how many files a sandbox can open: its processes inherit containerd's
// limit, and as Go programs raise the soft one to the hard one. 0: not known.
func (c *Client) maxFiles(ctx context.Context) uint64 {
	pid, err := c.serverPID(ctx)
	if err != nil {
		return 0
	}
	var limit unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		return 0
	}
	return limit.Max
}
