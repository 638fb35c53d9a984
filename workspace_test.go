package bottle

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/agentwork"
	"github.com/bot-bottle/bottle/internal/leakcheck"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/session"
	"github.com/bot-bottle/bottle/workspace"
)

// runtimes are those that every property of a workspace is tested under.
var runtimes = []string{plan.Runsc, plan.Runc}

// workSpec is a spec with a working directory of three entries. It removes what is kept
// of it at the end of the test.
func workSpec(t *testing.T, e *Engine, rt, limits string) plan.Spec {
	t.Helper()
	s := testSpec(t, strings.Replace(simpleManifest, "  dev:\n", "  dev:\n    limits: {"+limits+"}\n", 1))
	s.Cwd, s.Runtime = true, rt
	dir := filepath.Join(s.Caller.WorkDir, "work")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Mkdir(dir+"/sub", 0o755), os.WriteFile(dir+"/sub/file", []byte("original"), 0o640),
		os.Symlink("/etc/passwd", dir+"/link")); err != nil {
		t.Fatal(err)
	}
	s.ManifestPath, s.Caller.WorkDir = s.Caller.WorkDir+"/bottle.yaml", dir
	t.Cleanup(func() {
		for _, err := range []error{e.Remove(t.Context(), "claude-bottle-it"), discard(e, "claude-bottle-it")} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	return s
}

func discard(e *Engine, name string) error {
	err := e.work.Discard(context.Background(), name)
	if errors.Is(err, workspace.ErrNotFound) {
		return nil
	}
	return err
}

func launchWork(t *testing.T, e *Engine, s plan.Spec) *Bottle {
	t.Helper()
	b, err := e.Launch(t.Context(), prepare(t, e, s))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// in runs a shell command in a bottle, which must succeed.
func in(t *testing.T, e *Engine, name, command string) string {
	t.Helper()
	out, code := output(t, e, name, "sh", "-c", command)
	if code != 0 {
		t.Fatalf("%s: exit code %d: %s", command, code, out)
	}
	return out
}

// offline runs a shell command over the workspace of a stopped bottle.
func offline(t *testing.T, e *Engine, name, command string) string {
	t.Helper()
	o, err := e.work.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := o.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	var out strings.Builder
	s, err := o.Exec(t.Context(), session.Config{Command: []string{"sh", "-c", command}, Stdout: &out, Stderr: &out})
	if err != nil {
		t.Fatal(err)
	}
	if code, err := s.Wait(); code != 0 || err != nil {
		t.Fatalf("%s: exit code %d, %v: %s", command, code, err, out.String())
	}
	return out.String()
}

func kept(t *testing.T, e *Engine, name string) agentwork.Kept {
	t.Helper()
	k, err := e.work.Workspace(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestWorkspace follows the work of an agent: copied in, changed, kept when the bottle is
// gone, read in a sandbox without a network, used again, fetched and discarded.
func TestWorkspace(t *testing.T) {
	for _, rt := range runtimes {
		t.Run(rt, func(t *testing.T) {
			leakcheck.Check(t)
			e := openEngine(t)
			s := workSpec(t, e, rt, "")
			b := launchWork(t, e, s)
			if got := in(t, e, b.Name, "pwd; stat -c '%n %a %u' . sub/file; readlink link; cat sub/file"); got != "/workspace\n. 755 1000\nsub/file 640 1000\n/etc/passwd\noriginal" {
				t.Errorf("the agent sees %q", got)
			}
			// After the copy the journal is safe against a crash of the host.
			if mounts, err := os.ReadFile("/proc/self/mounts"); err != nil || !strings.Contains(string(mounts), e.teardown.WorkMount(b.Name)+" ext4 ") || strings.Contains(string(mounts), "nobarrier") {
				t.Errorf("mounts: %v\n%s", err, mounts)
			}
			if k := kept(t, e, b.Name); k.Changed || k.Unfetched || k.Bottle != "running" || k.Source != s.Caller.WorkDir || k.Size != 10<<30 {
				t.Errorf("while it runs: %+v", k)
			}
			in(t, e, b.Name, "echo more >>sub/file; ln -s /etc/shadow out; echo '#!/bin/sh\necho ran' >prog; chmod 4755 prog; ./prog")
			if k := kept(t, e, b.Name); !k.Changed || !k.Unfetched {
				t.Errorf("while it runs, changed: %+v", k)
			}
			remove(t, b)
			k := kept(t, e, b.Name)
			if !k.Changed || !k.Unfetched || k.Bottle != agentwork.NoBottle || k.Used < 64<<10 || k.Used > 64<<20 {
				t.Errorf("after the end: %+v", k)
			}
			if taken, err := e.Taken(t.Context()); err != nil || !taken[b.Name] {
				t.Errorf("Taken = %v, %v", taken, err)
			}
			if left, err := e.FindLeftovers(t.Context()); err != nil || len(left) != 0 {
				t.Errorf("leftovers: %+v, %v", left, err)
			}
			if got := offline(t, e, b.Name, "pwd; cat sub/file; ls -A; tail -n +3 /proc/net/dev | grep -v lo: || true"); got != "/workspace\noriginalmore\nlink\nout\nprog\nsub\n" {
				t.Errorf("offline: %q", got)
			}
			offline(t, e, b.Name, "echo kept >offline; mkdir d; i=0; while [ $i -lt 100 ]; do echo $i >d/$i; i=$((i+1)); done")
			if got := offline(t, e, b.Name, "cat offline; cat d/* | wc -l; rm -r offline d"); strings.Join(strings.Fields(got), " ") != "kept 100" {
				t.Errorf("changed offline: %q", got)
			}
			again := prepare(t, e, s)
			again.Name, again.Workspace.Existing = b.Name, true
			b, err := e.Launch(t.Context(), again)
			if err != nil {
				t.Fatal(err)
			}
			if got := in(t, e, b.Name, "cat sub/file; ./prog; rm prog"); got != "originalmore\nran\n" {
				t.Errorf("used again: %q", got)
			}
			fetched, err := e.work.Fetching(t.Context(), b.Name)
			if err != nil {
				t.Fatal(err)
			}
			if err := fetched(); err != nil {
				t.Fatal(err)
			}
			if err := e.work.Discard(t.Context(), b.Name); !errors.Is(err, agentwork.ErrInUse) {
				t.Errorf("discarded a workspace in use: %v", err)
			}
			remove(t, b)
			if k := kept(t, e, b.Name); !k.Changed || k.Unfetched {
				t.Errorf("after a fetch: %+v", k)
			}
			if err := e.work.Discard(t.Context(), b.Name); err != nil {
				t.Error(err)
			}
			if _, err := e.work.Open(t.Context(), b.Name); !errors.Is(err, workspace.ErrNotFound) {
				t.Errorf("opened a discarded workspace: %v", err)
			}
		})
	}
}

// TestWorkspaceUnchanged compares agents that only read with those that change a little.
func TestWorkspaceUnchanged(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	for _, rt := range runtimes {
		for command, changed := range map[string]bool{
			"true": false, "find . -type f -exec cat {} + && ls -lR": false,
			"chmod 600 sub/file": true, "echo Original >sub/file": true, "mv sub/file sub/f && mv sub/f sub/file": true,
			"touch -d @0 sub": true, "echo x >new": true, "rm link": true, "rm link; touch link": true,
		} {
			t.Run(rt+"/"+command, func(t *testing.T) {
				b := launchWork(t, e, workSpec(t, e, rt, ""))
				in(t, e, b.Name, command)
				remove(t, b)
				if k := kept(t, e, b.Name); k.Changed != changed || k.Unfetched != changed {
					t.Errorf("changed %v, unfetched %v; want %v", k.Changed, k.Unfetched, changed)
				}
			})
		}
	}
}

// TestWorkspaceBound fills a workspace: writing fails with ENOSPC, the agent lives, and
// the host's disk has no more than the bound.
func TestWorkspaceBound(t *testing.T) {
	for _, rt := range runtimes {
		t.Run(rt, func(t *testing.T) {
			leakcheck.Check(t)
			e := openEngine(t)
			const size = 64 << 20
			b := launchWork(t, e, workSpec(t, e, rt, "workspace: 64MiB"))
			// Inodes are bounded, too. echo, unlike ":", does not end the shell.
			in(t, e, b.Name, "i=0; while [ $i -lt 20000 ] && echo -n >n$i; do i=$((i+1)); done 2>/dev/null; [ $i -gt 1000 ] && [ $i -lt 20000 ] && rm -f n*")
			if out := in(t, e, b.Name, "dd if=/dev/zero of=big bs=1M count=200 2>&1 || true"); !strings.Contains(out, "No space left on device") {
				t.Errorf("dd reports %q", out)
			}
			if got := in(t, e, b.Name, "rm big; echo alive >small; cat small"); got != "alive\n" {
				t.Errorf("the agent: %q", got)
			}
			if k := kept(t, e, b.Name); k.Used > size || k.Size != size {
				t.Errorf("%d bytes of %d on the host", k.Used, k.Size)
			}
			remove(t, b)
			// The blocks of the removed file were returned.
			if k := kept(t, e, b.Name); k.Used > size/2 {
				t.Errorf("%d bytes after the end", k.Used)
			}
		})
	}
}

// TestWorkspaceSurvives ends bottles in every way but the orderly one, immediately after
// the agent has written, without sync(2).
func TestWorkspaceSurvives(t *testing.T) {
	kills := map[string]func(t *testing.T, e *Engine, b *Bottle){
		"sandbox": func(t *testing.T, e *Engine, b *Bottle) { kill(t, b.agent.PID()) },
		"shim": func(t *testing.T, e *Engine, b *Bottle) {
			kill(t, parent(t, b.agent.PID()))
			kill(t, b.agent.PID())
		},
		"memory limit": func(t *testing.T, e *Engine, b *Bottle) {
			// tail keeps a line without an end in memory.
			output(t, e, b.Name, "sh", "-c", "tail /dev/zero")
		},
		"restart of containerd": func(t *testing.T, e *Engine, b *Bottle) {
			if out, err := exec.CommandContext(t.Context(), "scripts/lab.d/restart-containerd.sh").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			// With another client: this one may be waiting before it connects again.
			if got := in(t, openEngine(t), b.Name, "cat sub/file"); got != "changed\n" { // the agent lives, and works on
				t.Errorf("after the restart: %q", got)
			}
		},
		"reboot": func(t *testing.T, e *Engine, b *Bottle) { reboot(t, e, b) },
		"loss of power": func(t *testing.T, e *Engine, b *Bottle) {
			// What the agent has synchronized is on the disk; what it has not may be lost.
			in(t, e, b.Name, `for f in d/* sub/file; do sync "$f"; done; sync d .; echo lost >lost`)
			losePower(t, e.teardown.WorkMount(b.Name))
			reboot(t, e, b)
		},
	}
	for _, rt := range runtimes {
		for how, end := range kills {
			t.Run(rt+"/"+how, func(t *testing.T) {
				leakcheck.Check(t)
				e := openEngine(t)
				removeSockets := shimSockets(t)
				defer removeSockets()
				b := launchWork(t, e, workSpec(t, e, rt, "memory: 128MiB"))
				in(t, e, b.Name, "mkdir d; i=0; while [ $i -lt 100 ]; do echo $i >d/$i; i=$((i+1)); done; echo changed >sub/file")
				end(t, e, b)
				if err := e.Remove(t.Context(), b.Name); err != nil {
					t.Fatal(err)
				}
				if k := kept(t, e, b.Name); !k.Changed || !k.Unfetched {
					t.Errorf("%+v", k)
				}
				if got := offline(t, e, b.Name, "cat sub/file; ls d | wc -l; cat d/99"); strings.Join(strings.Fields(got), " ") != "changed 100 99" {
					t.Errorf("kept: %q", got)
				}
			})
		}
	}
}

// shimSockets returns a function that removes the sockets of shims that have been created
// since. containerd leaves the socket of a killed shim.
func shimSockets(t *testing.T) (remove func()) {
	t.Helper()
	list := func() []string {
		var all []string
		for _, dir := range []string{"/run/containerd/s", "/run/lab/s"} {
			found, err := filepath.Glob(dir + "/*")
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, found...)
		}
		return all
	}
	before := list()
	return func() {
		for _, s := range list() {
			if slices.Contains(before, s) {
				continue
			}
			if err := os.Remove(s); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		}
	}
}

func kill(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	// A pidfd becomes readable when the process has ended (pidfd_open(2)).
	if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000); err != nil && !errors.Is(err, syscall.EINTR) {
		t.Fatal(err)
	}
}

func parent(t *testing.T, pid int) int {
	t.Helper()
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		t.Fatal(err)
	}
	ppid, err := strconv.Atoi(strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[1])
	if err != nil {
		t.Fatal(err)
	}
	return ppid
}

// reboot leaves what a reboot leaves: no processes, no mounts and no files on tmpfs, but
// containerd's records and everything on disk.
func reboot(t *testing.T, e *Engine, b *Bottle) {
	t.Helper()
	for _, id := range []string{b.Name, names.Proxy(b.Name)} {
		out, err := exec.CommandContext(t.Context(), "ctr", "--namespace", e.Namespace(), "tasks", "delete", "--force", id).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if err := e.net.Remove(t.Context(), e.dir(b.Name)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(e.teardown.WorkMount(b.Name), unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	_ = unix.Unmount(filepath.Join(e.dir(b.Name), "runsc", e.Namespace(), "null-netns"), unix.MNT_DETACH) // under runsc
	if err := os.RemoveAll(e.dir(b.Name)); err != nil {
		t.Fatal(err)
	}
}

// losePower makes a mounted file system lose what it has not written to its device
// (EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH, linux/ext4.h).
func losePower(t *testing.T, mount string) {
	t.Helper()
	dir, err := os.Open(mount)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.IoctlSetPointerInt(int(dir.Fd()), 0x8004587d, 2), dir.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestWorkspaceOfflineInUse opens the workspace of a running bottle, and of one that a
// killed process left open.
func TestWorkspaceOfflineInUse(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	b := launchWork(t, e, workSpec(t, e, plan.Runsc, ""))
	if o, err := e.work.Open(t.Context(), b.Name); !errors.Is(err, agentwork.ErrInUse) {
		t.Errorf("Open of a running bottle = %v, %v", o, err)
	}
	in(t, e, b.Name, "echo x >new")
	remove(t, b)
	o, err := e.work.Open(t.Context(), b.Name)
	if err != nil {
		t.Fatal(err)
	}
	if list, err := e.List(t.Context(), true); err != nil || len(list) != 1 || list[0].Status != statusKept {
		t.Errorf("list shows the sandbox: %+v, %v", list, err)
	}
	if err := o.Lock.Release(); err != nil { // as the kernel does when the process is killed
		t.Fatal(err)
	}
	if left, err := e.FindLeftovers(t.Context()); err != nil || len(left) != 1 || left[0].Name != names.Work(b.Name) {
		t.Errorf("leftovers: %+v, %v", left, err)
	}
	if got := offline(t, e, b.Name, "cat new"); got != "x\n" {
		t.Errorf("new has %q", got)
	}
}

// TestWorkspaceHostile: what an agent leaves in a workspace has no effect on the host.
func TestWorkspaceHostile(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	for _, rt := range runtimes {
		b := launchWork(t, e, workSpec(t, e, rt, ""))
		// A directory that is replaced by a link must not lead bottle out, a deep one must
		// not exhaust its files.
		in(t, e, b.Name, "rm -rf sub; ln -s / sub; cp /bin/sh sh; chmod 6755 sh; mkdir -p $(yes d/ | head -n 600 | tr -d '\\n')")
		at := filepath.Join(e.teardown.WorkMount(b.Name), workspace.Files)
		var st unix.Statfs_t
		if err := unix.Statfs(at, &st); err != nil || st.Flags&unix.ST_NOSUID == 0 || st.Flags&unix.ST_NODEV == 0 {
			t.Errorf("mount flags %x, %v", st.Flags, err)
		}
		if fi, err := os.Stat(e.teardown.WorkMount(b.Name)); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("the mount's mode: %v, %v", fi, err)
		}
		// With a node on the host: nodev. The agent itself cannot create one.
		node := filepath.Join(at, "null")
		if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
			t.Fatal(err)
		}
		if f, err := os.OpenFile(node, os.O_RDWR, 0); !errors.Is(err, unix.EACCES) {
			t.Errorf("a device in the workspace can be opened: %v, %v", f, err)
		}
		if out, code := output(t, e, b.Name, "sh", "-c", "echo x >/workspace/null"); code == 0 {
			t.Errorf("the agent opens a device of the host: %s", out)
		}
		first, err := workspace.Fingerprint(t.Context(), e.teardown.WorkMount(b.Name))
		second, err2 := workspace.Fingerprint(t.Context(), e.teardown.WorkMount(b.Name))
		if err != nil || err2 != nil || first == second {
			t.Errorf("deep directories: %q, %v; %q, %v", first, err, second, err2)
		}
		remove(t, b)
		if k := kept(t, e, b.Name); !k.Changed {
			t.Error("unchanged")
		}
		if err := e.work.Discard(t.Context(), b.Name); err != nil {
			t.Error(err)
		}
	}
}

// TestWorkspaceOpenFiles uses more files than gVisor caches, in each way that makes it keep
// descriptors: enough of them remain for other uses.
func TestWorkspaceOpenFiles(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	b := launchWork(t, e, workSpec(t, e, plan.Runsc, ""))
	in(t, e, b.Name, "mkdir d; i=0; while [ $i -lt 6000 ]; do echo $i >d/$i; i=$((i+1)); done; cat d/* >/dev/null; for f in d/*; do echo x >>$f; done; grep -r zzz d || ls -lR d >/dev/null")
	proc := "/proc/" + strconv.Itoa(b.agent.PID())
	open, err := os.ReadDir(proc + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Prlimit(b.agent.PID(), unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		t.Fatal(err)
	}
	config, err := os.ReadFile(filepath.Join(e.dir(b.Name), "runsc.toml"))
	if err != nil || !strings.Contains(string(config), "dcache") {
		t.Errorf("runsc's configuration: %v\n%s", err, config)
	}
	if n := uint64(len(open)); n > limit.Cur*3/4 || n < 3000 {
		t.Errorf("%d open files of %d", n, limit.Cur)
	}
	if limit.Cur != limit.Max {
		t.Errorf("the sandbox's soft limit is %d of %d", limit.Cur, limit.Max)
	}
}

// TestWorkspaceFaults is TestFaults for launches with a workspace.
func TestWorkspaceFaults(t *testing.T) {
	leakcheck.Check(t)
	e := openEngine(t)
	plan := prepare(t, e, workSpec(t, e, plan.Runsc, ""))
	for _, step := range []string{"prepare workspace", "write guest files", "create agent", "start agent", "start proxy"} {
		for _, after := range []bool{false, true} {
			leakcheck.Check(t)
			restore := setHooks(e, testHooks{step: func(s string, done bool) error {
				if s == step && done == after {
					return errInjected
				}
				return nil
			}})
			if b, err := e.Launch(t.Context(), plan); !errors.Is(err, errInjected) || b != nil {
				t.Fatalf("Launch = %v, %v; want the injected error", b, err)
			}
			restore()
			if names, err := e.workspaces.Names(); err != nil || len(names) != 0 {
				t.Errorf("%s/after=%v: left %v, %v", step, after, names, err)
			}
		}
	}
}
