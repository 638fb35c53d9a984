package buildkit

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// listenInWorld listens on a public address of the lab's outside world.
func listenInWorld(t *testing.T) net.Listener {
	t.Helper()
	type result struct {
		l   net.Listener
		err error
	}
	out := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked
		var r result
		f, err := os.Open(os.Getenv("LAB_WORLD_NETNS"))
		if r.err = err; err == nil {
			if r.err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); r.err == nil {
				r.l, r.err = net.Listen("tcp", "198.51.101.10:0")
			}
			_ = f.Close()
		}
		out <- r
	}()
	r := <-out
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.l
}

// serve serves HTTP until the test ends and returns the server's URL.
func serve(t *testing.T, l net.Listener, h http.Handler) string {
	t.Helper()
	s := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l) // only reports that the server was closed
	}()
	t.Cleanup(func() {
		must(t, s.Close())
		<-done
	})
	return "http://" + l.Addr().String()
}

// repository creates a bare repository NAME.git in served from a work tree's files, as a
// static server can serve it.
func repository(t *testing.T, served, name string, files map[string]string) {
	t.Helper()
	work := t.TempDir()
	for file, text := range files {
		if err := os.WriteFile(filepath.Join(work, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	bare := filepath.Join(served, name+".git")
	for _, args := range [][]string{
		{"init", "-q", "-b", "main"}, {"add", "."},
		// A submodule's commit need not exist.
		{"update-index", "--add", "--cacheinfo", "160000," + strings.Repeat("1", 40) + ",sub"},
		{"commit", "-qm", "first"}, {"clone", "-q", "--bare", ".", bare}, {"-C", bare, "update-server-info"},
	} {
		if _, ok := files[".gitmodules"]; !ok && args[0] == "update-index" {
			continue
		}
		cmd := exec.Command("git", append([]string{"-c", "user.name=A Person", "-c", "user.email=a@example.com"}, args...)...)
		cmd.Dir = work
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %q: %v\n%s", args, err, out)
		}
	}
}

// TestStepRepositories: git repositories, as contexts, in ADD and as submodules, are
// fetched through the steps' proxy, and neither from the host's loopback interface nor
// with ssh. The control is the host's network.
func TestStepRepositories(t *testing.T) {
	b := newBuilder(t)
	var reached atomic.Int32
	loopback, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	victim := serve(t, loopback, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached.Add(1)
		http.NotFound(w, r)
	}))
	served := t.TempDir()
	const dockerfile = "FROM scratch\nCOPY Dockerfile /\n"
	repository(t, served, "good", map[string]string{"Dockerfile": dockerfile})
	repository(t, served, "evil", map[string]string{
		"Dockerfile": dockerfile, ".gitmodules": "[submodule \"sub\"]\n\tpath = sub\n\turl = " + victim + "/victim.git\n",
	})
	l := listenInWorld(t)
	world := serve(t, l, http.FileServer(http.Dir(served)))
	path := os.Getenv("PATH")

	attempts := map[string]func() error{
		"context":   func() error { return b.buildURL(victim + "/victim.git") },
		"submodule": func() error { return b.buildURL(world + "/evil.git") },
		"ADD": func() error {
			b.write("Dockerfile", "FROM scratch\nADD "+victim+"/victim.git /sub\n")
			_, err := b.build(Request{})
			return err
		},
	}
	b.proxied(l.Addr().String())
	for name, attempt := range attempts {
		if err := attempt(); err == nil {
			t.Errorf("%s: no error", name)
		}
		if n := reached.Swap(0); n > 0 {
			t.Errorf("%s: %d requests reached the host's loopback interface", name, n)
		}
	}
	socket, _ := sshAgent(t, 0)
	if _, err := b.build(Request{Context: "ssh://git@198.51.101.22/demo.git", Dockerfile: "Dockerfile", SSH: []SSHAgent{{Socket: socket}}}); err == nil || !strings.Contains(err.Error(), "transport 'ssh' not allowed") {
		t.Errorf("ssh: %v", err)
	}
	if err := b.buildURL(world + "/good.git"); err != nil {
		t.Errorf("an allowed host: %v\n%s", err, b.log.String())
	}
	b.write("Dockerfile", "FROM scratch\nADD --keep-git-dir=true "+world+"/good.git /x\n")
	if _, err := b.build(Request{NoCache: true}); err != nil {
		t.Errorf("ADD from an allowed host: %v\n%s", err, b.log.String())
	}
	b.proxied("allowed.test")
	if err := b.buildURL(world + "/good.git"); err == nil {
		t.Error("a host that is not allowed was reached")
	}
	if got := os.Getenv("PATH"); got != path {
		t.Errorf("PATH is %s", got)
	}
	b.cfg.StepProxy = nil
	for name, attempt := range attempts {
		_ = attempt() // the victim has no repository
		if reached.Swap(0) == 0 {
			t.Errorf("control: %s: nothing reached the host's loopback interface", name)
		}
	}
}

func (b *builder) buildURL(url string) error {
	_, err := b.build(Request{Context: url, Dockerfile: "Dockerfile", NoCache: true})
	return err
}
