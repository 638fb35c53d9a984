package main

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/images/supply"
	"github.com/bot-bottle/bottle/internal/caller"
)

type buildFlags struct {
	request               supply.Request
	args, labels, secrets []string
	contexts, ssh         []string
	cacheSize             string
	quiet, prune          bool
	network               string
	allow                 []string
}

func (a *app) buildCommand() *cobra.Command {
	var f buildFlags
	cmd := &cobra.Command{
		Use:     "build [flags] CONTEXT",
		Short:   "Build an image from a Dockerfile into containerd's store",
		Long:    textBuildLong,
		Example: textBuildExample,
		RunE: func(_ *cobra.Command, args []string) error {
			if f.prune {
				return a.pruneBuilds(args)
			}
			return a.build(f, args)
		},
	}
	fs := cmd.Flags()
	fs.StringArrayVarP(&f.request.Names, "tag", "t", nil, "name of the image; can be repeated")
	fs.StringVarP(&f.request.Dockerfile, "file", "f", "", "the Dockerfile, or - for standard input (default: Dockerfile in CONTEXT)")
	fs.StringVar(&a.hostsDir, "hosts-dir", "", textHostsDir)
	fs.StringArrayVar(&f.contexts, "build-context", nil, "additional named context (NAME=DIRECTORY, NAME=URL or NAME=docker-image://IMAGE)")
	fs.StringVar(&f.request.Target, "target", "", "the stage to build (default: the last)")
	fs.StringArrayVar(&f.args, "build-arg", nil, "set an ARG (NAME=VALUE), or forward a variable (NAME)")
	fs.StringArrayVar(&f.labels, "label", nil, "set a label of the image (NAME=VALUE)")
	fs.StringArrayVar(&f.secrets, "secret", nil, "expose a secret to build steps (id=ID,src=FILE or id=ID,env=NAME)")
	fs.StringArrayVar(&f.ssh, "ssh", nil, "forward an ssh agent to steps (default, or ID=SOCKET)")
	fs.StringVar(&f.request.Platform, "platform", "", "build for another platform, such as linux/arm64")
	fs.BoolVar(&f.request.NoCache, "no-cache", false, "run every step again")
	fs.BoolVar(&f.request.Pull, "pull", false, "look for newer base images in registries")
	fs.StringVar(&f.request.Progress, "progress", "auto", "progress output: "+strings.Join(supply.BuildProgress, ", "))
	fs.StringVar(&f.network, "network", "proxy", "network of RUN steps: proxy, or host")
	fs.StringArrayVar(&f.allow, "allow", nil, "a host, or @PRESET, that RUN steps reach; can be repeated (default: all public hosts)")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "do not show progress")
	fs.StringVar(&f.cacheSize, "cache-size", "", "limit of the build cache, such as 5GB; 0 keeps none (BOTTLE_BUILD_CACHE; default 20GB)")
	fs.BoolVar(&f.prune, "prune", false, "remove the build cache and stop")
	return cmd
}

func (a *app) build(f buildFlags, args []string) error {
	if len(args) != 1 {
		return withHint(errors.New(textBuildArgs), hintBuildArgs)
	}
	cfg, err := a.buildConfig(f.cacheSize)
	if err != nil {
		return err
	}
	req := f.request
	if req.Network, err = a.buildNetwork(f); err != nil {
		return err
	}
	if err := a.buildFiles(&req, args[0]); err != nil {
		return err
	}
	if req.Contexts, err = buildContexts(f.contexts); err != nil {
		return err
	}
	if req.Args, err = buildArgs(f.args); err != nil {
		return err
	}
	if req.Labels, err = buildLabels(f.labels); err != nil {
		return err
	}
	if req.Secrets, err = buildSecrets(f.secrets); err != nil {
		return err
	}
	if req.SSH, err = buildSSH(f.ssh); err != nil {
		return err
	}
	if f.quiet {
		req.Progress = "quiet"
	}
	if !slices.Contains(supply.BuildProgress, req.Progress) {
		return withHint(fmt.Errorf(textBuildProgress, req.Progress), hintBuildProgress, strings.Join(supply.BuildProgress, ", "))
	}
	for _, s := range req.Secrets {
		if err := a.auditBuildSecret("", strings.Join(req.Names, " "), s.ID); err != nil {
			return err
		}
	}
	req.Out = a.stderr
	res, err := supply.Build(a.ctx, cfg.Images(), caller.Current(), req, func() { a.note(textBuildWaits) })
	if err != nil {
		return err
	}
	return a.printBuilt(res)
}

// buildNetwork returns the network of a build's steps.
func (a *app) buildNetwork(f buildFlags) (supply.Network, error) {
	n := supply.Network{Host: f.network == "host", Allow: f.allow}
	switch {
	case f.network != "host" && f.network != "proxy":
		return n, withHint(fmt.Errorf(textBuildNetwork, f.network), hintBuildNetwork)
	case n.Host && n.Allow != nil:
		return n, withHint(errors.New(textBuildAllow), hintBuildAllow)
	case n.Host:
		a.note(textBuildHostNet)
	}
	return n, nil
}

// buildFiles sets context and Dockerfile. As in docker, "-" is standard input: for the
// context it is a tar archive or a Dockerfile that needs no context.
func (a *app) buildFiles(req *supply.Request, context string) error {
	req.Context = context
	switch {
	case context == "-" && req.Dockerfile == "-":
		return withHint(errors.New(textBuildStdinTwice), hintBuildStdinTwice)
	case context == "-":
		return a.buildStdin(req)
	case req.Dockerfile == "-":
		return buildText(req, a.stdin)
	case req.Dockerfile == "":
		req.Dockerfile = "Dockerfile"
		if !strings.Contains(context, "://") && !strings.HasPrefix(context, "git@") {
			req.Dockerfile = filepath.Join(context, "Dockerfile")
		}
	}
	return nil
}

