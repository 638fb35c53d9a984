package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// tokens are units of terminal output: nothing may be written in their middle.
var tokens = []string{
	"a", " ", "\r", "\n", "\t", "é", "€", "🍾", "\x1b[2J", "\x1b[1;31m", "\x1b[?25l", "\x1b[38;2;1;2;3m", "\x1b7", "\x1b(0", "\x1b#8",
	"\x1b]0;agent's own\a", "\x1b]2;agent's é\x1b\\", "\x1b]8;;http://x/\a", "\x1b]52;c;QUFB\a", "\x1bPq#0;2;0;0;0\x1b\\",
	"\x1b_Gf=100;AAAA\x1b\\", "\x1b^private\x1b\\", "\x1b[?2026h", "\x1b[>0q", "\x1b[\x18", "\x1bP1\x1a", "\x1b[3\x1b[4m", "\x1b]0;cut\x18", "\x1b M",
	"\x1bPa\ab\x1b\\",
}

// The agent's output reaches the terminal unchanged, however it is split, and
// notices are written only between its tokens.
func TestScreen(t *testing.T) {
	for seed := range 300 {
		r := rand.New(rand.NewPCG(uint64(seed), 1))
		var text strings.Builder
		borders := map[int]bool{0: true}
		for range 60 {
			text.WriteString(tokens[r.IntN(len(tokens))])
			borders[text.Len()] = true
		}
		var out bytes.Buffer
		s, now := newScreen(&out), time.Now()
		s.now = func() time.Time { return now }
		notify := func() {
			now = now.Add(time.Minute)
			s.show(fmt.Sprintf("NOTICE %d", now.Unix()))
		}
		for rest := text.String(); rest != ""; {
			if r.IntN(4) == 0 {
				notify()
			}
			n := 1 + r.IntN(min(9, len(rest)))
			if m, err := s.Write([]byte(rest[:n])); m != n || err != nil {
				t.Fatal(m, err)
			}
			rest = rest[n:]
			if r.IntN(9) == 0 {
				s.expire()
			}
		}
		if r.IntN(2) == 0 {
			notify()
		}
		s.close()
		got := strip(t, out.String(), borders)
		if got != text.String() {
			t.Fatalf("seed %d: the agent's output is\n%q\nwant\n%q", seed, got, text.String())
		}
	}
}

// ours matches a notice and no token.
var ours = regexp.MustCompile(`\x1b\[2[23];2t|\x1b\]2;[^\x1b\a]*\a`)

// strip removes notices from a terminal's input, and fails if one is not between
// two of the agent's tokens.
func strip(t *testing.T, out string, borders map[int]bool) string {
	t.Helper()
	got, end := "", 0
	for _, at := range ours.FindAllStringIndex(out, -1) {
		if got += out[end:at[0]]; !borders[len(got)] {
			t.Fatalf("a notice is inside a token: %q|%q", got, out[at[0]:])
		}
		end = at[1]
	}
	return got + out[end:]
}

// titles returns each title that a terminal shows for this input.
func titles(t *testing.T, out string) []string {
	t.Helper()
	now, kept := "the user's", []string{}
	shown := []string{now}
	var q sequence
	for i, b := range []byte(out) {
		if title, ok := q.next(b); ok {
			now = title
		}
		switch {
		case strings.HasSuffix(out[:i+1], titlePush):
			kept = append(kept, now)
		case strings.HasSuffix(out[:i+1], titlePop):
			if len(kept) == 0 {
				t.Fatalf("no title was saved: %q", out[:i+1])
			}
			now, kept = kept[len(kept)-1], kept[:len(kept)-1]
		}
		if now != shown[len(shown)-1] {
			shown = append(shown, now)
		}
	}
	if len(kept) > 0 {
		t.Errorf("%d titles are still kept at the end of %q", len(kept), out)
	}
	return shown
}

