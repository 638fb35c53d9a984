package worktree

import (
	"context"
	"strings"
	"testing"
)

// TestCollidingObjects has an object under the name of another one. The user's repository
// keeps its own, and never gets one whose content does not have its name.
func TestCollidingObjects(t *testing.T) {
	// forge replaces the content of a loose object, which git-hash-object cannot do.
	const forge = `set -e
forge() { p=.git/objects/$(printf %s "$1" | cut -c1-2)/$(printf %s "$1" | cut -c3-); mkdir -p "${p%/*}"; cp -f .git/objects/$(printf %s "$2" | sed 's|^..|&/|') "$p"; }
other=$(printf 'forged\n' | git hash-object -w --stdin)
`
	for name, c := range map[string]struct {
		script string
		fails  bool
	}{
		// The host has the object: the bottle's is not sent.
		"of the user's": {`forge $(git rev-parse HEAD:edited.txt) $other; echo x >new; git add new; git commit -qm agent`, false},
		// The agent's commit refers to an object that does not exist.
		"of the agent's": {`echo new >new; git add new; git commit -qm agent; forge $(git rev-parse HEAD:new) $other`, true},
		"a commit":       {`git commit -q --allow-empty -m one; one=$(git rev-parse HEAD); git commit -q --allow-empty -m two; forge $one $(git rev-parse HEAD)`, true},
		// Below a user's object, at its place in a tree.
		"a tree": {`mkdir d; echo new >d/new; git add d; git commit -qm agent; forge $(git rev-parse HEAD:d) $(git rev-parse HEAD:dir)`, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.commit(f.dir, content)
			b := f.copyIn(f.dir)
			f.git(f.target, "config", "user.name", "agent")
			f.git(f.target, "config", "user.email", "agent@example.test")
			cmd := userCommand(f, f.target, "sh", "-c", forge+c.script)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			before := f.git(f.dir, "for-each-ref") + f.git(f.dir, "count-objects", "-v")
			_, err := f.work(b).Fetch(context.Background(), "impl", "bottle/impl")
			if (err != nil) != c.fails {
				t.Errorf("fetch: %v", err)
			}
			if c.fails {
				same(t, "the user's repository", f.git(f.dir, "for-each-ref")+f.git(f.dir, "count-objects", "-v"), before)
			}
			if out, err := f.tryGit(f.dir, "fsck", "--full", "--strict", "--no-dangling"); err != nil || strings.Contains(out, "mismatch") {
				t.Errorf("git fsck: %v\n%s", err, out)
			}
			same(t, "the user's object", f.git(f.dir, "show", "HEAD:edited.txt"), "one\ntwo\nthree")
			// Control: the bottle's repository is damaged.
			if out, err := f.tryGit(f.target, "fsck", "--full"); err == nil {
				t.Errorf("control: git fsck of the bottle's repository: %s", out)
			}
		})
	}
}
