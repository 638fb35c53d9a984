package worktree

import (
	"context"
	"io"
	"testing"
)

// TestSummary counts commits and files, also without git in the image.
func TestSummary(t *testing.T) {
	f := newFixture(t)
	f.commit(f.dir, content)
	b := f.copyIn(f.dir)
	w := f.work(b)
	check := func(what string, want Summary) {
		t.Helper()
		if got, err := w.Summary(context.Background()); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", what, got, err, want)
		}
	}
	check("no work", Summary{})
	f.git(f.target, "commit", "--quiet", "--allow-empty", "-m", "one")
	f.write(f.target, "edited.txt", "two\n")
	f.git(f.target, "commit", "--quiet", "-am", "two")
	f.write(f.target, "uncommitted", "three\n")
	check("work", Summary{Commits: 2, Files: 2})
	for answer, run := range map[string]func(io.Writer) int{
		"no shell": func(io.Writer) int { return 127 }, "nonsense": says("\x1b[2J9999999999999999999999\n"), "negative": says("-5\n"),
	} {
		w.Inside = liar{"sh": run}
		check(answer, Summary{Files: 2})
	}
	f.git(f.target, "checkout", "--quiet", "--orphan", "other")
	w.Inside = local{}
	check("a new root", Summary{Files: 2})
}
