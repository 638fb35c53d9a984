package bottle

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/bottle/egress/inject"
	"github.com/bot-bottle/bottle/injection"
	"github.com/bot-bottle/bottle/internal/atomicfile"
	"github.com/bot-bottle/bottle/internal/filelock"
	"github.com/bot-bottle/bottle/internal/hosttask"
	"github.com/bot-bottle/bottle/internal/names"
	"github.com/bot-bottle/bottle/internal/proven"
	"github.com/bot-bottle/bottle/internal/rootfile"
	"github.com/bot-bottle/bottle/internal/shareddir"
	"github.com/bot-bottle/bottle/internal/timing"
	"github.com/bot-bottle/bottle/manifest"
	"github.com/bot-bottle/bottle/netns"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/provision"
	"github.com/bot-bottle/bottle/proxy"
	"github.com/bot-bottle/bottle/runtime"
	"github.com/bot-bottle/bottle/session"
)

// A prepared bottle is a complete bottle that was launched ahead of its use: its sandbox
// runs PID 1 and has run nothing of its image, and its proxy refuses everything. It has a name as every
// bottle, which also is its host name, and its record in its state directory. A run claims
// it under the lock of its launch, gives it what is the run's own, and only then removes
// the record: a bottle without a record is never claimed, and one whose claim was
// interrupted is an interrupted launch.

// preparedFile is the record of a prepared bottle, in its state directory. It is on disk,
// so that after a restart of the host the remains are known as those of a prepared bottle.
const preparedFile = hosttask.PreparedFile

// preparedRecord is what a run needs to know of a prepared bottle. It contains no secret.
type preparedRecord struct {
	Key      string          `json:"key"`
	Agent    string          `json:"agent"`
	Manifest string          `json:"manifest"`
	Created  time.Time       `json:"created"`
	Image    provision.Image `json:"image"`
	User     runtime.User    `json:"user"`
	// Files is the sum of what was written into the root file system for the agent.
	Files string `json:"files"`
	// Warm is nil unless the agent was started.
	Warm *warmRecord `json:"warm,omitempty"`
}

// preparedKey is everything that decides on the containers and networks of a bottle,
// except the files that bottle writes for the agent (filesSum). A run uses only a bottle
// with an equal key.
type preparedKey struct {
	Format      int
	Owner       int
	Agent       string
	Manifest    string
	Image       string
	Digest      string
	Snapshotter string
	Runtime     string
	Proxy       plan.Proxy
	Limits      manifest.Limits
	Network     [3]string
	Resolvers   []string
	Programs    string
	InjectHosts []string
	Roots       string // sum of the authorities that verify these hosts
}

// preparedFormat changes with the meaning of a key or a record.
const preparedFormat = 1

func (k preparedKey) sum() (string, error) { return sumJSON(k) }

func sumJSON(v any) (string, error) {
	data, err := json.Marshal(v)
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), err
}

func (e *Engine) preparedKey(p *plan.Plan) (string, error) {
	programs, err := e.programs()
	if err != nil {
		return "", err
	}
	k := preparedKey{
		Format: preparedFormat, Owner: e.cfg.Owner, Agent: p.Agent, Manifest: p.Manifest,
		Image: p.Image, Digest: p.ImageDigest, Snapshotter: e.cfg.Snapshotter, Runtime: p.Runtime, Proxy: p.Proxy, Limits: p.Limits,
		Network: [3]string{p.Network.Internal, p.Network.Egress, p.Network.Bridge}, Programs: programs,
	}
	servers, _ := netns.HostResolvers()
	for _, s := range servers {
		k.Resolvers = append(k.Resolvers, s.String())
	}
	if k.InjectHosts, err = injection.Hosts(p); err != nil {
		return "", err
	}
	if len(k.InjectHosts) > 0 {
		roots, err := injection.HostRoots(provision.SystemBundles())
		if err != nil {
			return "", err
		}
		if k.Roots, err = sumJSON(roots); err != nil {
			return "", err
		}
	}
	return k.sum()
}

