package worktree

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"
)

// Summary describes the work in a bottle.
type Summary struct {
	Commits int `json:"commits"` // on the current branches, since the copy
	Files   int `json:"files"`   // changed since the copy, committed or not
}

// countScript counts the commits that were made since the copy.
//
//	$1 directory  $2 commit that was copied in, or "-"
const countScript = `cd "$1" || exit
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_COMMON_DIR
export GIT_CEILING_DIRECTORIES="$(dirname "$PWD")"
git rev-parse -q --verify HEAD >/dev/null || { echo 0; exit; }
[ "$2" = - ] && set -- "$1" "" || set -- "$1" "^$2"
git rev-list --count HEAD $2
`

// Summary counts the agent's commits and changed files. An image without git has no
// commits. Files whose size and time of modification are unchanged are not read.
func (w *Work) Summary(ctx context.Context) (Summary, error) {
	ctx, cancel := w.Limits.context(ctx)
	defer cancel()
	changes, err := w.compare(ctx, true)
	if err != nil {
		return Summary{}, err
	}
	s := Summary{Files: len(changes)}
	for _, r := range w.Base.Repos {
		var answer []byte
		args := []string{"sh", "-c", countScript, "sh", filepath.Join(w.Base.Target, r.Path), orDash(r.Head)}
		err := stream(ctx, w.Inside, Command{Args: args}, maxAnswer, func(out io.Reader) (err error) {
			answer, err = io.ReadAll(out)
			return err
		})
		if _, failed := err.(*insideError); failed { //nolint:errorlint // stream does not wrap it
			continue // no git, no shell, or no repository any more
		}
		if err != nil {
			return s, fmt.Errorf("count the bottle's commits: %w", err)
		}
		if n, err := strconv.Atoi(strings.TrimSpace(string(answer))); err == nil && n >= 0 {
			s.Commits += n
		}
	}
	return s, nil
}
