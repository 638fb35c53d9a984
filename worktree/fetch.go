package worktree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/bot-bottle/bottle/internal/hint"
)

// Fetched is what Fetch brought from one repository.
type Fetched struct {
	Repo        string // its directory, relative to Base.Top
	Branch      string
	Tip         string // the branch's commit
	Commits     int    // that were made in the bottle, without the next
	Uncommitted bool   // the last commit has the uncommitted work
	New         bool   // the branch was created or moved
}

// ErrNotGit means that the copy's directory is in no git repository.
var ErrNotGit = errors.New("not a git repository")

// Fetch brings the agent's commits to a branch of the user's repository, and its
// uncommitted work as one more commit. It does the same for each repository in the copy,
// such as a submodule, that has new work. name identifies the bottle in the references
// that record what was fetched.
//
// git packs the commits inside the bottle. On the host, a repository of its own receives
// and verifies them, and only then the user's fetches them from there.
func (w *Work) Fetch(ctx context.Context, name, branch string) ([]Fetched, error) {
	ctx, cancel := w.Limits.context(ctx)
	defer cancel()
	if !w.Base.Git() {
		return nil, &hint.Error{Err: fmt.Errorf("cannot fetch: %s is %w", w.Base.Top, ErrNotGit), Hint: "bottle apply brings the changed files over, bottle cp single ones"}
	}
	snapshots := map[string]snapshot{}
	for _, r := range w.Base.innermost() {
		s, err := w.snapshot(ctx, r, snapshots)
		if err != nil {
			return nil, hint.Wrap(err, "read the commits of "+r.Path)
		}
		snapshots[r.Path] = s
	}
	var out []Fetched
	for _, r := range w.Base.innermost() {
		s := snapshots[r.Path]
		if s.tip == "" || r.Path != "." && s.tip == r.Head {
			continue
		}
		f, err := w.fetch(ctx, r, s, name, branch)
		if err != nil {
			return out, hint.Wrap(err, "fetch "+filepath.Join(w.Base.Top, r.Path))
		}
		out = append(out, f)
	}
	return out, nil
}

// snapshot is the state of a repository in the bottle.
type snapshot struct {
	head string // the commit that is checked out; empty: none
	tip  string // head, or a commit of the uncommitted work on it; empty: there is neither
	base bool   // it has the commit that was copied in
}

// snapshotScript commits the uncommitted work without touching the agent's branches, index
// or files. It runs in the bottle, and so does whatever the agent's configuration starts,
// such as filters. Hooks are off: one that reads its input would never end.
//
//	$1 directory  $2 commit that was copied in, or "-"  $3 message
//	$4 path of a repository inside, $5 its commit, and so on
const snapshotScript = `set -eu
exec </dev/null
n=${GIT_CONFIG_COUNT:-0}
export "GIT_CONFIG_KEY_$n=core.hooksPath" "GIT_CONFIG_VALUE_$n=/dev/null"
export "GIT_CONFIG_KEY_$((n + 1))=core.fsmonitor" "GIT_CONFIG_VALUE_$((n + 1))=false" "GIT_CONFIG_COUNT=$((n + 2))"
commit() {
	git var GIT_COMMITTER_IDENT >/dev/null 2>&1 ||
		export GIT_COMMITTER_NAME=bottle GIT_COMMITTER_EMAIL=bottle@localhost GIT_AUTHOR_NAME=bottle GIT_AUTHOR_EMAIL=bottle@localhost
	tip=$(printf '%s\n' "$message" | git commit-tree ${head:+-p "$head"} "$tree")
}
command -v git >/dev/null || { echo "git is not installed in the image" >&2; exit 3; }
cd "$1"; base=$2; message=$3; shift 3
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_COMMON_DIR
export GIT_CEILING_DIRECTORIES="$(dirname "$PWD")" GIT_OPTIONAL_LOCKS=0
index=$(git rev-parse --git-path index)
work=$(git rev-parse --git-path bottle-index)
rm -f "$work" "$work.lock"
trap 'rm -f "$work" "$work.lock"' EXIT
[ ! -f "$index" ] || cp "$index" "$work"
export GIT_INDEX_FILE="$work"
git -c advice.addEmbeddedRepo=false -c core.safecrlf=false add -A --ignore-errors . >&2 || :
while [ $# -ge 2 ]; do
	git update-index --cacheinfo "160000,$2,$1" 2>/dev/null || :
	shift 2
done
tree=$(git write-tree)
unset GIT_INDEX_FILE
head=$(git rev-parse -q --verify 'HEAD^{commit}' || :)
tip=$head
if [ "$tree" != "$(git rev-parse -q --verify 'HEAD^{tree}' || git hash-object -t tree /dev/null)" ]; then
	old=$(git rev-parse -q --verify 'refs/bottle-state/work^{commit}' || :)
	if [ -n "$old" ] && [ "$(git rev-parse "$old^{tree}")" = "$tree" ] && [ "$(git rev-parse -q --verify "$old^" || :)" = "$head" ]; then
		tip=$old # nothing has changed since the last time
	else
		commit
	fi
fi
[ -z "$tip" ] || git update-ref refs/bottle-state/work "$tip"
known=no
[ "$base" = - ] || ! git cat-file -e "$base^{commit}" 2>/dev/null || known=yes
echo "bottle-snapshot ${head:--} ${tip:--} $known"
`