func (a *app) buildStdin(req *supply.Request) error {
	req.Context = ""
	in := bufio.NewReaderSize(a.stdin, supply.ArchiveHeader)
	header, err := in.Peek(supply.ArchiveHeader)
	if err != nil && !errors.Is(err, io.EOF) { // a Dockerfile may be shorter
		return fmt.Errorf("read standard input: %w", err)
	}
	switch {
	case supply.IsArchive(header):
		req.Tar = in
		if req.Dockerfile == "" {
			req.Dockerfile = "Dockerfile"
		}
		return nil
	case req.Dockerfile != "":
		return errors.New(textBuildNoArchive)
	}
	return buildText(req, in)
}

func buildText(req *supply.Request, in io.Reader) (err error) {
	req.Dockerfile = "-"
	if req.Text, err = io.ReadAll(io.LimitReader(in, maxDockerfile+1)); err != nil {
		return fmt.Errorf("read the Dockerfile from standard input: %w", err)
	}
	if len(req.Text) == 0 || len(req.Text) > maxDockerfile {
		return errors.New(textBuildStdin)
	}
	return nil
}

// maxDockerfile is the largest Dockerfile on standard input, in bytes.
const maxDockerfile = 4 << 20

func (a *app) pruneBuilds(args []string) error {
	if len(args) > 0 {
		return errors.New(textBuildPruneArgs)
	}
	cfg, err := a.config()
	if err != nil {
		return err
	}
	done := a.busy(textBusyPrune)
	freed, err := supply.Prune(a.ctx, cfg.Images(), func() { a.note(textBuildWaits) })
	done()
	if err != nil {
		return err
	}
	a.note(textBuildPruned, units.BytesSize(float64(freed)))
	return nil
}

// buildConfig returns the configuration with the limit of the build cache. The
// flag overrides the environment.
func (a *app) buildConfig(cacheSize string) (bottle.Config, error) {
	cfg, err := a.config()
	if err != nil {
		return cfg, err
	}
	if cacheSize == "" {
		cacheSize = os.Getenv("BOTTLE_BUILD_CACHE")
	}
	if cacheSize == "" {
		return cfg, nil
	}
	n, err := units.RAMInBytes(cacheSize)
	if err != nil || n < 0 {
		return cfg, withHint(fmt.Errorf(textBuildCacheSize, cacheSize), hintBuildCacheSize)
	}
	cfg.BuildCache = n
	return cfg, nil
}

// buildArgs parses NAME=VALUE, and NAME as docker does: a variable that is not set
// is left out.
func buildArgs(list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, kv := range list {
		name, value, given := strings.Cut(kv, "=")
		if name == "" {
			return nil, withHint(fmt.Errorf(textBuildArg, kv), hintNameValue)
		}
		if !given {
			if value, given = os.LookupEnv(name); !given {
				continue
			}
		}
		out[name] = value
	}
	return out, nil
}

func buildContexts(list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, kv := range list {
		name, from, _ := strings.Cut(kv, "=")
		if name == "" || from == "" {
			return nil, withHint(fmt.Errorf(textBuildContext, kv), hintBuildContext)
		}
		out[name] = from
	}
	return out, nil
}

func buildLabels(list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, kv := range list {
		name, value, _ := strings.Cut(kv, "=")
		if name == "" {
			return nil, withHint(fmt.Errorf(textBuildLabel, kv), hintNameValue)
		}
		out[name] = value
	}
	return out, nil
}

// buildSecrets parses docker's syntax: id=ID,src=FILE or id=ID,env=NAME; id=ID
// alone reads the variable of that name.
func buildSecrets(list []string) ([]supply.Secret, error) {
	var out []supply.Secret
	for _, text := range list {
		fields, err := csv.NewReader(strings.NewReader(text)).Read()
		if err != nil {
			return nil, withHint(errors.New(textBuildSecret), hintBuildSecret)
		}
		var s supply.Secret
		env := ""
		for _, f := range fields {
			key, value, _ := strings.Cut(f, "=")
			switch key {
			case "id":
				s.ID = value
			case "src", "source":
				s.File = value
			case "env":
				env = value
			case "type":
			default:
				return nil, withHint(errors.New(textBuildSecret), hintBuildSecret)
			}
		}
		if s.ID == "" {
			return nil, withHint(errors.New(textBuildSecret), hintBuildSecret)
		}
		if s.File == "" {
			if env == "" {
				env = s.ID
			}
			value, ok := os.LookupEnv(env)
			if !ok {
				return nil, withHint(fmt.Errorf(textBuildSecretUnset, s.ID, env), hintBuildSecretUnset)
			}
			s.Value = func() []byte { return []byte(value) }
		}
		out = append(out, s)
	}
	return out, nil
}

// buildSSH accepts docker's forms with an agent's socket: default, ID or ID=SOCKET.
// Without a socket it is SSH_AUTH_SOCK's.
func buildSSH(list []string) ([]supply.SSHAgent, error) {
	var out []supply.SSHAgent
	for _, text := range list {
		id, socket, _ := strings.Cut(text, "=")
		if id == "" || strings.Contains(text, ",") {
			return nil, withHint(fmt.Errorf(textBuildSSH, text), hintBuildSSH)
		}
		if socket == "" {
			socket = os.Getenv("SSH_AUTH_SOCK")
		}
		if socket == "" {
			return nil, withHint(fmt.Errorf(textBuildSSHUnset, id), hintBuildSSHUnset)
		}
		out = append(out, supply.SSHAgent{ID: id, Socket: socket})
	}
	return out, nil
}
