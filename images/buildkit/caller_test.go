package buildkit

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tonistiigi/fsutil"
	"golang.org/x/crypto/ssh/agent"

	"github.com/bot-bottle/bottle/internal/asuser"
)

// Ids of a user who need not exist.
var alice = asuser.User{UID: 41001, GID: 42001, Groups: []int{42002}}

// newCallerBuilder returns a builder whose context belongs to the caller.
func newCallerBuilder(t *testing.T) *builder {
	t.Helper()
	b := newBuilder(t)
	for _, dir := range []string{b.dir, filepath.Dir(b.dir)} {
		must(t, os.Chmod(dir, 0o755))
	}
	must(t, os.Chown(b.dir, alice.UID, alice.GID))
	return b
}

func (b *builder) writeAs(name string, uid, gid int, mode fs.FileMode) string {
	b.t.Helper()
	b.write(name, "content of "+name)
	path := filepath.Join(b.dir, name)
	must(b.t, errors.Join(os.Chown(path, uid, gid), os.Chmod(path, mode)))
	return path
}

// TestCaller: whatever the build reads on the caller's behalf is read with the
// caller's rights. The control is the same build for root.
func TestCaller(t *testing.T) {
	const copyAll = "FROM scratch\nCOPY . /context/\n"
	victim := func(b *builder) string { return b.writeAs("victim", 0, 0, 0o600) }
	closed := func(b *builder) string {
		dir := filepath.Dir(b.writeAs("closed/file", alice.UID, alice.GID, 0o644))
		must(b.t, os.Chmod(dir, 0o700))
		return dir
	}
	for name, c := range map[string]struct {
		dockerfile string
		prepare    func(b *builder, req *Request) (unreadable string)
		readable   bool // by the caller
		file       string
	}{
		"own file":         {copyAll, func(b *builder, _ *Request) string { return b.writeAs("own", alice.UID, alice.GID, 0o600) }, true, "context/own"},
		"group's file":     {copyAll, func(b *builder, _ *Request) string { return b.writeAs("group", 0, 42002, 0o640) }, true, "context/group"},
		"root's file":      {copyAll, func(b *builder, _ *Request) string { return victim(b) }, false, "context/victim"},
		"only root's file": {"FROM scratch\nCOPY victim /\n", func(b *builder, _ *Request) string { return victim(b) }, false, "victim"},
		"directory":        {copyAll, func(b *builder, _ *Request) string { return closed(b) }, false, "context/closed/file"},
		"path through a directory": {"FROM scratch\nCOPY file /\n", func(b *builder, req *Request) string {
			req.Context = closed(b)
			return req.Context
		}, false, "file"},
		"named context": {"FROM scratch\nCOPY --from=more file /\n", func(b *builder, req *Request) string {
			req.Contexts = map[string]string{"more": closed(b)}
			return req.Contexts["more"]
		}, false, "file"},
		"link to a directory": {"FROM scratch\nCOPY --from=more file /\n", func(b *builder, req *Request) string {
			link := filepath.Join(b.dir, "link")
			must(b.t, os.Symlink(closed(b), link))
			req.Contexts = map[string]string{"more": link}
			return link
		}, false, "file"},
		"secret": {"FROM bottle-demo:latest\nUSER root\nRUN --mount=type=secret,id=s cp /run/secrets/s /s\n", func(b *builder, req *Request) string {
			req.Secrets = []Secret{{ID: "s", File: victim(b)}}
			return req.Secrets[0].File
		}, false, "s"},
		"Dockerfile": {"", func(b *builder, _ *Request) string {
			b.write("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")
			path := filepath.Join(b.dir, "Dockerfile")
			must(b.t, os.Chmod(path, 0o600))
			return path
		}, false, "Dockerfile"},
		"excluded file": {copyAll, func(b *builder, _ *Request) string {
			b.write(".dockerignore", "victim\nclosed\n")
			closed(b)
			victim(b)
			return b.writeAs("own", alice.UID, alice.GID, 0o600)
		}, true, "context/own"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newCallerBuilder(t)
			if c.dockerfile != "" {
				b.write("Dockerfile", c.dockerfile)
			}
			req := Request{Names: []string{b.ref()}, Caller: alice}
			path := c.prepare(b, &req)
			_, err := b.build(req)
			if c.readable && err != nil {
				t.Errorf("%v\n%s", err, b.log.String())
			}
			if !c.readable && (!errors.Is(err, ErrUnreadable) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("got %v, want ErrUnreadable with %s", err, path)
			}
			if _, err := b.c.ImageService().Get(b.ctx, b.ref()); c.readable != (err == nil) {
				t.Errorf("image: %v", err)
			}
			req.Caller = asuser.User{}
			b.good(req)
			if _, files := b.read(b.ref(), c.file); files[c.file] == "" {
				t.Errorf("control: %s is not in the image", c.file)
			}
		})
	}
}