// packScript packs the commits that the host does not have.
//
//	$1 directory  $2 commit  $3 commit that the host has, or "-"
const packScript = `set -eu
cd "$1"
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_COMMON_DIR
export GIT_CEILING_DIRECTORIES="$(dirname "$PWD")"
{ echo "$2"; [ "$3" = - ] || echo "^$3"; } | git pack-objects --revs --thin --stdout --delta-base-offset -q
`

// maxAnswer bounds the output of the snapshot script, in bytes.
const maxAnswer = 64 << 10

func (w *Work) snapshot(ctx context.Context, r Repo, inner map[string]snapshot) (snapshot, error) {
	args := []string{"sh", "-c", snapshotScript, "sh", filepath.Join(w.Base.Target, r.Path), orDash(r.Head), "Uncommitted work"}
	for _, other := range w.Base.Repos {
		if parent, _ := w.Base.repoOf(other.Path); other.Path != "." && parent.Path == r.Path && inner[other.Path].tip != "" {
			args = append(args, within(r.Path, other.Path), inner[other.Path].tip)
		}
	}
	var answer []byte
	err := stream(ctx, w.Inside, Command{Args: args}, maxAnswer, func(out io.Reader) (err error) {
		answer, err = io.ReadAll(out)
		return err
	})
	if failed, ok := errors.AsType[*insideError](err); ok {
		if failed.code == 3 || failed.code == 126 || failed.code == 127 { // no shell
			return snapshot{}, &hint.Error{
				Err:  errors.New("cannot fetch: the bottle's image has no git"),
				Hint: "install git and a shell in the image, or use bottle apply, which needs neither",
			}
		}
	}
	if err != nil {
		return snapshot{}, err
	}
	lines := strings.Split(strings.TrimSpace(string(answer)), "\n")
	part := strings.Fields(lines[len(lines)-1])
	if len(part) != 4 || part[0] != "bottle-snapshot" || !isObject(part[1]) || !isObject(part[2]) {
		return snapshot{}, fmt.Errorf("unexpected answer of the bottle: %s", printable(lines[len(lines)-1]))
	}
	return snapshot{strings.Trim(part[1], "-"), strings.Trim(part[2], "-"), part[3] == "yes"}, nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// isObject reports whether s is the full name of an object, or "-".
func isObject(s string) bool { return s == "-" || (len(s) == 40 || len(s) == 64) && isHex(s) }

// fetch brings one repository's commits over.
func (w *Work) fetch(ctx context.Context, r Repo, s snapshot, name, branch string) (f Fetched, err error) {
	f = Fetched{Repo: r.Path, Branch: branch, Tip: s.tip, Uncommitted: s.tip != s.head}
	user, err := newGit(w.Caller, filepath.Join(w.Base.Top, r.Path))
	if err != nil {
		return f, err
	}
	here, _, err := discover(ctx, user)
	if err != nil {
		return f, err
	}
	user = here.git
	target := "refs/heads/" + branch
	if _, err := user.line(ctx, "check-ref-format", target); err != nil || strings.HasPrefix(branch, "-") {
		return f, fmt.Errorf("invalid branch name %q", branch)
	}
	record := ownRefs + name
	before, err := mayMove(ctx, user, target)
	if err != nil {
		return f, err
	}
	last, err := refValue(ctx, user, record)
	if err != nil {
		return f, err
	}
	if !s.base {
		r.Head = ""
	} else if ok, err := has(ctx, user, r.Head); err != nil || !ok {
		if err != nil {
			return f, err
		}
		r.Head = "" // the user's repository has lost it
	}
	q, remove, err := w.quarantine(ctx, user, here)
	if err != nil {
		return f, err
	}
	defer func() {
		if rerr := remove(); err == nil && rerr != nil {
			err = fmt.Errorf("remove temporary repository: %w", rerr)
		}
	}()
	if err := w.receive(ctx, q, r, s.tip); err != nil {
		return f, err
	}
	fetcher := user.in(user.dir)
	fetcher.config = []string{"core.alternateRefsCommand=:"}
	if r.Partial { // verified in the quarantine, as far as the objects are there
		fetcher.config = append(fetcher.config, "fetch.fsckObjects=false", "transfer.fsckObjects=false")
	}
	if err := fetcher.run(ctx, nil, io.Discard,
		"fetch", "--quiet", "--no-tags", "--no-recurse-submodules", "--no-auto-gc", "--no-write-fetch-head", "--refmap=", "--no-prune", "--no-show-forced-updates",
		q.dir, "+refs/heads/work:"+record); err != nil {
		return f, err
	}
	if err := move(ctx, user, target, before, last, s.tip); err != nil {
		return f, errors.Join(err, restore(ctx, user, record, last))
	}
	f.New = before != s.tip
	return f, f.count(ctx, user, r, s)
}

// mayMove returns the branch's commit; empty: there is none. A branch that is checked out
// is refused: its worktree would seem to have changes.
func mayMove(ctx context.Context, user *git, target string) (string, error) {
	out, err := user.line(ctx, "for-each-ref", "--format=%(objectname) %(worktreepath)", target)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		// A pattern also matches what is below it.
		if _, dir, _ := strings.Cut(strings.TrimSpace(line), " "); dir != "" {
			return "", &hint.Error{Err: fmt.Errorf("branch %s is checked out in %s", strings.TrimPrefix(target, "refs/heads/"), dir), Hint: "choose another one with --branch"}
		}
	}
	return refValue(ctx, user, target)
}

