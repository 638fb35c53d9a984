package egress

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestMaskURL(t *testing.T) {
	for in, want := range map[string]string{
		"":                                    "",
		"http://h/p":                          "http://h/p",
		"http://h/p?key=secret&b=2":           "http://h/p?key=***&b=***",
		"http://h/p?secret":                   "http://h/p?***",
		"http://h/p?a=1;b=x=y&&c=":            "http://h/p?a=***;b=***&&c=***",
		"http://h/p?a=%zz?b=2#frag":           "http://h/p?a=***",
		"http://u:secret@h/p?x=1":             "http://***@h/p?x=***",
		"http://u:sec@ret@h":                  "http://***@h/",
		"host:443":                            "host:443",
		"http://h/p?a=http://u:p@x/?b=secret": "http://h/p?a=***",
	} {
		if got := maskURL(in); got != want {
			t.Errorf("maskURL(%q) = %q, want %q", in, got, want)
		}
	}
}

// A line is one Write, one JSON object and limited in size, whatever a client sends.
func TestLogLine(t *testing.T) {
	var writes [][]byte
	l := newLogger(writerFunc(func(p []byte) (int, error) {
		writes = append(writes, bytes.Clone(p))
		return len(p), nil
	}))
	nasty := strings.Repeat("\x00\"\n\u2028é\xff", 100_000)
	l.log(line{Event: EventBlocked, Target: nasty, URL: "http://h/" + nasty, Reason: nasty, Method: nasty, Rule: nasty, SNIHost: nasty, ConnectHost: nasty})
	if len(writes) != 1 {
		t.Fatalf("%d writes, want 1", len(writes))
	}
	if n := len(writes[0]); n > maxLine {
		t.Errorf("the line has %d bytes, want at most %d, the limit of ParseLog", n, maxLine)
	}
	if i := bytes.IndexByte(writes[0], '\n'); i != len(writes[0])-1 {
		t.Error("line break inside the line")
	}
	var keys map[string]any
	if err := json.Unmarshal(writes[0], &keys); err != nil {
		t.Fatal(err)
	}
	if keys["event"] != "blocked" || keys["level"] != "warn" {
		t.Errorf("event %v, level %v", keys["event"], keys["level"])
	}
}

func TestParseLog(t *testing.T) {
	const log = `{"time":"2026-11-24T12:00:00.250Z","event":"tunnel_close","target":"a.example:443","total_bytes":12,"duration_ms":1500}
panic: something else
{"time":1700000000,"event":"blocked","url":"http://h/?k=v","event":"blocked","reason":"r","status_code":"403","scanner":"dlp"}
{"event":"cut","tar
[]

{"event":7,"target":"x"}
{"no":"event"}
{"event":"sni_mismatch","connect_host":"a.example:443","sni_host":"b.example"}
{"event":"odd","target":7,"total_bytes":-1,"duration_ms":1e300,"time":true,"url":null}
{"event":"last"}`
	var got []Entry
	for e, err := range ParseLog(iotest.OneByteReader(strings.NewReader(log))) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
	}
	want := []Entry{
		{Time: time.Date(2026, 11, 24, 12, 0, 0, 250e6, time.UTC), Event: "tunnel_close", Target: "a.example:443", Bytes: 12, Duration: 1500 * time.Millisecond},
		{Time: time.Unix(1700000000, 0).UTC(), Event: "blocked", URL: "http://h/?k=***", Reason: "r", Status: 403, Scanner: "dlp"},
		{Event: "sni_mismatch", Target: "a.example:443", SNI: "b.example", Scanner: "sni", Reason: `the TLS handshake is for "b.example", CONNECT named a.example:443`},
		{Event: "odd", Reason: "event odd"},
		{Event: "last", Reason: "event last"},
	}
	if len(got) != len(want) {
		t.Fatalf("%d entries, want %d: %+v", len(got), len(want), got)
	}
	for i := range want {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("entry %d is %+v, want %+v", i, got[i], want[i])
		}
	}
	if got[0].Denied() || !got[1].Denied() || !got[2].Denied() {
		t.Error("Denied is wrong")
	}
}

func TestParseLogLongLine(t *testing.T) {
	log := `{"event":"first"}` + "\n" + `{"event":"` + strings.Repeat("x", 3*maxLine) + `"}` + "\n" + `{"event":"last"}` + "\n"
	var events []string
	for e, err := range ParseLog(strings.NewReader(log)) {
		if err != nil {
			t.Fatal(err)
		}
		events = append(events, e.Event)
	}
	if strings.Join(events, " ") != "first last" {
		t.Errorf("events %.100q, want first and last", events)
	}
}

func TestParseLogReadError(t *testing.T) {
	broken := errors.New("broken")
	r := io.MultiReader(strings.NewReader(`{"event":"one"}`+"\n"), iotest.ErrReader(broken))
	var events int
	var last error
	for _, err := range ParseLog(r) {
		if last = err; err == nil {
			events++
		}
	}
	if events != 1 || !errors.Is(last, broken) {
		t.Errorf("%d events, then %v; want one, then the read error", events, last)
	}
}

func FuzzParseLog(f *testing.F) {
	f.Add([]byte(`{"event":"blocked","url":"http://u:p@h/?a=b","time":"2026-11-24T12:00:00Z","total_bytes":1e9}` + "\n{"))
	f.Add([]byte(`{"event":"x","duration_ms":"1e400","time":1e11}`))
	f.Fuzz(func(t *testing.T, log []byte) {
		for e, err := range ParseLog(bytes.NewReader(log)) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Event == "" || e.Bytes < 0 || e.Duration < 0 {
				t.Fatalf("%+v", e)
			}
			if maskURL(e.URL) != e.URL {
				t.Fatalf("the URL %q is not masked", e.URL)
			}
		}
	})
}

// FuzzMaskURL checks that masking removes every value of a query.
func FuzzMaskURL(f *testing.F) {
	f.Add("http://h/p", "k", "v")
	f.Fuzz(func(t *testing.T, base, key, value string) {
		const secret = "SeCrEt0123"
		if strings.ContainsAny(base, "#") || strings.ContainsAny(key+value, "#") || strings.Contains(base+key+value, secret) {
			return
		}
		if got := maskURL(base + "?" + key + "=" + secret + value); strings.Contains(got, secret) && !strings.Contains(key, "&") {
			t.Fatalf("%q contains the secret", got)
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
