package audit

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/internal/hint"
)

func granted(v bool) *bool { return &v }

// full is an event with all fields, two of which an agent has chosen.
var full = Event{
	Kind: Signature, Bottle: "claude-bottle-impl.u1000", Agent: "impl", Manifest: "/home/u/bottle.yaml", ManifestSHA256: "aa",
	Image: "x.test/y:1", ImageDigest: "sha256:bb", PolicySHA256: "cc", Runtime: "runsc", Proxy: "builtin", Program: "claude",
	Action: "exec", Entry: "a.test", Entries: []string{"a.test", "b.test"}, Secret: "TOKEN", Source: "environment",
	Host: "git.test", HostKey: "SHA256:h", Login: "git\n{\"event\":\"end\"}\u202e\x1b[2J\xff", Key: "SHA256:k", Granted: granted(false),
	PolicyKey: "learn", Reason: strings.Repeat("é", maxText), Error: "failed",
}

func login(id uint32) *uint32 { return &id }

var somebody = Who{UID: 1000, SudoUser: "alice", LoginUID: login(1000), Command: "run"}

func openWith(s sink, onFailure string, warn func(error)) *Log {
	l := Open(Config{To: Syslog, OnFailure: onFailure}, somebody, warn)
	l.sink = s
	return l
}

func noWarning(t *testing.T) func(error) {
	return func(err error) { t.Errorf("unexpected warning: %v", err) }
}

// listen receives datagrams, and the content of files that are sent instead.
func listen(t *testing.T) (path string, receive func() (data []byte, asFile bool)) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return path, func() ([]byte, bool) {
		t.Helper()
		data, oob := make([]byte, 1<<20), make([]byte, 1024)
		n, m, _, _, err := c.ReadMsgUnix(data, oob)
		if err != nil {
			t.Fatal(err)
		}
		if m == 0 {
			return data[:n], false
		}
		if n != 0 {
			t.Errorf("%d bytes came with a file", n)
		}
		messages, err := unix.ParseSocketControlMessage(oob[:m])
		if err != nil {
			t.Fatal(err)
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			t.Fatalf("%v, %v", fds, err)
		}
		f := os.NewFile(uintptr(fds[0]), "received")
		defer func() { _ = f.Close() }()
		const all = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
		if seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); err != nil || seals&all != all {
			t.Errorf("seals %x, %v", seals, err)
		}
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		content := make([]byte, st.Size())
		if _, err := f.ReadAt(content, 0); err != nil {
			t.Fatal(err)
		}
		return content, true
	}
}

// parseEntry parses an entry of the journal's native protocol.
func parseEntry(t *testing.T, data []byte) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for len(data) > 0 {
		name, rest, ok := bytes.Cut(data, []byte{'\n'})
		if !ok || bytes.ContainsRune(name, '=') || len(rest) < 8 {
			t.Fatalf("unexpected %.80q", data)
		}
		size := binary.LittleEndian.Uint64(rest)
		if uint64(len(rest)) < 8+size+1 || rest[8+size] != '\n' {
			t.Fatalf("field %s of %d bytes in %.80q", name, size, rest)
		}
		out[string(name)] = append(out[string(name)], string(rest[8:8+size]))
		data = rest[8+size+1:]
	}
	return out
}

// TestJournal: an entry has all fields under their documented names, and values of an
// agent cannot add others.
func TestJournal(t *testing.T) {
	path, receive := listen(t)
	if err := openWith(journal{path}, Stop, noWarning(t)).Write(full); err != nil {
		t.Fatal(err)
	}
	data, asFile := receive()
	if asFile {
		t.Error("a small entry was sent as a file")
	}
	got := parseEntry(t, data)
	for _, f := range fields(&record{}) {
		if got["BOTTLE_"+strings.ToUpper(f.name)] == nil {
			t.Errorf("missing field %s", f.name)
		}
		delete(got, "BOTTLE_"+strings.ToUpper(f.name))
	}
	want := map[string]string{"PRIORITY": "3", "SYSLOG_FACILITY": "10", "SYSLOG_IDENTIFIER": "bottle"}
	for name, value := range want {
		if !slices.Equal(got[name], []string{value}) {
			t.Errorf("%s = %q, want %q", name, got[name], value)
		}
		delete(got, name)
	}
	if m := got["MESSAGE"]; len(m) != 1 || !strings.HasPrefix(m[0], "signature: claude-bottle-impl.u1000: ") {
		t.Errorf("message %q", m)
	}
	delete(got, "MESSAGE")
	if len(got) != 0 {
		t.Errorf("unexpected fields %v", got)
	}
	again := parseEntry(t, data)
	if v := again["BOTTLE_ENTRIES"]; !slices.Equal(v, full.Entries) {
		t.Errorf("entries %q", v)
	}
	if v := again["BOTTLE_LOGIN"]; !slices.Equal(v, []string{`git<U+000A>{"event":"end"}<U+202E><U+001B>[2J<U+FFFD>`}) {
		t.Errorf("login %q", v)
	}
	if v := again["BOTTLE_REASON"][0]; len(v) > maxText+len("…") || !strings.HasSuffix(v, "é…") {
		t.Errorf("reason of %d bytes", len(v))
	}
}