// programsSum identifies the programs that take part in a bottle: an update of one of them
// must not leave bottles of the old one in use.
func (c Config) programsSum() (string, error) {
	sum := sha256.New()
	add := func(text string) { _, _ = fmt.Fprintf(sum, "%d:%s", len(text), text) } // a hash takes everything
	for _, name := range []string{"runsc", "containerd-shim-runsc-v1", "runc", "containerd-shim-runc-v2", c.Program} {
		path, err := exec.LookPath(name)
		if err != nil {
			add(name) // of containerd's PATH only, or not needed
			continue
		}
		id, err := proven.File(path)
		if err != nil {
			return "", err
		}
		add(id)
	}
	if c.Programs != "" { // they have megabytes
		add(c.Programs)
		return hex.EncodeToString(sum.Sum(nil)), nil
	}
	for _, open := range []func() (io.ReadCloser, error){c.Guest, c.ProxyProgram, c.Runsc} {
		add("program")
		if open == nil {
			continue
		}
		f, err := open()
		if err != nil {
			return "", err
		}
		_, err = io.Copy(sum, f)
		if err = errors.Join(err, f.Close()); err != nil {
			return "", fmt.Errorf("identify programs: %w", err)
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// filesSum identifies the files that an agent finds in its root file system. Edits of the
// image's files are identified by what they make of an empty file.
func filesSum(files []rootfile.File) (string, error) {
	type file struct {
		Path, Link                 string
		Mode                       fs.FileMode
		MountPoint, Existing, Root bool
		Data                       []byte
		Edits                      bool
		Edited                     []byte
		EditError                  string
	}
	var list []file
	for _, f := range files {
		one := file{
			Path: f.Path, Link: f.Link, Mode: f.Mode, MountPoint: f.MountPoint, Existing: f.Existing, Root: f.Root, Data: f.Data,
			Edits: f.Edit != nil,
		}
		if f.Edit != nil {
			var err error
			if one.Edited, err = f.Edit(nil); err != nil {
				one.EditError = err.Error()
			}
		}
		list = append(list, one)
	}
	return sumJSON(list)
}

func (e *Engine) preparedPath(name string) string {
	return filepath.Join(e.stateDir(name), preparedFile)
}

// warmUp lets PID 1 start a process that returns at once. The first process of a sandbox takes
// twice as long to start as later ones: the sandbox has not run PID 1's code for it, and has
// no address space at hand.
func (l *launch) warmUp(ctx context.Context) error {
	s, err := session.Start(ctx, l.e.rt, l.plan.Name, session.Config{
		Command: []string{provision.GuestInit, "nothing"}, Dir: "/", Stdout: io.Discard, Stderr: io.Discard,
	}, l.agent.Exec)
	if err != nil {
		return err
	}
	code, err := s.Wait()
	if err == nil && code != 0 {
		err = fmt.Errorf("the guest program ended with code %d", code)
	}
	return err
}

// recordPrepared records that the launched bottle can be claimed when its launch is
// complete.
func (l *launch) recordPrepared(context.Context) error {
	img := session.Image(l.rootfs)
	r := preparedRecord{Agent: l.plan.Agent, Manifest: l.plan.Manifest, Created: time.Now(), Image: img, User: l.rootfs.User}
	var err error
	if r.Key, err = l.e.preparedKey(l.plan); err != nil {
		return err
	}
	if r.Files, err = filesSum(l.provisions().RootFiles(img)); err != nil {
		return err
	}
	if r.Warm, err = l.warmRecord(img); err != nil {
		return err
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(l.e.preparedPath(l.plan.Name), data, 0o600); err != nil {
		return fmt.Errorf("record prepared bottle: %w", err)
	}
	return nil
}

func (e *Engine) loadPrepared(name string) (r preparedRecord, err error) {
	data, err := os.ReadFile(e.preparedPath(name))
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	return r, err
}

// Prepared states.
const (
	PreparedReady = "prepared"
	// preparedStarting: a process launches or claims the bottle.
	preparedStarting = "starting"
	// preparedDead: it does not run, or the process that launched or claimed it has died.
	preparedDead = "dead"
)

// PreparedBottle is one of a pool.
type PreparedBottle struct {
	Name     string    `json:"name"`
	Agent    string    `json:"agent"`
	Manifest string    `json:"manifest"`
	State    string    `json:"state"`
	Created  time.Time `json:"created"`
	// Warm: its agent was started.
	Warm bool `json:"warm,omitempty"`

	key string
}

// IsPrepared reports whether a bottle was prepared and is not in use.
func (e *Engine) IsPrepared(name string) bool {
	_, err := os.Lstat(e.preparedPath(name))
	return err == nil && e.teardown.Finished(name)
}

// Pool returns the owner's prepared bottles, the oldest first, with those that have died.
func (e *Engine) Pool(ctx context.Context) ([]PreparedBottle, error) {
	dirs, err := e.teardown.StateDirs()
	if err != nil {
		return nil, err
	}
	list := []PreparedBottle{}
	for _, name := range dirs {
		// Root sees the bottles of all users, but each user's pools are their own.
		if names.Owner(name) != e.cfg.Owner {
			continue
		}
		r, err := e.loadPrepared(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		b := PreparedBottle{Name: name, Agent: r.Agent, Manifest: r.Manifest, Created: r.Created, Warm: r.Warm != nil, key: r.Key, State: preparedDead}
		if err != nil { // an incomplete record
			list = append(list, b)
			continue
		}
		if b.State, err = e.preparedState(ctx, name); err != nil {
			return nil, err
		}
		list = append(list, b)
	}
	slices.SortFunc(list, func(a, b PreparedBottle) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.Name, b.Name))
	})
	return list, nil
}

func (e *Engine) preparedState(ctx context.Context, name string) (string, error) {
	if !e.teardown.Finished(name) {
		launching, err := e.teardown.Launching(ctx, name)
		if launching || err != nil {
			return preparedStarting, err
		}
		return preparedDead, nil
	}
	// Its claimer asks containerd.
	if e.rt.RunningByNotes(name, names.Proxy(name)) {
		return PreparedReady, nil
	}
	running, err := e.rt.RunningOnHost(ctx, name, names.Proxy(name))
	if !running || err != nil {
		return preparedDead, err
	}
	return PreparedReady, nil
}

// Prepared returns the name of a prepared bottle that a plan's run would use; empty: there
// is none.
func (e *Engine) Prepared(ctx context.Context, p *plan.Plan) (string, error) {
	list, _, err := e.usable(ctx, p)
	if len(list) == 0 {
		return "", err
	}
	return list[0], nil
}

// usable returns the names of the prepared bottles that a plan's run may use, and their
// key, which is not computed if there are none.
func (e *Engine) usable(ctx context.Context, p *plan.Plan) (list []string, key string, err error) {
	pool, err := e.Pool(ctx)
	if err != nil || len(pool) == 0 {
		return nil, "", err
	}
	if key, err = e.preparedKey(p); err != nil {
		return nil, "", err
	}
	for _, b := range pool {
		if b.State != PreparedReady || b.key != key {
			continue
		}
		if _, _, err := e.fits(p, b.Name, key); err == nil {
			list = append(list, b.Name)
		}
	}
	return list, key, nil
}

// fits returns the record of a prepared bottle and its injection, without secrets, if a
// plan's run may use it.
func (e *Engine) fits(p *plan.Plan, name, key string) (preparedRecord, *injection.Injection, error) {
	r, err := e.loadPrepared(name)
	if errors.Is(err, fs.ErrNotExist) {
		err = runtime.ErrTaken
	}
	if err != nil {
		return r, nil, err
	}
	l := &launch{e: e, plan: named(p, name)}
	if l.injection, err = e.preparedInjection(name); err != nil {
		return r, nil, err
	}
	files, err := filesSum(l.provisions().RootFiles(r.Image))
	if err == nil && (r.Key != key || r.Files != files || names.Owner(name) != e.cfg.Owner) {
		err = errors.New("prepared for another run")
	}
	if err == nil {
		err = l.fitsWarm(r)
	}
	return r, l.injection, err
}

// named returns a plan with another name.
func named(p *plan.Plan, name string) *plan.Plan {
	out := *p
	out.Name = name
	return &out
}

// preparedInjection returns the authority of a prepared bottle; nil: it has none.
func (e *Engine) preparedInjection(name string) (*injection.Injection, error) {
	data, roots, err := e.proxies.LoadSecrets(name, proxy.State{})
	if data == nil || err != nil {
		return nil, err
	}
	ca, _, err := inject.Decode(data)
	return &injection.Injection{CA: ca, Roots: roots}, err
}

// claimPrepared claims a prepared bottle for the run of a plan. It returns nil if there is
// none.
func (e *Engine) claimPrepared(ctx context.Context, p *plan.Plan) (*Bottle, error) {
	list, key, err := e.usable(ctx, p)
	if err != nil {
		return nil, err
	}
	if i := slices.Index(list, p.Prepared.Name); i > 0 { // the plan has shown this name
		list[0], list[i] = list[i], list[0]
	}
	for _, name := range list {
		b, err := e.claim(ctx, p, name, key)
		if err == nil {
			return b, nil
		}
		if ctx.Err() != nil || !errors.Is(err, runtime.ErrTaken) && !errors.Is(err, runtime.ErrNotRunning) {
			return nil, err
		}
		e.log.Info("cannot use a prepared bottle", "bottle", name, "error", err)
	}
	return nil, nil
}

// claim gives a prepared bottle to the run of a plan. If that fails once it has begun, the
// bottle is removed.
func (e *Engine) claim(ctx context.Context, p *plan.Plan, name, key string) (_ *Bottle, err error) {
	l := &launch{e: e, plan: named(p, name), dir: e.dir(name), timings: &timing.Timings{}}
	defer l.timings.Begin("launch")()
	defer func() { l.claim.Unlock() }()
	var r preparedRecord
	err = l.step(ctx, "claim prepared", func(ctx context.Context) (err error) {
		l.claim, err = e.teardown.Take(name, func() (err error) {
			if r, l.injection, err = e.fits(p, name, key); err != nil {
				return err
			}
			return e.checkRunning(ctx, name)
		})
		return err
	})
	if l.claim == nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		l.relay.Close()
		l.warm.Close()
		// The user gets the first error.
		if rerr := e.teardown.Remove(ctx, l.claim.Identity(), l.timings); rerr != nil {
			e.log.Error("undo claim", "bottle", name, "error", rerr)
		}
	}()
	if err != nil {
		return nil, err
	}
	if err := l.auditStart(); err != nil {
		return nil, err
	}
	if err := l.give(ctx, r); err != nil {
		return nil, err
	}
	if err := l.startSSH(ctx); err != nil {
		return nil, err
	}
	if r.Warm != nil {
		err := l.step(ctx, "claim agent", func(ctx context.Context) (err error) {
			l.warm, err = session.Claim(ctx, e.rt, name)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	err = l.step(ctx, "end claim", func(context.Context) error {
		// First, because it must not be claimed again whatever happens then.
		if err := os.Remove(e.preparedPath(name)); err != nil {
			return fmt.Errorf("claim %s: %w", name, err)
		}
		return l.claim.Complete()
	})
	if err != nil {
		return nil, err
	}
	return l.bottle(), nil
}

func (e *Engine) checkRunning(ctx context.Context, name string) error {
	running, err := e.rt.RunningOnHost(ctx, name, names.Proxy(name))
	if err == nil && !running {
		err = runtime.ErrNotRunning
	}
	return err
}

// give gives a prepared bottle what is the run's own: the policy and the secrets of its
// proxy, and the agent's variables, prompt and keys.
func (l *launch) give(ctx context.Context, r preparedRecord) error {
	var secrets, roots []byte
	if l.injection != nil {
		if err := l.injection.AddSecrets(l.plan); err != nil {
			return err
		}
		if r.Warm != nil { // the agent has them
			l.injection.Use(r.Warm.Placeholders)
		}
		var err error
		if secrets, err = inject.Encode(l.injection.CA, l.injection.Secrets); err != nil {
			return err
		}
		roots = l.injection.Roots
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return l.step(gctx, "give policy", func(ctx context.Context) error {
			return l.e.proxies.Give(ctx, l.plan.Name, l.state(), secrets, roots)
		})
	})
	g.Go(func() error {
		return l.step(gctx, "give files", func(context.Context) error {
			return session.GiveFiles(l.dir, l.provisions().LateFiles(r.Image), r.User)
		})
	})
	g.Go(func() error {
		return l.step(gctx, "find agent", func(ctx context.Context) (err error) {
			l.agent, err = l.e.rt.RunningTask(ctx, l.plan.Name)
			return err
		})
	})
	return g.Wait()
}

// ErrPending is wrapped if bottles cannot be prepared because an image is missing.
var ErrPending = errors.New("its image is missing")

// ErrPoolProxy is wrapped if bottles cannot be prepared because of their proxy: only the
// built-in one is known to refuse everything until it is given a policy.
var ErrPoolProxy = errors.New("only bottles with the built-in proxy can be prepared")

// ErrPoolLogins is wrapped if bottles cannot be prepared because files with logins would be
// in them.
var ErrPoolLogins = errors.New("bottles with login files cannot be prepared")

// ErrPoolForms is wrapped if an agent cannot be started ahead of its runs because the form of
// an injected value is not known.
var ErrPoolForms = errors.New("an injected value is missing or too short, or a token that expires")

// FillPool removes the prepared bottles of a plan's agent that have died or that its run
// would not use, and prepares or removes others until there are count. The plan needs no
// values of variables (plan.Spec.NamesOnly), and for an agent that is started ahead only their
// forms (plan.Spec.Forms). It then wraps a session.Ended or session.Failure if the agent has
// ended at once, and prepares no more. Concurrent calls take turns.
func (e *Engine) FillPool(ctx context.Context, p *plan.Plan, count int) (err error) {
	if count > 0 && p.Proxy.Kind != manifest.ProxyBuiltin {
		return fmt.Errorf("prepare bottles of %s: %w", p.Agent, ErrPoolProxy)
	}
	if count > 0 && len(p.Logins) > 0 {
		return fmt.Errorf("prepare bottles of %s: %w", p.Agent, ErrPoolLogins)
	}
	if count > 0 && p.Pending() {
		return fmt.Errorf("prepare bottles of %s: %w", p.Agent, ErrPending)
	}
	if count > 0 && p.Warm && !p.UsesWarm() {
		return fmt.Errorf("prepare bottles of %s: %w", p.Agent, ErrPoolForms)
	}
	lock, err := e.lockPools(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()); e.teardown.Prune() }()
	var useful []string
	if count > 0 {
		if useful, _, err = e.usable(ctx, p); err != nil {
			return err
		}
		useful = useful[:min(len(useful), count)]
	}
	err = e.drain(ctx, func(b PreparedBottle) bool {
		return b.Agent == p.Agent && b.Manifest == p.Manifest && !slices.Contains(useful, b.Name)
	})
	for range count - len(useful) {
		if err != nil {
			break
		}
		err = e.prepareOne(ctx, p)
	}
	return err
}

// lockPools lets one process at a time change the pools. The lock is on a directory, which
// whoever removes the last bottle may remove.
func (e *Engine) lockPools(ctx context.Context) (*filelock.Lock, error) {
	dir := e.stateDir("")
	for {
		if err := shareddir.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
		lock, err := filelock.Open(ctx, dir, nil)
		if !errors.Is(err, fs.ErrNotExist) {
			return lock, err
		}
	}
}

// prepareOne launches a prepared bottle.
func (e *Engine) prepareOne(ctx context.Context, p *plan.Plan) error {
	in, err := injection.NewAuthority(p)
	if err != nil {
		return err
	}
	taken, err := e.Taken(ctx)
	if err != nil {
		return err
	}
	name, err := names.Free(p.Agent, names.VisibleNames(taken, e.cfg.Owner))
	if err != nil {
		return err
	}
	p = named(p, names.ID(name, e.cfg.Owner))
	p.Pinned = false
	_, err = e.launchFree(ctx, p, in, true)
	return err
}

// DrainPool removes the prepared bottles for which remove returns true, and those that
// have died. It leaves those alone that a run is claiming.
func (e *Engine) DrainPool(ctx context.Context, remove func(PreparedBottle) bool) (err error) {
	lock, err := e.lockPools(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()); e.teardown.Prune() }()
	return e.drain(ctx, remove)
}

func (e *Engine) drain(ctx context.Context, remove func(PreparedBottle) bool) error {
	pool, err := e.Pool(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, b := range pool {
		switch {
		case b.State == preparedStarting:
		case b.State == preparedDead:
			errs = append(errs, e.Remove(ctx, b.Name))
		case remove(b):
			errs = append(errs, e.drainOne(ctx, b.Name))
		}
	}
	return errors.Join(errs...)
}

// drainOne claims a prepared bottle, so that no run does, and removes it.
func (e *Engine) drainOne(ctx context.Context, name string) error {
	claim, err := e.teardown.Take(name, func() error {
		if !e.IsPrepared(name) {
			return runtime.ErrTaken
		}
		return nil
	})
	if errors.Is(err, runtime.ErrTaken) {
		return nil // by a run
	}
	if err != nil {
		return err
	}
	defer claim.Unlock()
	return e.teardown.Remove(ctx, claim.Identity(), &timing.Timings{})
}
