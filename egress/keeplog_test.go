package egress

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func logLine(i int) string {
	return fmt.Sprintf(`{"time":"2026-01-02T03:04:05Z","event":"blocked","target":"host%d.test:443","reason":"x"}`+"\n", i)
}

// A log that exceeds its maximum size many times keeps its last lines, complete
// and in order, in files within the limit, while a follower reads it.
func TestKeepLogRotates(t *testing.T) {
	const lines, maxSize = 5000, 20 << 10
	path := filepath.Join(t.TempDir(), "egress.log")
	k, err := openLogFile(path, maxSize)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	follower, err := OpenLog(ctx, path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = follower.Close() }()
	followed := make(chan []int, 1)
	go func() {
		var seen []int
		for e, err := range ParseLog(follower) {
			var n int
			if _, serr := fmt.Sscanf(e.Target, "host%d.test", &n); err != nil || serr != nil {
				break
			}
			if seen = append(seen, n); n == lines-1 {
				break
			}
		}
		followed <- seen
	}()
	in, out := io.Pipe()
	done := make(chan error, 1)
	go func() { done <- k.keep(in, nil) }()
	for i := range lines {
		if _, err := io.WriteString(out, logLine(i)); err != nil {
			t.Fatal(err)
		}
	}
	_ = out.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	// A reader slower than three complete files loses lines, but not their order.
	if seen := <-followed; len(seen) == 0 || seen[len(seen)-1] != lines-1 || !slices.IsSorted(seen) {
		t.Errorf("follower read %d lines, the last ones %v", len(seen), seen[max(0, len(seen)-3):])
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != 1+rotatedFiles {
		t.Errorf("files %v, %v", files, err)
	}
	for _, f := range files {
		if fi, err := os.Stat(f); err != nil || fi.Size() > maxSize {
			t.Errorf("%s: %v, %v", f, fi.Size(), err)
		}
	}
	l, err := OpenLog(t.Context(), path, false)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(l)
	if err != nil {
		t.Fatal(err)
	}
	n := bytes.Count(data, []byte("\n"))
	var want strings.Builder
	for i := lines - n; i < lines; i++ {
		want.WriteString(logLine(i))
	}
	if n < rotatedFiles*maxSize/len(logLine(0)) || string(data) != want.String() {
		t.Errorf("%d lines were kept, but not the last ones", n)
	}
}

// A follower reads lines as they are written, and ends when the directory is removed.
func TestFollowEnds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bottle")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "egress.log")
	l, err := OpenLog(t.Context(), path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	entries := make(chan Entry)
	go func() {
		defer close(entries)
		for e, err := range ParseLog(l) {
			if err != nil {
				t.Error(err)
				return
			}
			entries <- e
		}
	}()
	k, err := openLogFile(path, maxLogSize)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := k.write([]byte(logLine(i))); err != nil {
			t.Fatal(err)
		}
		if e := <-entries; e.Target != fmt.Sprintf("host%d.test:443", i) {
			t.Errorf("entry %d is %+v", i, e)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if e, ok := <-entries; ok {
		t.Errorf("entry after the directory was removed: %+v", e)
	}
}

// Secrets are masked before a line is written to disk, whatever its form, and
// nothing else is changed.
func TestKeepLogMasks(t *testing.T) {
	const secret = "s3cr3t-without-known-form"
	encoded := strings.ReplaceAll(testSecret, "_", "%5f")
	path := filepath.Join(t.TempDir(), "egress.log")
	lines := []struct{ in, want string }{
		{`{"event":"blocked","url":"http://u:` + secret + `@h.test/p?k=` + secret + `","n":1.50}`, `{"event":"blocked","url":"http://***@h.test/p?k=***","n":1.50}`},
		{`{"event":"blocked","event":"again","target":"` + testSecret + `.test:443"}`, `{"event":"blocked","event":"again","target":"***.test:443"}`},
		{`{"event":"blocked","reason":"secret in http://h.test/?` + secret + `, why?"}`, `{"event":"blocked","reason":"secret in http://h.test/?*** why?"}`},
		{`{"event":"blocked","url":"http://h.test/a/` + encoded + `","more":["` + testSecret + `"]}`, `{"event":"blocked","url":"http://h.test/***","more":["***"]}`},
		{`panic: ` + testSecret + ` of http://h.test/?` + secret, `panic: *** of http://h.test/?***`},
		{`{"event":"blocked","url":"http://h.test/` + strings.Repeat("x", maxLine) + secret + `"}`, `{"event":"blocked"}`},
		{`{"event":"blocked","url":"http://h.test/?` + secret, `{"event":"blocked"}`}, // no line break at the end
	}
	var in, want strings.Builder
	for i, l := range lines {
		in.WriteString(l.in)
		if i+1 < len(lines) {
			in.WriteByte('\n')
		}
		want.WriteString(l.want + "\n")
	}
	if err := KeepLog(path, nil, strings.NewReader(in.String())); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want.String() {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got, want.String())
	}
}

// FuzzMaskLine: a line stays one line, an object stays an object, and secrets are removed.
func FuzzMaskLine(f *testing.F) {
	f.Add(`{"event":"blocked","url":"http://u:p@h/?a=` + testSecret + `","n":[1,{"a":"b"}]}`)
	f.Add(`{"event":"blocked","url`)
	f.Add(`panic: ` + testSecret)
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "\n") {
			return
		}
		got := maskLine([]byte(text))
		if bytes.Contains(got, []byte("\n")) {
			t.Errorf("%q became several lines: %q", text, got)
		}
		if strings.HasPrefix(text, "{") && !json.Valid(got) {
			t.Errorf("%q is not an object any more: %q", text, got)
		}
		if kind := secretIn(string(got)); kind != "" && len(text) >= 16 {
			t.Errorf("%q still contains %s: %q", text, kind, got)
		}
	})
}

