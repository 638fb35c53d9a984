package inject

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// TestMatcher compares the first match with that of a search for each string, in texts of few
// different bytes, so that strings overlap.
func TestMatcher(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	text := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = "abc"[r.IntN(3)]
		}
		return string(b)
	}
	matches := 0
	for range 2000 {
		var pairs []pair
		for range 1 + r.IntN(4) {
			pairs = append(pairs, newPair("a", text(2+r.IntN(40)), "x"))
		}
		data := text(r.IntN(200))
		if r.IntN(2) == 0 {
			data += pairs[0].from + text(r.IntN(20))
		}
		want, longest := -1, ""
		for _, p := range pairs {
			i := strings.Index(data, p.from)
			if i >= 0 && (want < 0 || i < want || i == want && len(p.from) > len(longest)) {
				want, longest = i, p.from
			}
		}
		p, at := newMatcher(pairs).next([]byte(data))
		if at != want || p.from != longest {
			t.Fatalf("%v in %q: %q at %d, want %q at %d", pairs, data, p.from, at, longest, want)
		}
		if at >= 0 {
			matches++
		}
	}
	if matches < 500 {
		t.Errorf("only %d matches", matches)
	}
}

// TestPassing: a body without values is neither copied nor kept.
func TestPassing(t *testing.T) {
	r := replacer{matcher: newMatcher(echoForms("KEY", realValue, Placeholder(realValue))), found: func(string) {}}
	data := []byte(strings.Repeat("ordinary text, ", 1000))
	if n := testing.AllocsPerRun(10, func() {
		if !r.passes(data) {
			t.Error("it does not pass")
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
	for _, text := range []string{realValue, "x " + realValue[:20]} {
		if r.passes([]byte(text)) {
			t.Errorf("%q passes", text)
		}
	}
}