// A notice stays in the title for a while, even if the agent sets its own, and the
// title at the end is the same as without notices.
func TestScreenTitle(t *testing.T) {
	const own = "\x1b]0;agent\a"
	for name, c := range map[string]struct {
		do   func(s *screen, later func())
		want []string
	}{
		"no notice":   {func(s *screen, _ func()) { _, _ = s.Write([]byte("x" + own)) }, []string{"the user's", "agent"}},
		"notice":      {func(s *screen, _ func()) { s.show("A") }, []string{"the user's", "A", "the user's"}},
		"two notices": {func(s *screen, later func()) { s.show("A"); later(); s.show("B") }, []string{"the user's", "A", "B", "the user's"}},
		"too soon":    {func(s *screen, _ func()) { s.show("A"); s.show("B") }, []string{"the user's", "A", "the user's"}},
		"expired":     {func(s *screen, _ func()) { s.show("A"); s.expire(); s.expire() }, []string{"the user's", "A", "the user's"}},
		"the agent's own": {func(s *screen, _ func()) {
			_, _ = s.Write([]byte(own))
			s.show("A")
		}, []string{"the user's", "agent", "A", "agent"}},
		"the agent sets one meanwhile": {func(s *screen, _ func()) {
			s.show("A")
			_, _ = s.Write([]byte(own))
		}, []string{"the user's", "A", "agent", "A", "the user's", "agent"}},
		"and it is over": {func(s *screen, later func()) {
			s.show("A")
			_, _ = s.Write([]byte(own))
			s.expire()
			later()
			s.show("B")
		}, []string{"the user's", "A", "agent", "A", "the user's", "agent", "B", "agent"}},
		"within a sequence": {func(s *screen, _ func()) {
			_, _ = s.Write([]byte("\x1b[3"))
			s.show("A")
			_, _ = s.Write([]byte("1m"))
		}, []string{"the user's", "A", "the user's"}},
		"within one that never ends": {func(s *screen, _ func()) {
			_, _ = s.Write([]byte("\x1b]0;x"))
			s.show("A")
			s.expire()
		}, []string{"the user's"}},
		"the agent sets one that is obeyed": {func(s *screen, _ func()) {
			s.show("A")
			_, _ = s.Write([]byte("\x1b]0;a\u009c\u009b2J\x01b\a"))
		}, []string{"the user's", "A", "a2Jb", "A", "the user's", "a2Jb"}},
		"an end within one": {func(s *screen, _ func()) {
			s.show("A")
			_, _ = s.Write([]byte("\x1b[3"))
		}, []string{"the user's", "A", "the user's"}},
	} {
		var out bytes.Buffer
		s, now := newScreen(&out), time.Now()
		s.now = func() time.Time { return now }
		c.do(s, func() { now = now.Add(time.Minute) })
		s.close()
		if last := out.String()[strings.LastIndex(out.String(), titleSet)+1:]; strings.ContainsAny(last, "\u009b\u009c\x01") && strings.Contains(name, "obeyed") {
			t.Errorf("%s: the title is given back as it was: %q", name, last)
		}
		if got := titles(t, out.String()); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q; written %q", name, got, c.want, out.String())
		}
	}
}

func TestHasTitle(t *testing.T) {
	for term, want := range map[string]bool{"": false, "dumb": false, "linux": false, "vt220": false, "xterm-256color": true, "tmux": true, "screen": true, "xterm-kitty": true} {
		if got := hasTitle(term); got != want {
			t.Errorf("%q has a title: %v", term, got)
		}
	}
}

// FuzzSequence: any input is forwarded, and after a CAN the parser accepts plain
// text again.
func FuzzSequence(f *testing.F) {
	for _, token := range tokens {
		f.Add([]byte(token))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var out bytes.Buffer
		s := newScreen(&out)
		if n, err := s.Write(data); n != len(data) || err != nil || !bytes.Equal(out.Bytes(), data) {
			t.Errorf("%d, %v: %q", n, err, out.Bytes())
		}
		for _, b := range []byte("\x1b\x18a") {
			s.agent.next(b)
		}
		if !s.agent.between() {
			t.Errorf("after %q: %+v", data, s.agent)
		}
		if len(s.title) > maxTitle {
			t.Errorf("a title of %d bytes is remembered", len(s.title))
		}
	})
}
