package kubernetes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"strconv"
	"strings"
	"syscall"

	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/internal/lazyregexp"
	"github.com/bot-bottle/bottle/plan"
)

// workDir is the volume in which the agent's clone is. The clone is a directory of its own
// below it, because git refuses one that belongs to another user, as the volume does.
const workDir = plan.DefaultCwdTarget

// Names of the container that makes the work accessible, also after the agent has ended, and
// of the annotations that say where it is.
const (
	workContainer  = "work"
	workAnnotation = "bottle/work" // the path of the clone
	repoAnnotation = "bottle/repo" // its URL
)

// baseRef is what was cloned.
const baseRef = "refs/bottle/base"

// BaseCommand prints the commit at which the work in a clone began.
func BaseCommand(dir string) []string {
	return []string{"git", "-C", dir, "rev-parse", "--verify", "--quiet", baseRef}
}

// Repo is a git repository that the agent's pod clones through its proxy.
type Repo struct {
	URL string
	// Dir is where the clone is in the pod.
	Dir string
}

const hintRepo = "--repo https://HOST/PATH"

var notInDir = lazyregexp.New(`[^A-Za-z0-9._-]+`)

// ParseRepo parses the URL of a repository and checks that the plan's policy allows its host.
func ParseRepo(text string, p *plan.Plan) (Repo, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return Repo{}, &hint.Error{Err: errors.New("invalid URL of a repository"), Hint: hintRepo} // it may contain a password
	case u.Scheme != "https" || u.Hostname() == "":
		return Repo{}, &hint.Error{Err: fmt.Errorf("cannot clone %.200q: only https reaches a git server through the proxy", u.Redacted()), Hint: hintRepo}
	case u.User != nil:
		return Repo{}, &hint.Error{
			Err:  fmt.Errorf("cannot clone from %s with a login in the URL, which everyone would see who may list pods", u.Hostname()),
			Hint: "give git the login by variables of the agent: docs/kubernetes.md",
		}
	case u.RawQuery != "" || u.Fragment != "":
		return Repo{}, &hint.Error{Err: fmt.Errorf("cannot clone %.200q: the URL of a repository has no parameters", text), Hint: hintRepo}
	}
	port := 443
	if u.Port() != "" {
		if port, err = strconv.Atoi(u.Port()); err != nil {
			return Repo{}, err
		}
	}
	policy, err := p.Entries().Policy()
	if err != nil {
		return Repo{}, err
	}
	if v := policy.Check(u.Hostname(), port); !v.Allowed {
		return Repo{}, &hint.Error{
			Err:  fmt.Errorf("cannot clone from %s: agent %q may not reach it (%s)", u.Host, p.Agent, v.Reason),
			Hint: "add " + u.Host + " to egress.allow",
		}
	}
	name := strings.Trim(notInDir().ReplaceAllString(strings.TrimSuffix(path.Base(u.Path), ".git"), "-"), ".-")
	if name == "" {
		return Repo{}, &hint.Error{Err: fmt.Errorf("cannot clone %.200q: the URL names no repository", text), Hint: hintRepo}
	}
	return Repo{URL: text, Dir: path.Join(workDir, name)}, nil
}

// Branch returns the branch on which the agent of a namespace works: as on one host, where
// bottle fetch makes it.
func Branch(namespace string) string { return "bottle/" + strings.TrimPrefix(namespace, "bottle-") }

// Clone clones a repository, and begins a branch in it, as the agent's user and with its
// variables. It records the commit that it begins at.
func Clone(ctx context.Context, r Repo, branch string) error {
	if _, err := exec.LookPath("git"); err != nil {
		return errors.New("the agent's image has no git")
	}
	git := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "git", args...)
		var errs bytes.Buffer
		cmd.Stdout, cmd.Stderr = os.Stdout, &errs
		cmd.Env = append(os.Environ(), "GIT_TERMINAL_PROMPT=0")
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", strings.TrimSpace(errs.String()), err)
		}
		return nil
	}
	if err := git("clone", "--", r.URL, r.Dir); err != nil {
		return err
	}
	if err := git("-C", r.Dir, "checkout", "--quiet", "-b", branch); err != nil {
		return err
	}
	// An empty repository has no commit.
	head, _ := exec.CommandContext(ctx, "git", "-C", r.Dir, "rev-parse", "--quiet", "--verify", "HEAD").Output()
	if len(head) == 0 {
		return nil
	}
	return git("-C", r.Dir, "update-ref", baseRef, "HEAD")
}

// Hold waits for a signal to end.
func Hold() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	<-signals
}
