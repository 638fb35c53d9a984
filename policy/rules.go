package policy

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/bot-bottle/bottle/internal/caller"
)

// Rules are the policy that applies to one caller. A nil *Rules allows everything: root
// is not bound. Each method returns nil or an error, a [*Refusal], for one request.
type Rules struct {
	policy *Policy
	dir    string
	// exempt reports whether the caller may run every command as root anyway, so that
	// without a policy there is nothing to protect from them.
	exempt func() bool
}

// For returns the rules for a caller: the policy in dir, for a user of sudo. Without a
// policy a user whom sudo lets run a shell as root is not bound.
func For(c caller.Caller, dir string) (*Rules, error) {
	if !bound(c) {
		return nil, nil
	}
	p, err := Load(dir)
	if err != nil {
		return nil, err
	}
	return newRules(p, dir, func() bool { return mayBecomeRoot(c.UID) }), nil
}

// Bind returns the rules of a policy for a caller who is bound in any case.
func Bind(p *Policy) *Rules { return newRules(p, Dir, func() bool { return false }) }

// bound reports whether this process acts as root for another user. Without root's
// rights it has no more than its user's.
func bound(c caller.Caller) bool { return os.Geteuid() == 0 && c.UID != 0 }

func newRules(p *Policy, dir string, exempt func() bool) *Rules {
	return &Rules{policy: p, dir: dir, exempt: sync.OnceValue(exempt)}
}

// Policy returns the policy that is enforced; nil: none.
func (r *Rules) Policy() *Policy {
	if r == nil {
		return nil
	}
	return r.policy
}

// Unbound reports whether the caller is root, or may become root anyway and no policy
// binds them.
func (r *Rules) Unbound() bool { return r == nil || r.policy.Path == "" && r.exempt() }

// sudoTimeout bounds the question to sudo, which may ask a directory service.
const sudoTimeout = 5 * time.Second

// mayBecomeRoot asks sudo whether it lets a user run a shell as root (sudo(8), -l with a
// command). Any failure is a no.
func mayBecomeRoot(uid int) bool {
	name := "#" + strconv.Itoa(uid)
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		name = u.Username
	}
	ctx, cancel := context.WithTimeout(context.Background(), sudoTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/usr/bin/sudo", "-n", "-l", "-U", name, "/bin/sh")
	cmd.Env, cmd.Dir = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, "/"
	return cmd.Run() == nil
}

// Refusal is a request that the policy refuses.
type Refusal struct {
	Key string // of the policy, such as "egress.never"
	// Path is that of the policy's file. Missing: there is none, and the request needs one.
	Path    string
	Missing bool
	What    string // what is refused, such as "runtime runc"
	Fix     string // what the caller can do
}

func (r *Refusal) Error() string {
	if r.Missing {
		return fmt.Sprintf("%s is refused: no policy allows it (%s in %s)", r.What, r.Key, r.Path)
	}
	return fmt.Sprintf("%s is refused by %s in %s", r.What, r.Key, r.Path)
}

// Hint returns advice for the user.
func (r *Refusal) Hint() string {
	advice := fmt.Sprintf("ask root to change %s in %s", r.Key, r.Path)
	if r.Fix != "" {
		return r.Fix + ", or " + advice
	}
	return advice
}

// refuse returns the refusal of a request, unless the caller is not bound.
func (r *Rules) refuse(key, fix, what string, args ...any) error {
	if r.Unbound() {
		return nil
	}
	out := &Refusal{Key: key, Path: r.policy.Path, What: fmt.Sprintf(what, args...), Fix: fix}
	if out.Path == "" {
		out.Path, out.Missing = filepath.Join(r.dir, File), true
	}
	return out
}
