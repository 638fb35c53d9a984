package inject

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
)

func ignore(string) {}

// TestReplaceInChunks compares every way of cutting a text in two, and single bytes,
// with the replacement in the complete text.
func TestReplaceInChunks(t *testing.T) {
	pairs := []pair{newPair("a", "secret-value", "secret-hidden"), newPair("a", "c2VjcmV0", "xxxx"), newPair("b", "value-2", "other-2")}
	text := "x secret-value y secret-valsecret-value c2Vc2VjcmV0 secret-value-2 sesecret-value"
	want := replaceAll(text, pairs, ignore)
	if strings.Contains(want, "secret-value") || !strings.Contains(want, "secret-hidden") {
		t.Fatalf("control: %s", want)
	}
	for i := range len(text) {
		r := replacer{matcher: newMatcher(pairs), found: ignore}
		got := r.push(nil, []byte(text[:i]), false)
		got = r.push(got, []byte(text[i:]), true)
		if string(got) != want {
			t.Fatalf("cut at %d: %s", i, got)
		}
	}
	got, err := io.ReadAll(newReplacingReader(iotest.OneByteReader(strings.NewReader(text)), newMatcher(pairs), ignore))
	if err != nil || string(got) != want {
		t.Errorf("bytes: %s, %v", got, err)
	}
}

// TestReplaceRandomly compares streams of a small alphabet with a simple replacement.
func TestReplaceRandomly(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		from, to := "ab"[:1+rnd.IntN(2)]+"aab", "abX"[:rnd.IntN(4)]
		text := make([]byte, rnd.IntN(30))
		for i := range text {
			text[i] = "abc"[rnd.IntN(3)]
		}
		r := replacer{matcher: newMatcher([]pair{newPair("a", from, to)}), found: ignore}
		var got []byte
		for rest := text; len(rest) > 0; {
			n := 1 + rnd.IntN(len(rest))
			got = r.push(got, rest[:n], false)
			rest = rest[n:]
		}
		got = r.push(got, nil, true)
		want := strings.ReplaceAll(string(text), from, to)
		// The end of the text may be a value that was cut off.
		if string(got) != want && !cutOff(string(got), want, from) {
			t.Fatalf("%q: %s to %s: got %q, want %q", text, from, to, got, want)
		}
	}
}

func cutOff(got, want, from string) bool {
	for n := revealed; n < len(from); n++ {
		if head, ok := strings.CutSuffix(want, from[:n]); ok && strings.HasPrefix(got, head) {
			return true
		}
	}
	return false
}

// TestNothingIsHeldBack verifies that text which does not contain most of a value's
// beginning is returned immediately.
func TestNothingIsHeldBack(t *testing.T) {
	p := Placeholder(realValue)
	r := replacer{matcher: newMatcher(echoForms("KEY", realValue, p)), found: ignore}
	for _, s := range []string{"data: x\n\n", "s", "sk-ant-", "sk-ant-api03-", "some text sk-ant-api03-", "end"} {
		if got := r.push(nil, []byte(s), false); string(got) != s {
			t.Errorf("%q: got %q", s, got)
		}
	}
	for _, value := range []string{"Ab12Cd34Ef56Gh78Ij90Kl12Mn34Op56", fill(40, hexLower)} {
		r := replacer{matcher: newMatcher(echoForms("KEY", value, Placeholder(value))), found: ignore}
		if got := r.push(nil, []byte("text "+value[:6]), false); string(got) != "text "+value[:6] {
			t.Errorf("%q: got %q", value[:6], got)
		}
	}
	if got := r.push(nil, []byte(" "+realValue[:40]), false); strings.Contains(string(got), realValue[:20]) {
		t.Errorf("control: the beginning of the value was returned: %q", got)
	}
}

func TestCutOffValue(t *testing.T) {
	p := Placeholder(realValue)
	for cut := 1; cut < len(realValue); cut++ {
		text := "token: " + realValue[:cut]
		got, err := io.ReadAll(newReplacingReader(strings.NewReader(text), newMatcher(echoForms("KEY", realValue, p)), ignore))
		if err != nil {
			t.Fatal(err)
		}
		if n := len("sk-ant-api03-") + revealed; cut > n && strings.Contains(string(got), realValue[:n]) {
			t.Fatalf("cut at %d: %s", cut, got)
		}
	}
}

func TestEchoForms(t *testing.T) {
	value := `Ab1+/="<&'>\ §` + fill(30, base62)
	p := Placeholder(value)
	pairs := echoForms("KEY", value, p)
	js, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	forms := map[string]string{
		"plain": value, "query": url.QueryEscape(value), "path": url.PathEscape(value), "json": string(js), "hex": hex.EncodeToString([]byte(value)),
		"HEX": strings.ToUpper(hex.EncodeToString([]byte(value))),
	}
	for name, text := range forms {
		if got := replaceAll(text, pairs, ignore); strings.Contains(got, strings.Trim(text, `"`)) {
			t.Errorf("%s: %s", name, got)
		}
	}
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding} {
		for n := range 6 {
			text := enc.EncodeToString([]byte("user:xxx"[:n] + value + "-tail"))
			got := replaceAll(text, pairs, ignore)
			decoded, err := enc.DecodeString(got)
			if err != nil || bytes.Contains(decoded, []byte(value)) || !bytes.Contains(decoded, []byte(p[10:len(p)-1])) {
				t.Errorf("base64 after %d: %q, %v", n, decoded, err)
			}
		}
	}
}

func BenchmarkReplace(b *testing.B) {
	text := bytes.Repeat([]byte(`{"text":"some ordinary sk-ant JSON of a response","n":12345},`), 512)
	pairs := echoForms("KEY", realValue, Placeholder(realValue))
	r := replacer{matcher: newMatcher(pairs), found: ignore}
	var out []byte
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		out = r.push(out[:0], text, false)
	}
}
