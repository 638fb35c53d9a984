package plan

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/bot-bottle/bottle/images"
	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/internal/hint"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/worktree"
)

// Pull policies: when an image is pulled before it runs.
const (
	PullMissing = "missing" // if it is not in containerd's store
	PullAlways  = "always"
	PullNever   = "never"
)

// PullPolicies are the values of Spec.Pull.
var PullPolicies = []string{PullAlways, PullMissing, PullNever}

// DefaultCwdTarget is where the copy of the working directory is in a bottle.
const DefaultCwdTarget = "/workspace"

// lookUp finds the image to run, or its base. If the image must be built or pulled
// first, it plans that, and known is false if nothing is known about the image yet.
func (p *preparation) lookUp(ctx context.Context, ref string, fromManifest bool) (info ImageInfo, known bool, err error) {
	policy := p.spec.Pull
	if policy == "" {
		policy = PullMissing
	}
	if !slices.Contains(PullPolicies, policy) {
		return info, false, &hint.Error{Err: fmt.Errorf("unknown pull policy %q", policy), Hint: "choose --pull " + strings.Join(PullPolicies, ", ")}
	}
	// The default image, and those with build settings, are built here.
	pullable := ref != p.defaultRef() && (p.bottle.Build == nil || !fromManifest)
	if policy == PullAlways && pullable {
		p.plan.Pull = ref
		return info, false, nil
	}
	info, err = p.imageOrBuild(ctx, ref, fromManifest)
	if errors.Is(err, ErrImageMissing) && policy == PullMissing && pullable {
		p.plan.Pull = ref
		return info, false, nil
	}
	if err != nil {
		return info, false, imageHint(ref, err)
	}
	return info, true, nil
}

// cwd plans the copy of the working directory.
func (p *preparation) cwd() (err error) {
	if r := p.spec.Resume; r != nil {
		p.plan.Dir, p.plan.Target = r.Dir, r.Target
		return nil
	}
	if p.spec.Cwd && p.spec.CwdImage {
		return &hint.Error{Err: errors.New("--cwd and --cwd-image exclude each other"), Hint: "use --cwd, which keeps the agent's work"}
	}
	p.plan.CwdIgnored = p.spec.Cwd && p.spec.CwdIgnored
	if p.plan.Target, err = cwdTarget(p.spec.CwdTarget); err != nil {
		return err
	}
	if p.plan.Dir, err = p.spec.Caller.EvalSymlinks(p.spec.Caller.WorkDir); err != nil {
		return fmt.Errorf("resolve the working directory: %w", err)
	}
	if p.spec.CwdForce {
		return nil
	}
	return refuseHome(p.spec.Caller, p.plan.Dir)
}

// credentialsTimeout bounds the search for credentials in the working directory.
const credentialsTimeout = 2 * time.Second

// credentials finds the files with credentials that --cwd would copy. It leaves errors
// to the copying, which reports them with their remedy.
func (p *preparation) credentials(ctx context.Context) error {
	if !p.spec.Cwd && !p.spec.CwdImage {
		return nil
	}
	dir, err := filepath.EvalSymlinks(p.spec.Caller.WorkDir)
	if err != nil || !p.spec.CwdForce && refuseHome(p.spec.Caller, dir) != nil {
		return nil // cwd reports it
	}
	ctx, cancel := context.WithTimeout(ctx, credentialsTimeout)
	defer cancel()
	p.plan.CredentialFiles, err = images.CredentialFiles(ctx, dir, p.spec.Caller.User())
	p.plan.CredentialsUnknown = errors.Is(err, context.DeadlineExceeded)
	if err == nil && p.spec.Cwd && !p.spec.CwdIgnored {
		p.plan.CredentialFiles = worktree.NotIgnored(ctx, p.spec.Caller, dir, p.plan.CredentialFiles)
	}
	slices.Sort(p.plan.CredentialFiles)
	return nil
}

// maxCredentials is how many files with credentials a warning names.
const maxCredentials = 5

// credentialsText describes files with credentials by the names of the first ones.
func credentialsText(files []string) string {
	if len(files) == 1 {
		return "a file that may hold credentials, " + files[0]
	}
	shown := files[:min(len(files), maxCredentials)]
	text := fmt.Sprintf("%d files that may hold credentials: %s", len(files), strings.Join(shown, ", "))
	if more := len(files) - len(shown); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// refuseHome rejects a directory that contains all files of a user.
func refuseHome(c caller.Caller, dir string) error {
	what := ""
	switch home, err := c.EvalSymlinks(c.Home); {
	case dir == "/":
		what = "the entire file system"
	case err != nil || c.Home == "":
	case dir == home:
		what = "your home directory, with keys and passwords"
	case strings.HasPrefix(home, dir+"/"):
		what = "the parent of all home directories"
	}
	if what == "" {
		return nil
	}
	return &hint.Error{
		Err:  fmt.Errorf("--cwd would copy %s into the bottle: it is %s", dir, what),
		Hint: "run it in a project's directory, or add --cwd-force",
	}
}

// cwdTarget checks the path of the working directory in the image.
func cwdTarget(dir string) (string, error) {
	if dir == "" {
		return DefaultCwdTarget, nil
	}
	clean := filepath.Clean(dir)
	if !filepath.IsAbs(dir) || clean == "/" {
		return "", &hint.Error{Err: fmt.Errorf("invalid --cwd-target %q", dir), Hint: "use an absolute path other than /"}
	}
	for _, taken := range []string{"/proc", "/sys", "/dev", provision.GuestDir} {
		if clean == taken || strings.HasPrefix(clean, taken+"/") {
			return "", &hint.Error{Err: fmt.Errorf("invalid --cwd-target %q: %s is reserved", dir, taken), Hint: "use another path"}
		}
	}
	return clean, nil
}