// TestCallerFS replaces files during and after a walk: the rights are checked whenever
// something is read. The control reads as root.
func TestCallerFS(t *testing.T) {
	dir := t.TempDir()
	must(t, errors.Join(os.Chmod(dir, 0o777), os.Chmod(filepath.Dir(dir), 0o755)))
	sub := filepath.Join(dir, "sub")
	for _, control := range []bool{false, true} {
		must(t, os.RemoveAll(sub))
		must(t, os.Mkdir(sub, 0o755))
		large := strings.Repeat("0123456789", bufferSize/2)
		for name, text := range map[string]string{"file": "the caller's", "large": large, "other": ""} {
			must(t, os.WriteFile(filepath.Join(sub, name), []byte(text), 0o644))
		}
		user := alice
		if control {
			user = asuser.User{}
		}
		in, err := newInputs(Request{Caller: user})
		if err != nil {
			t.Fatal(err)
		}
		mounts := map[string]fsutil.FS{}
		must(t, in.mount(mounts, "context", dir))
		dirFS := mounts["context"]
		open, err := dirFS.Open("sub/large")
		if err != nil {
			t.Fatal(err)
		}
		var later fs.DirEntry
		must(t, dirFS.Walk(context.Background(), "/", func(path string, e fs.DirEntry, err error) error {
			if path == "sub/other" {
				later = e
			}
			return err
		}))
		must(t, os.Chmod(sub, 0o700))
		// An open file stays readable, as everywhere.
		if data, err := io.ReadAll(open); err != nil || string(data) != large {
			t.Errorf("open file: %d bytes, %v", len(data), err)
		}
		must(t, open.Close())
		_, ierr := later.Info()
		f, oerr := dirFS.Open("sub/file")
		var data []byte
		if oerr == nil {
			data, oerr = io.ReadAll(f)
			must(t, f.Close())
		}
		werr := dirFS.Walk(context.Background(), "/", func(_ string, _ fs.DirEntry, err error) error { return err })
		if _, err := dirFS.Open("missing"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("missing file: %v", err)
		}
		for what, err := range map[string]error{"metadata": ierr, "content": oerr, "directory": werr} {
			if control && err != nil || !control && !errors.Is(err, ErrUnreadable) {
				t.Errorf("as uid %d: %s: %v", user.UID, what, err)
			}
		}
		if want := map[bool]string{true: "the caller's"}[control]; string(data) != want {
			t.Errorf("as uid %d: read %q, want %q", user.UID, data, want)
		}
		in.close()
	}
}

// TestTar builds a context from a tar archive, plain and compressed, with a
// Dockerfile in it.
func TestTar(t *testing.T) {
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	for name, text := range map[string]string{
		"Dockerfile": "FROM scratch\nCOPY given /default\n", "sub/Make.file": "FROM scratch\nCOPY given /named\n", "given": "given", ".dockerignore": "ignored\n", "ignored": "",
	} {
		must(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}))
		_, err := io.WriteString(w, text)
		must(t, err)
	}
	must(t, w.Close())
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, err := z.Write(plain.Bytes())
	must(t, errors.Join(err, z.Close()))
	b := newBuilder(t)
	for name, c := range map[string]struct {
		archive    []byte
		dockerfile string
		file       string
	}{
		"plain": {plain.Bytes(), "Dockerfile", "default"}, "gzip": {zipped.Bytes(), "Dockerfile", "default"},
		"other Dockerfile": {zipped.Bytes(), "sub/Make.file", "named"},
	} {
		if !IsArchive(c.archive[:min(len(c.archive), ArchiveHeader)]) {
			t.Errorf("%s: not recognised", name)
		}
		b.good(Request{Names: []string{b.ref()}, Tar: bytes.NewReader(c.archive), Dockerfile: c.dockerfile})
		if _, files := b.read(b.ref(), c.file); files[c.file] != "given" {
			t.Errorf("%s: the image contains %q", name, files)
		}
	}
	b.bad(Request{Tar: bytes.NewReader(zipped.Bytes()), Dockerfile: "missing/Dockerfile"}, "missing/Dockerfile")
	b.bad(Request{Tar: bytes.NewReader(zipped.Bytes()[:zipped.Len()/2]), Dockerfile: "Dockerfile"}, "unexpected EOF")
	for _, text := range []string{"", "FROM scratch\n", "# syntax=docker/dockerfile:1\nFROM scratch\n" + strings.Repeat("#", 600)} {
		if IsArchive([]byte(text)[:min(len(text), ArchiveHeader)]) {
			t.Errorf("%q is recognised as an archive", text)
		}
	}
}

