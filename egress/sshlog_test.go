package egress

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
)

// sshLogAt returns a log at path whose clock starts at start and advances by step with
// each line.
func sshLogAt(t *testing.T, path string, start time.Time, step time.Duration) *SSHLog {
	t.Helper()
	l, err := OpenSSHLog(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	l.now = func() time.Time { defer func() { start = start.Add(step) }(); return start }
	return l
}

func readAll(t *testing.T, paths ...string) []Entry {
	t.Helper()
	var out []Entry
	for e, err := range MergeLogs(t.Context(), false, paths...) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// A signature has a line with everything that is known about it. What the sandbox chose
// is bounded, and contains neither secrets nor what a terminal would obey.
func TestSSHLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ssh.log")
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	l := sshLogAt(t, path, start, time.Second)
	granted := Signature{Host: "work", HostKey: "SHA256:host", User: "me@corp", Key: "SHA256:key", HostBound: true}
	hostile := Signature{User: "\x1b]0;x\a\u202e" + testSecret + strings.Repeat("u", 2*maxLogText)}
	if err := errors.Join(l.Granted(granted), l.Refused(hostile, ScannerSSH, "unknown key\nfake"),
		l.Refused(granted, ScannerSSHUnbound, "no host key")); err != nil {
		t.Fatal(err)
	}
	got := readAll(t, path)
	if len(got) != 3 {
		t.Fatalf("%d entries: %+v", len(got), got)
	}
	for i, want := range []struct{ verdict, scanner, reason, destination string }{
		{VerdictAllowed, "", "", "ssh:work"},
		{VerdictRefused, ScannerSSH, "unknown key\nfake", "ssh:(unlisted host)"},
		{VerdictRefused, ScannerSSHUnbound, "no host key", "ssh:work"},
	} {
		e := got[i]
		if e.Verdict() != want.verdict || e.Scanner != want.scanner || e.Reason != want.reason || e.Destination() != want.destination ||
			e.Method != "sign" || !e.Time.Equal(start.Add(time.Duration(i)*time.Second)) {
			t.Errorf("entry %d is %+v, want %+v", i, e, want)
		}
	}
	if *got[0].SSH != granted || *got[2].SSH != granted {
		t.Errorf("signatures %+v, %+v", *got[0].SSH, *got[2].SSH)
	}
	if user := got[1].SSH.User; strings.Contains(user, testSecret) || len(user) > maxLogText+len("…") {
		t.Errorf("user %q", user)
	}
	data, err := os.ReadFile(path)
	if err != nil || strings.ContainsFunc(string(data), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) || strings.Count(string(data), "\n") != 3 {
		t.Errorf("the file has %q, %v", data, err)
	}
}

// Refused signatures without end stay within the bounds of the log on disk.
func TestSSHLogBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ssh.log")
	l := sshLogAt(t, path, time.Now(), 0)
	l.file.maxSize = 20 << 10
	longest := Signature{User: strings.Repeat("\x01", maxLogText), Key: "SHA256:key"}
	const lines = 500
	for range lines {
		if err := l.Refused(longest, ScannerSSH, strings.Repeat("r", 2*maxLogText)); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != 1+rotatedFiles {
		t.Fatalf("files %v, %v", files, err)
	}
	for _, f := range files {
		if fi, err := os.Stat(f); err != nil || fi.Size() > l.file.maxSize {
			t.Errorf("%s: %d bytes, %v", f, fi.Size(), err)
		}
	}
	if kept := len(readAll(t, path)); kept == 0 || kept >= lines {
		t.Errorf("%d of %d lines are kept", kept, lines)
	}
}

// A signature that cannot be logged is an error, with which the agent refuses it.
func TestSSHLogFull(t *testing.T) {
	l := sshLogAt(t, filepath.Join(t.TempDir(), "ssh.log"), time.Now(), 0)
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	l.file.file = full
	if err := l.Granted(Signature{Host: "work"}); err == nil {
		t.Error("no error")
	}
}

func requestAt(at time.Time, host string) string {
	return fmt.Sprintf(`{"time":%q,"event":"blocked","target":"%s:443","scanner":"allowlist"}`+"\n", at.Format(time.RFC3339Nano), host)
}

// Entries of two logs are read in the order of their times, also across rotated files.
func TestMergeLogs(t *testing.T) {
	dir := t.TempDir()
	egressPath, sshPath := filepath.Join(dir, "egress.log"), filepath.Join(dir, "ssh.log")
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	k, err := openLogFile(egressPath, maxLogSize)
	if err != nil {
		t.Fatal(err)
	}
	l := sshLogAt(t, sshPath, start.Add(time.Second), 2*time.Second)
	l.file.maxSize = 512
	var want []string
	for i := range 10 {
		if err := k.write([]byte(requestAt(start.Add(2*time.Duration(i)*time.Second), fmt.Sprint(i)))); err != nil {
			t.Fatal(err)
		}
		if err := l.Granted(Signature{Host: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprintf("%d:443", i), fmt.Sprintf("ssh:%d", i))
	}
	var got []string
	for _, e := range readAll(t, egressPath, sshPath) {
		got = append(got, e.Destination())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if got := readAll(t, egressPath, filepath.Join(dir, "none")); len(got) != 10 {
		t.Errorf("without the second log: %d entries", len(got))
	}
	hosts, err := Summarize(MergeLogs(t.Context(), false, egressPath, sshPath))
	if err != nil || len(hosts) != 20 {
		t.Errorf("summary of %d destinations, %v", len(hosts), err)
	}
}

// A follower gets the lines of both logs as they arrive, whichever is idle, and ends with
// its reader or the directory.
func TestMergeFollows(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bottle")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	egressPath, sshPath := filepath.Join(dir, "egress.log"), filepath.Join(dir, "ssh.log")
	k, err := openLogFile(egressPath, maxLogSize)
	if err != nil {
		t.Fatal(err)
	}
	entries := make(chan Entry)
	go func() {
		defer close(entries)
		for e, err := range MergeLogs(t.Context(), true, egressPath, sshPath) {
			if err != nil {
				t.Error(err)
				return
			}
			entries <- e
		}
	}()
	request := func(host string) {
		t.Helper()
		if err := k.write([]byte(requestAt(time.Now(), host))); err != nil {
			t.Fatal(err)
		}
		if e := <-entries; e.Destination() != host+":443" {
			t.Errorf("got %+v, want %s", e, host)
		}
	}
	request("first.test")
	l := sshLogAt(t, sshPath, time.Now(), time.Second) // appears while it is followed
	for _, host := range []string{"a", "b"} {
		if err := l.Refused(Signature{Host: host}, ScannerSSH, "no"); err != nil {
			t.Fatal(err)
		}
		if e := <-entries; e.Destination() != "ssh:"+host {
			t.Errorf("got %+v, want %s", e, host)
		}
	}
	request("last.test")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if e, ok := <-entries; ok {
		t.Errorf("entry after the directory was removed: %+v", e)
	}
}

// A follower ends when its reader stops or its context ends, although the logs go on.
func TestMergeEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ssh.log")
	l := sshLogAt(t, path, time.Now(), 0)
	for range 3 {
		if err := l.Granted(Signature{Host: "work"}); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range MergeLogs(t.Context(), true, path, path+".none") {
		if err != nil {
			t.Error(err)
		}
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	for _, err := range MergeLogs(ctx, true, path, path+".none") {
		if err != nil {
			t.Error(err)
		}
		if n++; n == 3 {
			cancel()
		}
	}
	if n != 3 {
		t.Errorf("%d entries", n)
	}
}
