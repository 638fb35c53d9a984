package main

import (
	"fmt"
	"strings"

	"github.com/bot-bottle/bottle"
	"github.com/bot-bottle/bottle/plan"
)

const (
	textBuildLong = `Build an image from a Dockerfile into containerd's store, where bottle run finds
it. CONTEXT is a directory, the URL of a git repository or an archive, or - for
standard input: a tar archive (plain, gzip, bzip2 or xz), or a Dockerfile that
needs no context. Files are read with the rights of the user who runs bottle.
BuildKit is built in: neither docker nor a buildkitd is needed, but the one that
BUILDKIT_HOST names is used.

RUN steps have the network of the host, its loopback included: build what you
would run. RUN --network=none gives a step none. The digest of the image is
printed on standard output.`
	textBuildExample = `  sudo bottle build -t my-agent:1 .
  sudo bottle build -t my-agent:1 --target dev --build-arg VERSION=2 --secret id=npmrc,src=$HOME/.npmrc .
  sudo bottle build -t my-agent:1 --ssh default=$SSH_AUTH_SOCK .
  git archive HEAD | sudo bottle build -t my-agent:1 -f docker/Dockerfile -
  sudo bottle build --prune`

	textBuildArgs        = "one context is needed, a folder or a URL: bottle build -t NAME CONTEXT"
	textBuildPruneArgs   = "with --prune nothing is built: leave the context out"
	textBuildProgress    = "no progress %q: choose one of %s"
	textBuildCacheSize   = "%q is no size: write one such as 5GB, or 0 for no bound"
	textBuildStdin       = "standard input holds no Dockerfile, or one that is larger than 4 MiB"
	textBuildStdinTwice  = "context and Dockerfile cannot both be on standard input: add the Dockerfile to the archive"
	textBuildNoArchive   = "standard input is not a tar archive, in which --file could name a Dockerfile"
	textBuildSSH         = "invalid --ssh %q: use default or ID=SOCKET"
	textBuildSSHUnset    = "missing socket of ssh agent %s: SSH_AUTH_SOCK is not set, as sudo removes it; add =$SSH_AUTH_SOCK"
	textBuildContext     = "--build-context %q is not NAME=FOLDER, NAME=URL or NAME=docker-image://IMAGE"
	textBuildArg         = "--build-arg %q has no name: write NAME=VALUE"
	textBuildLabel       = "--label %q has no name: write NAME=VALUE"
	textBuildSecret      = "a --secret is id=ID,src=FILE or id=ID,env=NAME"
	textBuildSecretUnset = "the secret %s has no file, and %s is not set here: add src=FILE"
	textBuildWaits       = "Another build is running here: waiting for it to end."
	textBuildPruned      = "Removed %s of what builds had kept."
)

// printBuilt writes the image's digest, for programs.
func (a *app) printBuilt(res bottle.BuildResult) error {
	_, err := fmt.Fprintln(a.stdout, res.Digest)
	return err
}

// planCommand is the agent's command, as far as it is known yet.
func planCommand(p *plan.Plan) string {
	if len(p.Command) == 0 {
		return "what the image says, once it is there"
	}
	return commandLine(p.Command)
}

// plannedBuild tells what is built before a launch, and why.
func plannedBuild(b *plan.Build) string {
	line := ""
	switch {
	case b.Default && b.Reason == plan.BuildMissing:
		line = "first, as it is missing: bottle's default agent image, of packages from Debian and npm"
	case b.Default:
		line = "first, as bottle's Dockerfile or the arguments are others than it was built with: the default agent image"
	case b.Reason == plan.BuildMissing:
		line = "first: " + visible(b.Dockerfile) + " in " + visible(b.Context)
	default:
		line = "what has changed of it, first: " + visible(b.Dockerfile) + " in " + visible(b.Context)
	}
	if len(b.Secrets) > 0 {
		line += ", shown the secrets " + visible(strings.Join(b.Secrets, ", "))
	}
	return line
}
