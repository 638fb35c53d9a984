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
	"github.com/bot-bottle/bottle/internal/caller"
)

type buildFlags struct {
	request               bottle.BuildRequest
	args, labels, secrets []string
	contexts, ssh         []string
	cacheSize             string
	quiet, prune          bool
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
	fs.StringVar(&f.request.Progress, "progress", "auto", "progress output: "+strings.Join(bottle.BuildProgress, ", "))
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
	if !slices.Contains(bottle.BuildProgress, req.Progress) {
		return withHint(fmt.Errorf(textBuildProgress, req.Progress), hintBuildProgress, strings.Join(bottle.BuildProgress, ", "))
	}
	req.Out = a.stderr
	res, err := bottle.Build(a.ctx, cfg, caller.Current(), req, func() { a.note(textBuildWaits) })
	if err != nil {
		return err
	}
	return a.printBuilt(res)
}

// buildFiles sets context and Dockerfile. As in docker, "-" is standard input: for the
// context it is a tar archive or a Dockerfile that needs no context.
func (a *app) buildFiles(req *bottle.BuildRequest, context string) error {
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

func (a *app) buildStdin(req *bottle.BuildRequest) error {
	req.Context = ""
	in := bufio.NewReaderSize(a.stdin, bottle.ArchiveHeader)
	header, err := in.Peek(bottle.ArchiveHeader)
	if err != nil && !errors.Is(err, io.EOF) { // a Dockerfile may be shorter
		return fmt.Errorf("read standard input: %w", err)
	}
	switch {
	case bottle.IsArchive(header):
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

func buildText(req *bottle.BuildRequest, in io.Reader) (err error) {
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
	freed, err := bottle.PruneBuilds(a.ctx, a.config(), func() { a.note(textBuildWaits) })
	if err != nil {
		return err
	}
	a.note(textBuildPruned, units.BytesSize(float64(freed)))
	return nil
}

// buildConfig returns the configuration with the limit of the build cache. The
// flag overrides the environment.
func (a *app) buildConfig(cacheSize string) (bottle.Config, error) {
	cfg := a.config()
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
func buildSecrets(list []string) ([]bottle.BuildSecret, error) {
	var out []bottle.BuildSecret
	for _, text := range list {
		fields, err := csv.NewReader(strings.NewReader(text)).Read()
		if err != nil {
			return nil, withHint(errors.New(textBuildSecret), hintBuildSecret)
		}
		var s bottle.BuildSecret
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
func buildSSH(list []string) ([]bottle.BuildSSHAgent, error) {
	var out []bottle.BuildSSHAgent
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
		out = append(out, bottle.BuildSSHAgent{ID: id, Socket: socket})
	}
	return out, nil
}
