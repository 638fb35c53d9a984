package runtime

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/bot-bottle/bottle/internal/lazyregexp"
	"github.com/bot-bottle/bottle/internal/treecopy"
)

// CloneConfig describes a container that is restored from the memory image of another one.
type CloneConfig struct {
	Source, Name string // containers
	NetNS        string // path of the network namespace
	Hostname     string
	// Paths are pairs of directories, of the source and of the new container, in which mounts
	// have their sources.
	Paths  []string
	Labels map[string]string // replace the source's
}

// CloneRootFS creates a snapshot like that of a container: with the same image below it, and
// with the files that bottle has written into it. What the agent has written is not in it but
// in a memory image. The error wraps ErrTaken if the key exists. After an error nothing is
// left behind.
func (c *Client) CloneRootFS(ctx context.Context, source, key string) (*RootFS, error) {
	ctx, cancel := c.withoutCancel(ctx)
	defer cancel()
	sn := c.ctrd.SnapshotService(c.cfg.Snapshotter)
	info, err := sn.Stat(ctx, source)
	if err != nil {
		return nil, fmt.Errorf("find root file system of %s: %w", source, err)
	}
	from, err := sn.Mounts(ctx, source)
	if err != nil {
		return nil, fmt.Errorf("get mounts of %s: %w", source, err)
	}
	r := &RootFS{c: c, key: key, id: rand.Text()}
	to, err := sn.Prepare(ctx, key, info.Parent, snapshots.WithLabels(map[string]string{
		LabelName: key, LabelID: r.id, "containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339),
	}))
	if errdefs.IsAlreadyExists(err) {
		err = ErrTaken
	}
	if err != nil {
		return nil, fmt.Errorf("create snapshot %s: %w", key, err)
	}
	r.layer = writableDir(to)
	files, copied := writableDir(from), r.layer
	if files == "" || copied == "" {
		err = fmt.Errorf("the snapshotter %s has no directory of changed files", c.cfg.Snapshotter)
	} else {
		// A snapshotter that copies layers instead of mounting them has all files here.
		err = os.RemoveAll(copied)
		if err == nil {
			err = treecopy.Dir(files, copied, func(name string) bool { return strings.HasPrefix(name, filestore) })
		}
	}
	if err != nil {
		return nil, errors.Join(err, r.Remove(ctx))
	}
	return r, nil
}

var configRoot = lazyregexp.New(`(?m)^root = .*$`)

// CloneAgent creates and starts the task of a container like another one, from the memory
// image of that, with a root file system of CloneRootFS. gVisor refuses an image that does not
// fit. After an error nothing is left behind; the root file system is removed too.
func (c *Client) CloneAgent(ctx context.Context, cfg CloneConfig, r *RootFS, image string) (_ *Task, err error) {
	ctx, cancel := c.withoutCancel(ctx)
	defer cancel()
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Remove(ctx))
		}
	}()
	from, spec, err := c.agentRecord(ctx, cfg.Source)
	if err != nil {
		return nil, err
	}
	c.cloneSpec(spec, cfg)
	program, err := c.writeRunscProgram(cfg.Name)
	if err != nil {
		return nil, err
	}
	conf := filepath.Join(c.Dir(cfg.Name), runscConfig)
	text, err := os.ReadFile(filepath.Join(c.Dir(cfg.Source), runscConfig))
	if err == nil {
		text = binaryName().ReplaceAllLiteral(text, fmt.Appendf(nil, "binary_name = %q", program))
		text = configRoot().ReplaceAllLiteral(text, fmt.Appendf(nil, "root = %q", filepath.Join(c.Dir(cfg.Name), "runsc")))
		err = os.WriteFile(conf, text, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("write runsc configuration: %w", err)
	}
	labels := maps.Clone(from.Labels)
	maps.Copy(labels, cfg.Labels)
	rec := containers.Container{ID: cfg.Name, Labels: labels, Image: from.Image, Snapshotter: from.Snapshotter, SnapshotKey: r.key}
	opts := &runtimeoptions.Options{TypeUrl: "io.containerd.runsc.v1.options", ConfigPath: conf}
	if err := c.recordLimits(cfg.Name, spec, r); err != nil {
		return nil, err
	}
	shim := from.Runtime.Name
	if shim == c.runscProgram(cfg.Source) {
		shim = c.cfg.Shim
	}
	created, err := c.createRecord(ctx, rec, c.ownShim(shim, cfg.Name, program), opts, spec)
	if err != nil {
		return nil, err
	}
	t, err := c.restore(ctx, created, spec, image)
	if err != nil {
		return nil, errors.Join(err, c.removeOwn(ctx, rec))
	}
	return t, nil
}

// cloneSpec replaces what a spec has of its container alone. Everything else must be equal.
func (c *Client) cloneSpec(spec *specs.Spec, cfg CloneConfig) {
	spec.Hostname, spec.Linux.CgroupsPath = cfg.Hostname, c.cgroupPath(cfg.Name)
	for i, n := range spec.Linux.Namespaces {
		if n.Type == specs.NetworkNamespace {
			spec.Linux.Namespaces[i].Path = cfg.NetNS
		}
	}
	path := func(p string) string {
		for i := 0; i+1 < len(cfg.Paths); i += 2 {
			if rest, below := strings.CutPrefix(p, cfg.Paths[i]+"/"); below {
				return filepath.Join(cfg.Paths[i+1], rest)
			}
		}
		return p
	}
	for i := range spec.Mounts {
		spec.Mounts[i].Source = path(spec.Mounts[i].Source)
	}
	for k, v := range spec.Annotations { // of mounts that something else changes
		spec.Annotations[k] = path(v)
	}
}

// ProxyFacts returns the image, if it has one, and the memory limit of a bottle's proxy.
func (c *Client) ProxyFacts(ctx context.Context, id string) (image string, memory int64, err error) {
	cont, spec, err := c.loadContainer(c.withNamespace(ctx), id)
	if err != nil {
		return "", 0, err
	}
	r, err := cont.Info(c.withNamespace(ctx), containerd.WithoutRefreshedMetadata)
	return r.Image, memoryLimit(spec), err
}

// restoreScriptFile returns the path of the program that restores a sandbox. The run
// directory may be mounted noexec.
func (c *Client) restoreScriptFile(id string) string {
	return filepath.Join(c.cfg.StateDir, id, "runsc-restore")
}

// writeRestoreScript writes that program. For everything else it runs what the sandbox was created
// with.
func (c *Client) writeRestoreScript(id, image string) (string, error) {
	program := c.runscProgram(id)
	if _, err := os.Stat(program); err != nil {
		if program, err = exec.LookPath("runsc"); err != nil {
			return "", fmt.Errorf("find runsc: %w", err)
		}
	}
	script := c.restoreScriptFile(id)
	text := fmt.Sprintf(restoreScript, shellQuote(id), shellQuote(image), shellQuote(program))
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		return "", fmt.Errorf("write program that restores %s: %w", id, err)
	}
	return script, nil
}

// Labels returns the labels of a container.
func (c *Client) Labels(ctx context.Context, id string) (map[string]string, error) {
	r, err := c.ctrd.ContainerService().Get(c.withNamespace(ctx), id)
	if err != nil {
		return nil, fmt.Errorf("load container %s: %w", id, notRunning(err))
	}
	return r.Labels, nil
}