// A line that cannot be written blocks its writer, and is dropped only after stop.
func TestKeepLogFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = full.Close() }()
	k := &logFile{path: filepath.Join(t.TempDir(), "log"), maxSize: maxLogSize, file: full}
	in, out := io.Pipe()
	stop, done := make(chan os.Signal), make(chan error, 1)
	go func() { done <- k.keep(in, stop) }()
	if _, err := io.WriteString(out, logLine(0)); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-done:
		t.Fatalf("the line was dropped: %v", err)
	case stop <- os.Interrupt:
	}
	if err := <-done; err == nil {
		t.Error("no error for a line that was not written")
	}
	_ = out.CloseWithError(errors.New("end"))
}

func TestSummarize(t *testing.T) {
	log := strings.Join([]string{
		`{"event":"startup"}`,
		`{"event":"tunnel_open","target":"A.test:443"}`,
		`{"event":"tunnel_close","target":"a.test:443","total_bytes":1000,"duration_ms":5}`,
		`{"event":"forward_http","url":"http://b.test/x?y=1","method":"GET","status_code":200,"total_bytes":10}`,
		`{"event":"forward_open","url":"http://b.test/z","method":"GET"}`,
		`{"event":"forward_close","url":"http://b.test/z","method":"GET","status_code":502,"total_bytes":7,"reason":"no response"}`,
		`{"event":"blocked","url":"http://c.test/","scanner":"allowlist"}`,
		`{"event":"blocked","target":"c.test:80","scanner":"port"}`,
		`{"event":"would_block","target":"d.test:8443","scanner":"port"}`,
		`{"event":"tunnel_open","target":"d.test:8443"}`,
		`{"event":"error","target":"e.test:443","reason":"refused"}`,
		`{"event":"error","reason":"not about a request"}`,
	}, "\n")
	got, err := Summarize(ParseLog(strings.NewReader(log)))
	if err != nil {
		t.Fatal(err)
	}
	want := []HostSummary{
		{Destination: "c.test:80", Requests: 2, Refused: 2, Scanner: "port"},
		{Destination: "a.test:443", Requests: 1, Bytes: 1000},
		{Destination: "b.test:80", Requests: 2, Bytes: 17},
		{Destination: "d.test:8443", Requests: 1, Learned: 1, Scanner: "port"},
		{Destination: "e.test:443", Requests: 1},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Summaries are bounded, however many names an agent requests.
func TestSummarizeBounded(t *testing.T) {
	var log strings.Builder
	for i := range 3 * maxSummary {
		log.WriteString(logLine(i))
	}
	got, err := Summarize(ParseLog(strings.NewReader(log.String())))
	if err != nil || len(got) != maxSummary+1 {
		t.Fatalf("%d hosts, %v", len(got), err)
	}
	if got[0].Destination != summaryRest || got[0].Refused != 2*maxSummary {
		t.Errorf("the entry for other hosts is %+v", got[0])
	}
}
