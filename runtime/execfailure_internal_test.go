package runtime

import (
	"bytes"
	"testing"
)

func TestFailureFilter(t *testing.T) {
	const line = `waiting on pid 8: waiting on PID 8 in sandbox "claude-bottle-x": urpc method "containerManager.WaitPID" failed: EOF`
	for _, tt := range []struct {
		name   string
		writes []string
		shown  string // if the line is discarded
		holds  bool
	}{
		{"plain", []string{"a", "b\n"}, "ab\n", false},
		{"line", []string{"a\n", line + "\n"}, "a\n", true},
		{"in a terminal", []string{"a\r\n", line + "\r\n"}, "a\r\n", true},
		{"in the same chunk", []string{"a\n" + line + "\n"}, "a\n", true},
		{"after an unfinished line", []string{"$ " + line + "\n"}, "$ ", true},
		{"not at the end", []string{line + "\n", "b\n"}, line + "\nb\n", false},
		{"not at the end of a chunk", []string{line + "\nb\n"}, line + "\nb\n", false},
		{"twice", []string{line + "\n", line + "\n"}, line + "\n", true},
		{"another line", []string{"waiting on pid 8: no\n"}, "waiting on pid 8: no\n", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, discard := range []bool{true, false} {
				var out, all bytes.Buffer
				f := &failureFilter{w: &out}
				for _, w := range tt.writes {
					if n, err := f.Write([]byte(w)); n != len(w) || err != nil {
						t.Fatalf("write: %d, %v", n, err)
					}
					all.WriteString(w)
				}
				if f.holds() != tt.holds {
					t.Errorf("holds a line: %v", !tt.holds)
				}
				if err := f.close(discard); err != nil {
					t.Error(err)
				}
				want := all.String()
				if discard {
					want = tt.shown
				}
				if out.String() != want {
					t.Errorf("discard %v: %q, want %q", discard, out.String(), want)
				}
			}
		})
	}
}
