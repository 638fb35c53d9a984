package main

import (
	"fmt"
	"strings"

	"github.com/bot-bottle/bottle/images/supply"
	"github.com/bot-bottle/bottle/plan"
)

const (
	textBuildLong = `Build an image from a Dockerfile into containerd's store, where bottle run finds
it. CONTEXT is a directory, the URL of a git repository or an archive, or - for
standard input: a tar archive (plain, gzip, bzip2 or xz), or a Dockerfile that
needs no context. Files are read with the rights of the user who runs bottle. The
full Dockerfile syntax is supported. Neither docker nor buildkitd is needed; if
BUILDKIT_HOST is set, that buildkitd builds instead. The image's digest is printed on
standard output.

The only way out of RUN steps is a proxy, which allows all public hosts, or those that
--allow names. Its address is in the usual variables, such as HTTP_PROXY. With
--network host steps use the host's network, including its loopback interface: build
only what you would run. RUN --network=none has no network.`
	textBuildExample = `  sudo bottle build -t my-agent:1 .
  sudo bottle build -t my-agent:1 --target dev --build-arg VERSION=2 --secret id=npmrc,src=$HOME/.npmrc .
  sudo bottle build -t my-agent:1 --ssh default=$SSH_AUTH_SOCK .
  git archive HEAD | sudo bottle build -t my-agent:1 -f docker/Dockerfile -
  sudo bottle build --prune`

	textBuildNetwork     = "invalid --network %q"
	hintBuildNetwork     = "choose --network proxy or --network host"
	textBuildAllow       = "--allow has no effect with --network host"
	hintBuildAllow       = "remove one of them"
	textBuildHostNet     = "WARNING: RUN steps use the host's network: they reach its loopback interface, its abstract sockets and its local networks"
	textBuildArgs        = "expected exactly one build context"
	hintBuildArgs        = "bottle build -t NAME CONTEXT, where CONTEXT is a directory or a URL"
	textBuildPruneArgs   = "--prune takes no build context"
	textBuildProgress    = "invalid --progress %q"
	hintBuildProgress    = "one of %s"
	textBuildCacheSize   = "invalid cache size %q"
	hintBuildCacheSize   = "a size such as 5GB; 0 keeps no cache"
	textBuildStdin       = "invalid Dockerfile on standard input: empty, or larger than 4 MiB"
	textBuildStdinTwice  = "context and Dockerfile cannot both be on standard input"
	hintBuildStdinTwice  = "add the Dockerfile to the archive"
	textBuildNoArchive   = "standard input is not a tar archive, which --file needs"
	textBuildSSH         = "invalid --ssh %q"
	hintBuildSSH         = "default or ID=SOCKET"
	textBuildSSHUnset    = "missing socket of the ssh agent %s: SSH_AUTH_SOCK is not set"
	hintBuildSSHUnset    = "sudo removes the variable: add =$SSH_AUTH_SOCK"
	textBuildContext     = "invalid --build-context %q"
	hintBuildContext     = "NAME=DIRECTORY, NAME=URL or NAME=docker-image://IMAGE"
	textBuildArg         = "missing name in --build-arg %q"
	textBuildLabel       = "missing name in --label %q"
	hintNameValue        = "NAME=VALUE"
	textBuildSecret      = "invalid --secret"
	hintBuildSecret      = "id=ID,src=FILE or id=ID,env=NAME"
	textBuildSecretUnset = "missing value of the secret %s: %s is not set"
	hintBuildSecretUnset = "add src=FILE, or set the variable"
	textBuildWaits       = "Waiting for another build on this host."
	textBuildPruned      = "Removed %s of build cache."
)

// printBuilt prints the image's digest.
func (a *app) printBuilt(res supply.Result) error {
	_, err := fmt.Fprintln(a.stdout, res.Digest)
	return err
}

// planCommand is the agent's command, if it is known before the image is available.
func planCommand(p *plan.Plan) string {
	if len(p.Command) == 0 {
		return "the image's (known once it is available)"
	}
	return commandLine(p.Command)
}

// plannedBuild describes what is built before a launch, and why.
func plannedBuild(b *plan.Build) string {
	line := ""
	switch {
	case b.Default && b.Reason == plan.BuildMissing:
		line = "default agent image (missing), from Debian and npm packages"
	case b.Default:
		line = "default agent image (its Dockerfile or build arguments have changed)"
	case b.Reason == plan.BuildMissing:
		line = visible(b.Dockerfile) + " in " + visible(b.Context)
	default:
		line = visible(b.Dockerfile) + " in " + visible(b.Context) + " (if changed)"
	}
	if b.Target != "" {
		line += ", target " + visible(b.Target)
	}
	return line + "; " + stepsText(b)
}

// buildSecretSources describes where the secrets of a build come from.
func buildSecretSources(secrets []plan.BuildSecret) []string {
	out := make([]string, len(secrets))
	for i, s := range secrets {
		out[i] = s.ID + " from " + s.From
		if name, ok := strings.CutPrefix(s.From, plan.SecretFromEnv); ok {
			out[i] = s.ID + " from the variable " + name
		}
	}
	return out
}

// stepsText describes the network of a build's steps.
func stepsText(b *plan.Build) string {
	switch {
	case b.HostNetwork:
		return "RUN steps use the host's network"
	case b.Allow == nil:
		return "RUN steps reach all public hosts"
	case len(b.Allow) == 0:
		return "RUN steps reach no host"
	}
	return "RUN steps reach " + visible(strings.Join(b.Allow, ", "))
}
