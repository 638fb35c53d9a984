package setup

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bot-bottle/bottle/internal/hint"
)

// testHost is a root directory, with systemctl, apt-get and dpkg replaced: a test without root
// cannot run them. scripts/readme runs setup on hosts that have them.
type testHost struct {
	Config
	t        *testing.T
	versions map[string]string // of containerds that answer, by address
	ran      []string
	fail     string // a command that fails
	outputs  map[string]string
}

func newHost(t *testing.T) *testHost {
	h := &testHost{t: t, versions: map[string]string{}, outputs: map[string]string{}}
	h.Config = Config{
		Root: t.TempDir(), Address: "/run/containerd/containerd.sock", CNIPath: "/opt/cni/bin", Arch: "amd64",
		Version: func(_ context.Context, address string) (string, error) {
			if v, ok := h.versions[address]; ok {
				return v, nil
			}
			return "", errors.New("nothing answers")
		},
		Command: func(_ context.Context, name string, args ...string) ([]byte, error) {
			command := strings.Join(append([]string{name}, args...), " ")
			h.ran = append(h.ran, command)
			if h.fail != "" && strings.HasPrefix(command, h.fail) {
				return []byte("it failed"), errors.New("exit status 1")
			}
			switch command {
			case "systemctl restart " + unitName:
				h.versions[PrivateAddress] = "v2.4.1"
			case "systemctl stop " + unitName:
				delete(h.versions, PrivateAddress)
			}
			return []byte(h.outputs[command]), nil
		},
	}
	for _, dir := range []string{"etc/bottle", "run/systemd/system", "usr/local/bin", "var/lib", "var/tmp", "etc/systemd/system", "etc/tmpfiles.d"} {
		if err := os.MkdirAll(filepath.Join(h.Root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func (h *testHost) write(name, text string) {
	h.t.Helper()
	path := filepath.Join(h.Root, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
		h.t.Fatal(err)
	}
}

func (h *testHost) read(name string) string {
	h.t.Helper()
	data, err := os.ReadFile(filepath.Join(h.Root, name))
	if err != nil {
		h.t.Fatal(err)
	}
	return string(data)
}

// files returns all files and directories with their contents.
func (h *testHost) files() map[string]string {
	h.t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(h.Root, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, h.Root)
		if err != nil || name == lockPath {
			return err
		}
		out[name] = ""
		if d.Type().IsRegular() {
			data, err := os.ReadFile(path)
			out[name] = string(data)
			return err
		}
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

// source is a directory with a release of everything; its files contain the given text, "1" or
// "2". The archives of gVisor were made with tar(1) and bzip2(1), as Go writes none; the second has
// another program in gvisor-bin.
func source(t *testing.T, text string) (Files, Checksums) {
	t.Helper()
	dir := t.TempDir()
	for name, data := range map[string][]byte{
		"containerd-9.9.9-linux-amd64.tar.gz":   pack(t, text, "bin/containerd", "bin/ctr", "bin/containerd-shim-runc-v2", "bin/containerd-stress"),
		"cni-plugins-linux-amd64-v9.9.9.tgz":    pack(t, text, "./bridge", "./host-local", "./static", "./vlan"),
		"gvisor-x86_64.tar.bz2":                 readFile(t, "testdata/gvisor-"+text+".tar.bz2"),
		"runc.amd64":                            []byte("runc " + text),
		"containerd-9.9.9-linux-riscv64.tar.gz": nil,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sums := Checksums{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if sums[e.Name()], err = digestOf(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(dir, os.ReadDir, os.Open)
	if err != nil {
		t.Fatal(err)
	}
	return s, sums
}

func pack(t *testing.T, text string, names ...string) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, name := range names {
		data := name + " " + text
		err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(data)), Typeflag: tar.TypeReg})
		if err == nil {
			_, err = w.Write([]byte(data))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (h *testHost) prepare(req Request) *Plan {
	h.t.Helper()
	p, err := Prepare(h.t.Context(), h.Config, req)
	if err != nil {
		h.t.Fatal(err)
	}
	return p
}

func (h *testHost) setUp(req Request) *Plan {
	h.t.Helper()
	p := h.prepare(req)
	if err := p.Apply(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	return p
}

func (h *testHost) undo() []Change {
	h.t.Helper()
	u, err := PrepareUndo(h.Config)
	if err != nil {
		h.t.Fatal(err)
	}
	kept, err := u.Undo(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	return kept
}

// An empty host gets everything, a second setup changes nothing, and undo restores the host.
func TestEmptyHost(t *testing.T) {
	h := newHost(t)
	before := h.files()
	s, sums := source(t, "1")
	req := Request{Sources: []Files{s}, Checksums: sums}
	h.setUp(req)
	for name, want := range map[string]string{
		privateBin + "/containerd":               "bin/containerd 1",
		privateBin + "/containerd-shim-runc-v2":  "bin/containerd-shim-runc-v2 1",
		privateCNI + "/static":                   "./static 1",
		programDir + "/runsc":                    "runsc 1",
		programDir + "/gvisor-bin/gvisor_sentry": "gvisor-bin/gvisor_sentry 1",
		programDir + "/runc":                     "runc 1",
		"/etc/bottle/config.yaml":                "version: 1\naddress: " + PrivateAddress + "\ncni_path: " + privateCNI + "\n",
	} {
		if got := h.read(name); got != want {
			t.Errorf("%s contains %q, want %q", name, got, want)
		}
	}
	if want := "systemctl restart " + unitName; h.ran[len(h.ran)-1] != want {
		t.Errorf("ran %q, want %q at the end", h.ran, want)
	}
	for name := range h.files() {
		if strings.HasSuffix(name, ".bottle-setup") || strings.Contains(name, "stress") || strings.Contains(name, "vlan") {
			t.Errorf("unexpected file %s", name)
		}
	}
	h.Address, h.CNIPath = PrivateAddress, privateCNI // as the new configuration says
	for _, again := range []Request{req, {}} {
		if p := h.prepare(again); len(p.Changes) != 0 {
			t.Errorf("a second setup changes %+v", p.Changes)
		}
	}
	if kept := h.undo(); len(kept) != 0 {
		t.Errorf("undo keeps %+v", kept)
	}
	compare(t, before, h.files())
	if kept := h.undo(); len(kept) != 0 {
		t.Errorf("a second undo keeps %+v", kept)
	}
}

func compare(t *testing.T, want, got map[string]string) {
	t.Helper()
	for name, text := range got {
		if old, ok := want[name]; !ok || old != text {
			t.Errorf("%s: %q, was %q (existed: %v)", name, text, old, ok)
		}
	}
	for name := range want {
		if _, ok := got[name]; !ok {
			t.Errorf("%s is missing", name)
		}
	}
}

// What a complete host has stays: setup only writes the file for reboots.
func TestCompleteHost(t *testing.T) {
	h := newHost(t)
	h.versions[h.Address] = "2.1.0"
	for _, name := range []string{"usr/bin/runsc", "usr/bin/containerd-shim-runsc-v1", "usr/sbin/runc", "opt/cni/bin/bridge", "opt/cni/bin/host-local", "opt/cni/bin/static"} {
		h.write(name, "the host's")
	}
	p := h.setUp(Request{})
	if len(p.Changes) != 1 || p.Changes[0].Target != tmpfilesPath || len(h.ran) != 0 {
		t.Errorf("changes %+v, ran %q", p.Changes, h.ran)
	}
}

// An old containerd is left alone, and setup's own is used.
func TestOldContainerd(t *testing.T) {
	h := newHost(t)
	h.versions[h.Address] = "1.7.24"
	s, sums := source(t, "1")
	h.setUp(Request{Sources: []Files{s}, Checksums: sums})
	if !strings.Contains(h.read("etc/bottle/config.yaml"), PrivateAddress) {
		t.Error("bottle does not use the new containerd")
	}
	for _, command := range h.ran {
		if strings.Contains(command, " containerd.service") {
			t.Errorf("ran %q", command)
		}
	}
}

// A new release replaces what setup has installed, and nothing else.
func TestUpgrade(t *testing.T) {
	h := newHost(t)
	before := h.files()
	old, sums := source(t, "1")
	h.setUp(Request{Sources: []Files{old}, Checksums: sums})
	h.Address, h.CNIPath = PrivateAddress, privateCNI
	h.write("usr/local/bin/runc", "the user's")
	h.ran = nil
	s, sums := source(t, "2")
	p := h.setUp(Request{Sources: []Files{s}, Checksums: sums})
	if got := h.read(privateBin + "/containerd"); got != "bin/containerd 2" {
		t.Errorf("containerd is %q", got)
	}
	if got := h.read("usr/local/bin/runc"); got != "the user's" {
		t.Errorf("the user's runc became %q", got)
	}
	if !slices.ContainsFunc(p.Changes, func(c Change) bool { return c.Action == ActionKeep && c.Target == programDir+"/runc" }) {
		t.Errorf("the plan does not name the file that stays: %+v", p.Changes)
	}
	if !slices.Contains(h.ran, "systemctl restart "+unitName) {
		t.Errorf("ran %q", h.ran)
	}
	if entries, err := os.ReadDir(filepath.Join(h.Root, programDir, "gvisor-bin")); err != nil || len(entries) != 2 ||
		h.read(programDir+"/gvisor-bin/runsc-fd-parking") != "gvisor-bin/runsc-fd-parking 2" {
		t.Errorf("gvisor-bin has %v, %v", entries, err)
	}
	if p := h.prepare(Request{Sources: []Files{s}, Checksums: sums}); len(p.actions) != 0 {
		t.Errorf("a second setup changes %+v", p.Changes)
	}
	kept := h.undo()
	if len(kept) != 1 || kept[0].Target != programDir+"/runc" {
		t.Errorf("kept %+v", kept)
	}
	before["/usr/local/bin/runc"] = "the user's"
	compare(t, before, h.files())
}

// The administrator's configuration is extended, and restored by undo unless it was changed.
func TestConfiguration(t *testing.T) {
	const mine = "version: 1\nusers_may_set: [namespace]\n"
	s, sums := source(t, "1")
	req := Request{Sources: []Files{s}, Checksums: sums}
	t.Run("extended", func(t *testing.T) {
		h := newHost(t)
		h.write("etc/bottle/config.yaml", mine)
		h.setUp(req)
		if got := h.read("etc/bottle/config.yaml"); got != mine+"address: "+PrivateAddress+"\ncni_path: "+privateCNI+"\n" {
			t.Errorf("it became %q", got)
		}
		h.undo()
		if got := h.read("etc/bottle/config.yaml"); got != mine {
			t.Errorf("undo made it %q", got)
		}
	})
	t.Run("changed since", func(t *testing.T) {
		h := newHost(t)
		h.write("etc/bottle/config.yaml", mine)
		h.setUp(req)
		h.write("etc/bottle/config.yaml", "version: 1\n")
		if kept := h.undo(); len(kept) != 1 || kept[0].Target != "/etc/bottle/config.yaml" || h.read("etc/bottle/config.yaml") != "version: 1\n" {
			t.Errorf("kept %+v", kept)
		}
	})
	t.Run("contradicts", func(t *testing.T) {
		h := newHost(t)
		h.write("etc/bottle/config.yaml", "version: 1\naddress: /run/mine.sock\n")
		if _, err := Prepare(t.Context(), h.Config, req); err == nil || !strings.Contains(err.Error(), "/run/mine.sock, and must be "+PrivateAddress) {
			t.Errorf("got %v", err)
		}
	})
}

// After an interruption before any step, setup completes and undo restores everything: once
// by undo directly, and once after another setup.
func TestInterrupted(t *testing.T) {
	s, sums := source(t, "1")
	req := Request{Sources: []Files{s}, Checksums: sums}
	steps := len(newHost(t).prepare(req).actions)
	for n := range steps {
		for _, finish := range []bool{false, true} {
			h := newHost(t)
			before := h.files()
			p := h.prepare(req)
			ctx, cancel := context.WithCancel(t.Context())
			at := 0
			p.cfg.Notify = func(string) {
				if at++; at == len(p.choices)+n {
					cancel()
				}
			}
			if err := p.Apply(ctx); !errors.Is(err, context.Canceled) && n < steps {
				t.Fatalf("step %d: %v", n, err)
			}
			if finish {
				h.setUp(req)
				if got := h.read(privateBin + "/containerd"); got != "bin/containerd 1" || h.versions[PrivateAddress] == "" {
					t.Errorf("step %d: not completed: %q, %v", n, got, h.versions)
				}
			}
			if kept := h.undo(); len(kept) != 0 {
				t.Errorf("step %d: kept %+v", n, kept)
			}
			compare(t, before, h.files())
			cancel()
		}
	}
}

// A user's gvisor-bin stays, and so does a program in it that was changed since. An interruption
// between its programs is completed.
func TestSidecars(t *testing.T) {
	s, sums := source(t, "1")
	req := Request{Sources: []Files{s}, Checksums: sums}
	const sentry, gofer = programDir + "/gvisor-bin/gvisor_sentry", programDir + "/gvisor-bin/checkpointgofer"
	t.Run("the user's", func(t *testing.T) {
		h := newHost(t)
		h.write(sentry, "mine")
		p := h.setUp(req)
		if !slices.ContainsFunc(p.Changes, func(c Change) bool { return c.Action == ActionKeep && c.Target == programDir+"/gvisor-bin/" }) ||
			h.read(sentry) != "mine" || h.exists(gofer) {
			t.Errorf("changes %+v, %q", p.Changes, h.read(sentry))
		}
	})
	t.Run("changed and interrupted", func(t *testing.T) {
		h := newHost(t)
		h.setUp(req)
		h.Address, h.CNIPath = PrivateAddress, privateCNI
		h.write(sentry, "mine")
		if err := os.Remove(h.path(gofer)); err != nil {
			t.Fatal(err)
		}
		h.setUp(req)
		if h.read(sentry) != "mine" || h.read(gofer) != "gvisor-bin/checkpointgofer 1" {
			t.Errorf("%q, %q", h.read(sentry), h.read(gofer))
		}
		if p := h.prepare(req); len(p.actions) != 0 {
			t.Errorf("another setup changes %+v", p.Changes)
		}
		if kept := h.undo(); !slices.ContainsFunc(kept, func(c Change) bool { return c.Target == sentry }) || h.read(sentry) != "mine" || h.exists(gofer) {
			t.Errorf("kept %+v", kept)
		}
	})
	t.Run("missing", func(t *testing.T) {
		h := newHost(t)
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "runsc.tar.gz"), pack(t, "1", "runsc", "containerd-shim-runsc-v1"), 0o600); err != nil {
			t.Fatal(err)
		}
		in := open(t, filepath.Join(dir, "runsc.tar.gz"))
		defer func() { _ = in.Close() }()
		c := choice{name: "runsc.tar.gz", release: releases[1]}
		if err := unpack(in, c, dir, map[string]unpacked{}); err == nil || !strings.Contains(err.Error(), "no gvisor-bin/ in the archive") {
			t.Errorf("got %v", err)
		}
		compare(t, newHost(t).files(), h.files())
	})
}

// A crash between the record and the end of a write leaves a temporary file, which undo and
// another setup find.
func TestCrashDuringWrite(t *testing.T) {
	h := newHost(t)
	before := h.files()
	s, sums := source(t, "1")
	p := h.prepare(Request{Sources: []Files{s}, Checksums: sums})
	if err := p.rec.add(entry{Kind: kindFile, Name: programDir + "/runsc", SHA256: []string{"0"}}); err != nil {
		t.Fatal(err)
	}
	h.write("usr/local/bin/.runsc.bottle-setup", "half")
	h.undo()
	compare(t, before, h.files())
}

// A failing service leaves a host on which undo works.
func TestServiceFails(t *testing.T) {
	h := newHost(t)
	before := h.files()
	s, sums := source(t, "1")
	h.fail = "systemctl restart"
	p := h.prepare(Request{Sources: []Files{s}, Checksums: sums})
	if err := p.Apply(t.Context()); err == nil || !strings.Contains(err.Error(), "it failed") {
		t.Errorf("got %v", err)
	}
	h.undo()
	compare(t, before, h.files())
}

func TestWithoutSystemd(t *testing.T) {
	h := newHost(t)
	if err := os.RemoveAll(filepath.Join(h.Root, "run/systemd")); err != nil {
		t.Fatal(err)
	}
	before := h.files()
	s, sums := source(t, "1")
	p := h.setUp(Request{Sources: []Files{s}, Checksums: sums})
	if p.Start != privateBin+"/containerd --config "+containerdConf || len(h.ran) != 0 {
		t.Errorf("start %q, ran %q", p.Start, h.ran)
	}
	h.undo()
	compare(t, before, h.files())
}

func TestPackages(t *testing.T) {
	h := newHost(t)
	h.write("usr/bin/apt-get", "")
	h.outputs["apt-cache policy containerd"] = "containerd:\n  Candidate: 1.7.24~ds1-6\n"
	h.outputs["apt-cache policy runc"] = "runc:\n  Installed: (none)\n  Candidate: 1.1.15+ds1-2\n"
	h.outputs["apt-cache policy containernetworking-plugins"] = "x:\n  Candidate: 1:1.5.1-2\n"
	h.outputs["apt-get install --simulate --yes --no-install-recommends runc containernetworking-plugins"] =
		"Inst libseccomp2 [2.5.4-1] (2.5.4-2 Debian:13)\nInst runc (1.1.15+ds1-2 Debian:13)\nInst containernetworking-plugins (1.5.1-2 Debian:13)\nConf runc\n"
	s, sums := source(t, "1")
	p := h.setUp(Request{Packages: true, Sources: []Files{s}, Checksums: sums})
	if c := p.Changes[0]; c.Action != ActionPackage || c.Target != "runc containernetworking-plugins" || c.Detail != "new packages: runc, containernetworking-plugins" {
		t.Errorf("got %+v", c)
	}
	if got := h.read("etc/bottle/config.yaml"); !strings.Contains(got, "cni_path: /usr/lib/cni\n") {
		t.Errorf("configuration %q", got)
	}
	if h.exists(programDir+"/runc") || h.exists(privateCNI) || !h.exists(privateBin+"/containerd") {
		t.Error("release files instead of packages, or the reverse")
	}
	h.ran, h.fail = nil, "dpkg --purge runc"
	kept := h.undo()
	if len(kept) != 1 || kept[0].Target != "runc" || !slices.Contains(h.ran, "dpkg --purge containernetworking-plugins") || slices.Contains(h.ran, "dpkg --purge libseccomp2") {
		t.Errorf("kept %+v, ran %q", kept, h.ran)
	}
}

// Every mistake in a source is one error with a hint, and nothing is changed.
func TestBadSources(t *testing.T) {
	s, sums := source(t, "1")
	with := func(name, digest string) Checksums {
		out := Checksums{}
		for n, d := range sums {
			out[n] = d
		}
		out[name] = digest
		return out
	}
	for _, tt := range []struct {
		name string
		req  Request
		want string
	}{
		{"no source", Request{}, "missing containerd, gVisor, runc, CNI plugins"},
		{"not the pinned files", Request{Sources: []Files{s}}, "missing release file containerd-2.4.1-linux-amd64.tar.gz"},
		{"wrong checksum", Request{Sources: []Files{s}, Checksums: with("runc.amd64", strings.Repeat("0", 64))}, "wrong checksum of runc.amd64"},
		{"wrong long checksum", Request{Sources: []Files{s}, Checksums: with("runc.amd64", strings.Repeat("0", 128))}, "wrong checksum of runc.amd64"},
		{"two versions", Request{Sources: []Files{s}, Checksums: with("containerd-9.9.8-linux-amd64.tar.gz", strings.Repeat("0", 64))}, "the checksums name 2 files"},
		{"no apt", Request{Packages: true, Sources: []Files{s}, Checksums: sums}, "--packages needs apt-get"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			before := h.files()
			p, err := Prepare(t.Context(), h.Config, tt.req)
			if err == nil {
				err = p.Apply(t.Context())
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || hint.Of(hint.Split(err)[0]) == "" {
				t.Errorf("got %v, want %q and a hint", err, tt.want)
			}
			compare(t, before, h.files())
		})
	}
}