// TestLargeEntry: an entry that is too large for a datagram arrives as a sealed file.
func TestLargeEntry(t *testing.T) {
	path, receive := listen(t)
	var b bytes.Buffer
	large := strings.Repeat("x", 16<<20)
	appendField(&b, "MESSAGE", large)
	if err := (journal{path}).send(b.Bytes()); err != nil {
		t.Fatal(err)
	}
	data, asFile := receive()
	if got := parseEntry(t, data); !asFile || got["MESSAGE"][0] != large {
		t.Errorf("a file: %v, %d bytes", asFile, len(data))
	}
}

var rfc5424 = regexp.MustCompile(`^<(\d+)>1 (\S+) (\S+) bottle (\d+) ([a-z_]+) - (\{.*\})$`)

func TestSyslog(t *testing.T) {
	path, receive := listen(t)
	l := openWith(syslog{path, hostname()}, Stop, noWarning(t))
	for _, c := range []struct {
		event    Event
		priority int
	}{{full, 83}, {Event{Kind: Start}, 86}, {Event{Kind: Refusal}, 84}, {Event{Kind: Signature, Granted: granted(true)}, 86}, {Event{Kind: Signature, Granted: granted(false)}, 84}} {
		if err := l.Write(c.event); err != nil {
			t.Fatal(err)
		}
		data, _ := receive()
		m := rfc5424.FindStringSubmatch(string(data))
		if m == nil {
			t.Errorf("unexpected message %q", data)
			continue
		}
		if m[1] != strconv.Itoa(c.priority) || m[4] != strconv.Itoa(os.Getpid()) || m[5] != c.event.Kind {
			t.Errorf("priority %s, want %d: %s", m[1], c.priority, data)
		}
		if _, err := time.Parse(time.RFC3339Nano, m[2]); err != nil {
			t.Error(err)
		}
		checkLine(t, m[6], c.event)
	}
}

// checkLine checks the JSON of an event.
func checkLine(t *testing.T, line string, e Event) {
	t.Helper()
	var r record
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		t.Errorf("%v in %q", err, line)
		return
	}
	if r.Kind != e.Kind || r.UID != 1000 || r.SudoUser != "alice" || r.LoginUID == nil || *r.LoginUID != 1000 || r.PID != os.Getpid() || r.Command != "run" || r.Secret != e.Secret {
		t.Errorf("unexpected line %s", line)
	}
}