func refValue(ctx context.Context, g *git, ref string) (string, error) {
	v, err := g.line(ctx, "rev-parse", "--verify", "--quiet", ref)
	if exitCode(err) == 1 {
		return "", nil
	}
	return v, err
}

func has(ctx context.Context, g *git, commit string) (bool, error) {
	if commit == "" {
		return false, nil
	}
	_, err := g.output(ctx, "cat-file", "-e", commit+"^{commit}")
	if exitCode(err) > 0 {
		return false, nil
	}
	return err == nil, err
}

// move moves the branch, unless it has commits that did not come from the bottle.
func move(ctx context.Context, user *git, target, before, last, tip string) error {
	if before == tip {
		return nil
	}
	if before != "" && before != last {
		if _, err := user.output(ctx, "merge-base", "--is-ancestor", before, tip); err != nil {
			if exitCode(err) != 1 {
				return err
			}
			return &hint.Error{Err: fmt.Errorf("branch %s has commits that are not in the bottle", strings.TrimPrefix(target, "refs/heads/")), Hint: "choose another one with --branch"}
		}
	}
	// With the expected old value; zeros: the branch must not exist.
	if before == "" {
		before = strings.Repeat("0", len(tip))
	}
	_, err := user.output(ctx, "update-ref", "-m", "bottle fetch", target, tip, before)
	return err
}

// restore sets the record of what was fetched back.
func restore(ctx context.Context, user *git, record, last string) error {
	args := []string{"update-ref", record, last}
	if last == "" {
		args = []string{"update-ref", "-d", record}
	}
	_, err := user.output(ctx, args...)
	return err
}

// receive stores and verifies the bottle's commits.
func (w *Work) receive(ctx context.Context, q *git, r Repo, tip string) error {
	// --strict also verifies that linked objects exist, which a partial clone cannot have.
	check := "--strict"
	if r.Partial {
		check = "--fsck-objects"
	}
	cmd := Command{Args: []string{"sh", "-c", packScript, "sh", filepath.Join(w.Base.Target, r.Path), tip, orDash(r.Head)}}
	err := stream(ctx, w.Inside, cmd, w.Limits.Bytes, func(pack io.Reader) error {
		return q.run(ctx, pack, io.Discard, "index-pack", "--stdin", "--fix-thin", check, "--max-input-size="+strconv.FormatInt(w.Limits.Bytes, 10))
	})
	if err != nil {
		return fmt.Errorf("receive the bottle's commits: %w", err)
	}
	if kind, err := q.line(ctx, "cat-file", "-t", tip); err != nil || kind != "commit" {
		return fmt.Errorf("receive the bottle's commits: %s is missing", tip)
	}
	_, err = q.output(ctx, "update-ref", "refs/heads/work", tip)
	return err
}

// count counts the commits.
func (f *Fetched) count(ctx context.Context, user *git, r Repo, s snapshot) error {
	if s.head == "" {
		return nil
	}
	args := []string{"rev-list", "--count", s.head}
	if r.Head != "" {
		args = append(args, "^"+r.Head)
	}
	out, err := user.line(ctx, args...)
	if err != nil {
		return err
	}
	f.Commits, err = strconv.Atoi(string(bytes.TrimSpace([]byte(out))))
	return err
}
