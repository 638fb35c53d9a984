//go:build readme

package readme

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// Times that end a test which hangs.
const (
	bootTimeout   = 2 * time.Minute
	scriptTimeout = 8 * time.Minute
)

// server is a Debian server: a root that systemd has booted in namespaces of its own.
type server struct {
	t    *testing.T
	root string
	init int // process ID of its systemd
}

// boot unpacks and boots the root of a Debian release, and adds a user "me" who may use sudo.
func boot(t *testing.T, suite string) *server {
	t.Helper()
	layers, err := filepath.Glob(filepath.Join(os.Getenv("LAB_CACHE"), "debian-host-"+suite+"-*.tar"))
	if err != nil || len(layers) != 1 {
		t.Fatalf("expected one root of Debian %s, found %q (scripts/lab up --with-hosts): %v", suite, layers, err)
	}
	s := &server{t: t, root: t.TempDir()}
	if err := os.Chmod(s.root, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "tar", "-C", s.root, "-xf", layers[0])
	s.write("etc/hosts", "127.0.0.1 localhost server\n", 0o644)
	s.write("etc/hostname", "server\n", 0o644)
	s.copy("/etc/resolv.conf", "etc/resolv.conf", 0o644)
	s.write("etc/sudoers.d/me", "me ALL=(ALL) NOPASSWD: ALL\n", 0o440)
	run(t, "chroot", s.root, "useradd", "--create-home", "--shell", "/bin/bash", "me")
	s.write("home/me/.gitconfig", "[user]\n\tname = Me\n\temail = me@example.com\n", 0o644)
	s.trust(os.Getenv("LAB_CA"))
	s.shimWrapper()
	s.start(strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")))
	return s
}

// trust adds a certificate authority to those of the server: the proxy verifies the API's
// certificate with them before it sends the login.
func (s *server) trust(authority string) {
	data, err := os.ReadFile(authority)
	if err != nil {
		s.t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(s.root, "etc/ssl/certs/ca-certificates.crt"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err != nil {
		s.t.Fatal(err)
	}
}

// shimWrapper installs what the test host's wrapper around gVisor's shim needs (scripts/shim-wrapper).
// Where the machine needs no wrapper there is nothing to install.
func (s *server) shimWrapper() {
	dir := filepath.Dir(lookPath(s.t, "containerd-shim-runsc-v1"))
	if _, err := os.Stat(filepath.Join(dir, "real-shim")); errors.Is(err, os.ErrNotExist) {
		return
	}
	s.copy(filepath.Join(dir, "real-shim"), "usr/local/bin/real-shim", 0o755)
	s.copy(filepath.Join(dir, "uid_map"), "usr/local/bin/uid_map", 0o644)
}

// start boots the root and waits until systemd reports that it has started everything.
func (s *server) start(cgroup string) {
	name := fmt.Sprintf("@bottle-readme-%d-%s", os.Getpid(), cgroup)
	ready, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = ready.Close() }()
	var log bytes.Buffer
	cmd := exec.Command("./boot", s.root, cgroup)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), "NOTIFY_SOCKET="+name), &log, &log
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill() // --kill-child: its init, and so everything in it, ends too
		_ = cmd.Wait()         // its exit status is that of the kill
		removeCgroups(s.t, cgroup)
	})
	if err := ready.SetReadDeadline(time.Now().Add(bootTimeout)); err != nil {
		s.t.Fatal(err)
	}
	for message := make([]byte, 4096); ; {
		n, err := ready.Read(message)
		if err != nil {
			s.t.Fatalf("%s did not boot: %v\n%s", s.root, err, &log)
		}
		if strings.Contains(string(message[:n]), "READY=1") {
			break
		}
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
	if err == nil {
		s.init, err = strconv.Atoi(strings.TrimSpace(string(children)))
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// removeCgroups removes the cgroups of a server that has ended. One may stay busy for a moment
// after its last process has exited.
func removeCgroups(t *testing.T, name string) {
	deadline := time.Now().Add(time.Minute)
	for {
		out, err := exec.Command("sh", "-ec", `for dir in /sys/fs/cgroup/"$1" /sys/fs/cgroup/*/"$1"; do
			[ ! -d "$dir" ] || find "$dir" -depth -type d -exec rmdir {} +; done`, "sh", name).CombinedOutput()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("remove the cgroups %s: %s", name, out)
			return
		}
	}
}

func (s *server) write(name, text string, mode os.FileMode) {
	s.t.Helper()
	path := filepath.Join(s.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
		s.t.Fatal(err)
	}
}

func (s *server) copy(from, to string, mode os.FileMode) {
	s.t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(to, string(data), mode)
}

// command runs a program on the server, as root or another user, in a directory.
func (s *server) command(ctx context.Context, user, dir string, args ...string) *exec.Cmd {
	home := "/root"
	if user != "root" {
		home = "/home/" + user
	}
	enter := []string{"--target", strconv.Itoa(s.init), "--all", "--", "runuser", "-u", user, "--", "env", "-i", "-C", dir,
		"HOME=" + home, "USER=" + user, "LOGNAME=" + user, "TERM=xterm", "LANG=C.UTF-8", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	return exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
}

// output runs a program as root, which must succeed.
func (s *server) output(args ...string) string {
	s.t.Helper()
	out, err := s.command(s.t.Context(), "root", "/", args...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

// answers are what the user types after a question.
var answers = []struct {
	question *regexp.Regexp
	answer   string
}{
	{regexp.MustCompile(`\[y/N\] $`), "y"},
	{regexp.MustCompile(`\[Y/n\] $`), "y"},
	{regexp.MustCompile(`\[f/a/K/d\] $`), ""},
	{regexp.MustCompile(`CLAUDE_CODE_OAUTH_TOKEN: $`), "readme-token"},
}

// script runs commands on a terminal, as the user "me" in a directory, and returns the
// terminal's output. Each command must succeed.
func (s *server) script(dir, commands string) string {
	s.t.Helper()
	s.write("tmp/script", "set -eux\n"+commands, 0o644)
	run(s.t, "cp", filepath.Join(s.root, "tmp/script"), filepath.Join(s.root, "var/tmp/script")) // /tmp may be a tmpfs
	ctx, cancel := context.WithTimeout(s.t.Context(), scriptTimeout)
	defer cancel()
	cmd := s.command(ctx, "me", dir, "bash", "/var/tmp/script")
	terminal, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 40, Cols: 100})
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = terminal.Close() }()
	var out strings.Builder
	answered := 0
	for buf := make([]byte, 4096); ; {
		n, err := terminal.Read(buf)
		out.Write(buf[:n])
		for _, a := range answers {
			if a.question.MatchString(out.String()[answered:]) {
				answered = out.Len()
				if _, err := io.WriteString(terminal, a.answer+"\n"); err != nil {
					s.t.Fatal(err)
				}
				break
			}
		}
		if errors.Is(err, syscall.EIO) || errors.Is(err, io.EOF) {
			break // the last process has closed the terminal
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	if err := cmd.Wait(); err != nil {
		s.t.Fatalf("%v\n%s", err, &out)
	}
	return strings.ReplaceAll(out.String(), "\r", "")
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func lookPath(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}
