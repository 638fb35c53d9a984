package nearest

import "testing"

func TestNearest(t *testing.T) {
	keys := []string{"bottle", "command", "prompt", "skills"}
	for word, want := range map[string]string{
		"botle": "bottle", "bottles": "bottle", "Skills": "skills", "skill": "skills", "promtp": "prompt", "comand": "command",
		"zzz": "", "": "", "x": "", "image": "", "services": "",
	} {
		if got := Of(word, keys); got != want {
			t.Errorf("Of(%q) = %q, want %q", word, got, want)
		}
	}
	if got := Of("dev", nil); got != "" {
		t.Errorf("without candidates: %q", got)
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"kitten", "sitting", 3}, {"abc", "abc", 0}, {"ab", "ba", 2}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