// sshAgent serves an agent with one key on a socket with the given owner and mode.
func sshAgent(t *testing.T, uid int) (socket string, keys agent.Agent) {
	t.Helper()
	dir := t.TempDir()
	socket = filepath.Join(dir, "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, l.Close()) })
	must(t, errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755), os.Chmod(socket, 0o600), os.Chown(socket, uid, 0)))
	keys = agent.NewKeyring()
	must(t, keys.Add(agent.AddedKey{PrivateKey: newKey(t), Comment: "the caller's key"}))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_ = agent.ServeAgent(keys, c) // ends with the connection
				_ = c.Close()
			}()
		}
	}()
	return socket, keys
}

// TestSSH: a step can list keys and sign with the caller's agent, but neither remove
// keys nor use another user's agent. The control does both without bottle's filter.
func TestSSH(t *testing.T) {
	b := newCallerBuilder(t)
	socket, keys := sshAgent(t, alice.UID)
	client := filepath.Join(b.dir, "client")
	build := exec.Command("go", "build", "-o", client, "./testdata/agentclient")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const dockerfile = `FROM bottle-demo:latest
USER root
RUN --mount=type=bind,source=client,target=/client --mount=type=ssh /client list >/list
RUN --mount=type=bind,source=client,target=/client --mount=type=ssh,id=second /client remove >/removed
`
	b.write("Dockerfile", dockerfile)
	req := Request{Names: []string{b.ref()}, Caller: alice, SSH: []SSHAgent{{Socket: socket}, {ID: "second", Socket: socket}}}
	b.good(req)
	_, files := b.read(b.ref(), "list", "removed")
	if files["list"] != "the caller's key: signed\n" {
		t.Errorf("the step's list of keys is %q", files["list"])
	}
	if files["removed"] != "agent: failure\n" {
		t.Errorf("answer to the removal of keys: %q", files["removed"])
	}
	if left, err := keys.List(); err != nil || len(left) != 1 {
		t.Errorf("the agent's keys are %v, %v", left, err)
	}
	b.write("Dockerfile", "FROM bottle-demo:latest\nRUN --mount=type=ssh,required true\n")
	b.bad(Request{Caller: alice}, "ssh") // not forwarded
	b.write("Dockerfile", dockerfile)
	b.bad(Request{Caller: alice, SSH: []SSHAgent{{Socket: socket + "-missing"}}}, "connect to ssh agent default", "no such file")
	b.bad(Request{Caller: alice, SSH: []SSHAgent{{Socket: socket}, {ID: "default", Socket: socket}}}, "duplicate ssh agent default")

	other, _ := sshAgent(t, 41002)
	req.SSH = []SSHAgent{{Socket: other}}
	if _, err := b.build(req); !errors.Is(err, ErrUnreadable) || !strings.Contains(err.Error(), other) {
		t.Errorf("another user's agent: %v", err)
	}
	req.Caller = asuser.User{}
	b.write("Dockerfile", strings.ReplaceAll(dockerfile, "id=second", "id=default"))
	b.good(req) // control: root can connect
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	must(t, agent.NewClient(conn).RemoveAll())
	must(t, conn.Close())
	if left, err := keys.List(); err != nil || len(left) != 0 {
		t.Errorf("control: the agent's keys are %v, %v", left, err)
	}
}
