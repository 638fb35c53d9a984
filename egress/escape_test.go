package egress

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// unprintable returns a character of a line that a terminal could obey.
func unprintable(line []byte) (rune, bool) {
	for len(line) > 0 {
		r, n := utf8.DecodeRune(line)
		if r == utf8.RuneError && n == 1 || r != '\t' && !unicode.IsPrint(r) {
			return r, true
		}
		line = line[n:]
	}
	return 0, false
}

// The file of the log can be printed to a terminal: it has no control characters,
// whichever proxy writes the line, and whatever is in it. What readers of the log
// get has them as before.
func TestKeepLogEscapes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "egress.log")
	lines := []struct{ in, want string }{
		{`{"event":"blocked","target":"a\u001b[2Jb` + "\x7f\u009b2J\u202e\u2028é" + `"}`, `{"event":"blocked","target":"a\u001b[2Jb\u007f\u009b2J\u202e\u2028é"}`},
		{`{"event":"blocked","n` + "\u009b" + `":1,"list":["` + "\u009b" + `", {"` + "\U000e0001" + `":` + "\t" + `1}]}`, `{"event":"blocked","n\u009b":1,"list":["\u009b",{"\udb40\udc01":1}]}`},
		{`{"event":"blocked","list":["` + "\x9b\xff" + `"]}`, `{"event":"blocked","list":["\ufffd\ufffd"]}`},
		{"panic: \x1b]0;title\x07 \x9b2J\r over", `panic: \x1b]0;title\x07 \x9b2J\x0d over`},
		{"\tgoroutine 1 \u202e\U000e0001 é", "\tgoroutine 1 \\u202e\\U000e0001 é"},
		{"{\x1b[2J", `{}`},
		{`{"event":"blocked","url":"` + strings.Repeat("\u009b", 20_000) + `","status_code":403}`, `{"event":"blocked","status_code":403}`},
		{strings.Repeat("\x1b", 60_000), strings.Repeat(`\x1b`, (maxLine-1)/4)},
	}
	var in, want strings.Builder
	for _, l := range lines {
		in.WriteString(l.in + "\n")
		want.WriteString(l.want + "\n")
	}
	if err := KeepLog(path, nil, strings.NewReader(in.String())); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want.String() {
		t.Errorf("%v, got\n%.3000s\nwant\n%.3000s", err, got, want.String())
	}
	l, err := OpenLog(t.Context(), path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for e, err := range ParseLog(l) {
		if want := "a\x1b[2Jb\x7f\u009b2J\u202e\u2028é"; err != nil || e.Target != want {
			t.Errorf("the first entry is for %q, want %q", e.Target, want)
		}
		break
	}
}

// An agent's control characters get from a request into the file only as escapes.
func TestRefusalsAreEscaped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "egress.log")
	in, out := io.Pipe()
	kept := make(chan error, 1)
	go func() { kept <- KeepLog(path, nil, in) }()
	p := startProxy(t, Config{})
	p.Server.log.mu.Lock()
	p.Server.log.w = out
	p.Server.log.mu.Unlock()
	requests := []string{
		"CONNECT a\u009b2Jb\u202e:443 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET http://a/\u009b2J\xff\xe2\x80\xae HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET \u009b2J HTTP/1.1\r\nHost: x\r\n\r\n",
		"\x1b[2J\r\n\r\n",
	}
	for _, text := range requests {
		p.raw(t, "GET", text)
	}
	_ = out.Close()
	if err := <-kept; err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(path)
	if err != nil || bytes.Count(log, []byte("\n")) != len(requests) {
		t.Fatalf("%v, %d lines, want %d", err, bytes.Count(log, []byte("\n")), len(requests))
	}
	for line := range bytes.Lines(log) {
		if r, ok := unprintable(bytes.TrimSuffix(line, []byte("\n"))); ok {
			t.Errorf("%q has %q", line, r)
		}
	}
	if !bytes.Contains(log, []byte(`\u009b2J`)) {
		t.Errorf("the log does not show what was requested: %s", log)
	}
}

// FuzzEscapeLine: a line has no control characters, fits readers of the log, and an
// object has the same value as before.
func FuzzEscapeLine(f *testing.F) {
	f.Add("{\"a\u009b\":[\"\\u001b\", 1 ]}")
	f.Add("panic: \x1b\xff\t")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "\n") {
			return
		}
		got := escapeLine([]byte(text))
		if r, ok := unprintable(got); ok {
			t.Errorf("%q became %q, which has %q", text, got, r)
		}
		if len(got) >= maxLine {
			t.Errorf("%d bytes became %d", len(text), len(got))
		}
		var before, after map[string]any
		if json.Unmarshal([]byte(text), &before) != nil || text[0] != '{' || len(text) > maxLine/6 {
			return
		}
		if err := json.Unmarshal(got, &after); err != nil || !reflect.DeepEqual(before, after) {
			t.Errorf("%q became %q: %v", text, got, err)
		}
	})
}