// TestAppend: each event is one line of a file that only root can read, also after a line
// that was cut short.
func TestAppend(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := Open(Config{To: path, OnFailure: Stop}, somebody, noWarning(t))
	for _, e := range []Event{full, {Kind: Start}} {
		if err := l.Write(e); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"time":`); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Close(), l.Write(Event{Kind: End})); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".1"); err != nil { // rotated
		t.Fatal(err)
	}
	if err := l.Write(Event{Kind: Session}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path + ".1")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(data), "\n")
	if len(lines) != 5 || lines[2] != `{"time":` || lines[4] != "" {
		t.Fatalf("unexpected lines %q", lines)
	}
	checkLine(t, lines[0], full)
	checkLine(t, lines[1], Event{Kind: Start})
	checkLine(t, lines[3], Event{Kind: End})
	data, err = os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	checkLine(t, strings.TrimSuffix(string(data), "\n"), Event{Kind: Session})
}

// TestConcurrentLines: lines of several writers do not mix.
func TestConcurrentLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	const writers, each = 8, 50
	failed := make(chan error, writers)
	for range writers {
		go func() {
			l := Open(Config{To: path, OnFailure: Stop}, somebody, func(error) {})
			var errs []error
			for range each {
				errs = append(errs, l.Write(full))
			}
			failed <- errors.Join(errs...)
		}()
	}
	for range writers {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(data)) {
		if line != "\n" { // begun by a writer that saw the line of another one arrive
			n++
			checkLine(t, strings.TrimSuffix(line, "\n"), full)
		}
	}
	if n != writers*each {
		t.Errorf("%d lines, want %d", n, writers*each)
	}
}

// TestUnsafeFiles: nothing is written where somebody else chose the place.
func TestUnsafeFiles(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "audit.log"), filepath.Join(dir, "other")
	for name, make := range map[string]func() error{
		"not a regular file":  func() error { return unix.Mkfifo(path, 0o600) },
		"is a directory":      func() error { return os.Mkdir(path, 0o700) },
		"too many levels":     func() error { return os.Symlink(other, path) },
		"hard links":          func() error { return os.Link(other, path) },
		"writable by others":  func() error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o602)) },
		"writable by others ": func() error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Chmod(path, 0o620)) },
	} {
		if err := errors.Join(os.RemoveAll(path), os.WriteFile(other, []byte("x"), 0o600), make()); err != nil {
			t.Fatal(err)
		}
		err := Open(Config{To: path, OnFailure: Stop}, somebody, noWarning(t)).Write(full)
		if err == nil || !strings.Contains(err.Error(), strings.TrimSpace(name)) {
			t.Errorf("%s: %v", name, err)
		}
		if data, err := os.ReadFile(other); err != nil || string(data) != "x" {
			t.Errorf("%s: the other file has %q, %v", name, data, err)
		}
	}
}

// TestFailures: a sink that fails stops what an event describes, or is reported once.
func TestFailures(t *testing.T) {
	dir := t.TempDir()
	for name, s := range map[string]sink{
		"journal": journal{filepath.Join(dir, "none")}, "syslog": syslog{filepath.Join(dir, "none"), "-"}, "file": file{filepath.Join(dir, "none", "log")},
	} {
		err := openWith(s, Stop, noWarning(t)).Write(full)
		if !errors.Is(err, os.ErrNotExist) || !strings.HasPrefix(err.Error(), "write the audit log to syslog: ") || !strings.Contains(hint.Of(err), "audit.on_failure") {
			t.Errorf("%s: %v; hint: %s", name, err, hint.Of(err))
		}
		for _, mode := range []string{Continue, ""} {
			var warnings []error
			l := openWith(s, mode, func(err error) { warnings = append(warnings, err) })
			if err := errors.Join(l.Write(full), l.Write(full)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if len(warnings) != 1 || !errors.Is(warnings[0], os.ErrNotExist) {
				t.Errorf("%s: warnings %v", name, warnings)
			}
		}
	}
}

// TestOff: nothing is written if nothing is configured.
func TestOff(t *testing.T) {
	l := Open(Config{}, somebody, noWarning(t))
	if l != nil {
		t.Fatal("there is a log")
	}
	if err := l.Write(full); err != nil {
		t.Error(err)
	}
}

func TestLoginUID(t *testing.T) {
	path := filepath.Join(t.TempDir(), "loginuid")
	for text, want := range map[string]*uint32{"4294967295": nil, "1000": login(1000), "0": login(0), "1000\n": login(1000), "": nil, "x": nil, "-1": nil} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := loginUID(path); (got == nil) != (want == nil) || got != nil && *got != *want {
			t.Errorf("%q: got %v", text, got)
		}
	}
	if got := loginUID(path + "none"); got != nil {
		t.Errorf("without a file: %d", *got)
	}
	// This process's own.
	data, err := os.ReadFile("/proc/self/loginuid")
	if err == nil && !bytes.HasPrefix(data, []byte("4294967295")) != (Current(1000, "run").LoginUID != nil) {
		t.Errorf("the kernel has %s", data)
	}
}

func TestCheckTarget(t *testing.T) {
	for _, ok := range []string{Journald, Syslog, "/var/log/bottle.log"} {
		if _, err := CheckTarget(ok); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "/", "bottle.log", "/a/../b", "journal"} {
		if _, err := CheckTarget(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// TestManyEntries: a list is bounded.
func TestManyEntries(t *testing.T) {
	e := full
	e.Entries = make([]string, 1000)
	r := &record{Event: e}
	r.clean()
	if len(r.Entries) != maxEntries+1 || r.Entries[maxEntries] != "…" || len(e.Entries) != 1000 {
		t.Errorf("%d entries", len(r.Entries))
	}
}
