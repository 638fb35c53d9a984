package main

import (
	"context"
	"errors"
	"os"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bot-bottle/bottle/internal/caller"
	"github.com/bot-bottle/bottle/kubernetes"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/provision"
)

// exportCommand groups the commands that print an agent for another system. They need
// neither root nor containerd.
func (a *app) exportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Print an agent's definition for another system",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.exportKubernetesCommand())
	return cmd
}

func (a *app) exportKubernetesCommand() *cobra.Command {
	var opt kubernetes.Options
	var proxy string
	var cwd, learn bool
	cmd := &cobra.Command{
		Use:     "kubernetes AGENT [flags]",
		Short:   "Print the Kubernetes objects that run an agent",
		Long:    textExportLong,
		Example: textExportExample,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return withHint(errors.New(textNoAgent), hintExport)
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			switch {
			case cwd:
				return withHint(errors.New(textExportCwd), hintExportCwd)
			case learn:
				return withHint(errors.New(textExportLearn), hintExportLearn)
			}
			opt.Version = version()
			return a.exportKubernetes(plan.Spec{Agent: args[0], Proxy: proxy}, opt)
		},
	}
	fs := cmd.Flags()
	registerExport(fs, &opt, &proxy)
	fs.BoolVar(&opt.Sandbox, "sandbox", false, "make the agent a Sandbox of kubernetes-sigs/agent-sandbox instead of a Pod")
	// Flags of bottle run that users will try: their absence has a reason and a replacement.
	fs.BoolVar(&cwd, "cwd", false, "")
	fs.BoolVar(&learn, "learn", false, "")
	for _, name := range []string{"cwd", "learn"} {
		_ = fs.MarkHidden(name) // fails only for a flag that does not exist
	}
	return cmd
}

func (a *app) exportKubernetes(spec plan.Spec, opt kubernetes.Options) error {
	spec.NamesOnly = true
	p, err := a.planForCluster(spec)
	if err != nil {
		return err
	}
	out, err := kubernetes.Export(p, opt)
	if err != nil {
		return err
	}
	a.warnCluster(p, opt)
	_, err = a.stdout.Write(out)
	return err
}

// planForCluster plans a run on a cluster.
func (a *app) planForCluster(spec plan.Spec) (*plan.Plan, error) {
	spec.Caller, spec.ManifestPath = caller.Current(), a.manifest
	sys, err := a.system()
	if err != nil {
		return nil, err
	}
	spec.Rules = sys.rules
	if spec.Loaded, err = spec.Manifest(); err != nil {
		return nil, err
	}
	agent, bottle, err := spec.Loaded.Lookup(spec.Agent)
	if err != nil {
		return nil, err
	}
	if err := kubernetes.CheckAgent(agent, bottle); err != nil {
		return nil, err
	}
	return plan.Prepare(a.ctx, spec, cluster{})
}

func (a *app) warnCluster(p *plan.Plan, opt kubernetes.Options) {
	for _, w := range slices.Concat(p.Warnings, kubernetes.Warnings(p, opt)) {
		a.note("WARNING: %s", visible(w))
	}
}

// registerExport adds the flags of what is created on a cluster.
func registerExport(fs *pflag.FlagSet, opt *kubernetes.Options, proxy *string) {
	fs.StringVar(&opt.Namespace, "namespace", "", "the namespace of the objects (default bottle-AGENT)")
	fs.StringVar(&opt.Prefix, "image-prefix", "", "registry and path of the images that bottle builds, and of bottle's own")
	fs.StringVar(&opt.Image, "bottle-image", "", "bottle's own image (default bottle:VERSION below --image-prefix)")
	fs.StringArrayVar(&opt.Except, "except", nil, "an IPv4 network that the proxy must not reach, such as that of nodes with public addresses")
	fs.StringVar(&opt.Repo, "repo", "", "an https URL of a git repository, which the agent clones through its proxy and works in")
	fs.BoolVar(&opt.NoWalls, "no-walls", false, "leave the walls out, which need CAP_NET_ADMIN: only the cluster's NetworkPolicy encloses the agent")
	fs.StringVar(proxy, "proxy", "", "pipelock or builtin (default: the manifest's, or pipelock)")
}

// cluster answers what a plan asks about its host: of a cluster nothing is known, and images
// are pulled.
type cluster struct{}

func (cluster) Taken(context.Context) (map[string]bool, error) { return nil, nil }

func (cluster) Image(context.Context, string) (plan.ImageInfo, error) {
	return plan.ImageInfo{}, plan.ErrImageMissing
}

func (cluster) Runtime(context.Context, string) error { return nil }

func (cluster) Network(context.Context) (plan.Network, error) { return plan.Network{}, nil }

func (cluster) Prepared(context.Context, *plan.Plan) (string, error) { return "", nil }

func (cluster) Workspace(context.Context, int64) ([]string, error) { return nil, nil }

// kubernetesCommands run in the pods of an export, from bottle's own image.
func (a *app) kubernetesCommands() []*cobra.Command {
	var from, to, proxy string
	var gate kubernetes.Gate
	files := &cobra.Command{
		Use: "k8s-files", Short: "Copy an agent's files and programs", Hidden: true, Args: noArgs, PreRunE: refuseOutsidePod,
		RunE: func(*cobra.Command, []string) error {
			own, err := os.Executable()
			if err != nil {
				return err
			}
			return kubernetes.CopyFiles(from, to, kubernetes.Programs{Bottle: own, Guest: embeddedProgram("guest")})
		},
	}
	files.Flags().StringVar(&from, "from", "/config", "where the ConfigMap is mounted")
	files.Flags().StringVar(&to, "to", provision.GuestDir, "the agent's guest directory")
	walls := &cobra.Command{
		Use: "k8s-walls", Short: "Leave a pod's network only the proxy", Hidden: true, Args: noArgs, PreRunE: refuseOutsidePod,
		RunE: func(*cobra.Command, []string) error { return kubernetes.Wall(proxy) },
	}
	walls.Flags().StringVar(&proxy, "proxy", "", "the proxy's IPv4 address")
	wait := &cobra.Command{
		Use: "k8s-gate", Short: "Wait until only the proxy can be reached", Hidden: true, Args: noArgs, PreRunE: refuseOutsidePod,
		RunE: func(*cobra.Command, []string) error { return gate.Wait(a.ctx, a.stdout) },
	}
	wait.Flags().StringVar(&gate.Proxy, "proxy", "", "the proxy's address and port")
	wait.Flags().StringArrayVar(&gate.Closed, "closed", nil, "an address and port that must not be reached")
	var roots, bundle string
	trust := &cobra.Command{
		Use: "k8s-trust", Short: "Write the authorities that an agent trusts", Hidden: true, Args: noArgs, PreRunE: refuseOutsidePod,
		RunE: func(*cobra.Command, []string) error { return kubernetes.Trust(provision.GuestDir, roots, bundle) },
	}
	trust.Flags().StringVar(&roots, "roots", "", "authorities for an image that has none")
	trust.Flags().StringVar(&bundle, "out", "", "the file that is written")
	start := &cobra.Command{
		Use: "k8s-start -- COMMAND...", Short: "Start an agent", Hidden: true, Args: cobra.MinimumNArgs(1), PreRunE: refuseOutsidePod,
		RunE: func(_ *cobra.Command, args []string) error { return kubernetes.Start(provision.GuestDir, args) },
	}
	var repo kubernetes.Repo
	var branch string
	clone := &cobra.Command{
		Use: "k8s-clone -- URL", Short: "Clone an agent's repository", Hidden: true, Args: cobra.ExactArgs(1), PreRunE: refuseOutsidePod,
		RunE: func(_ *cobra.Command, args []string) error {
			repo.URL = args[0]
			return kubernetes.Clone(a.ctx, repo, branch)
		},
	}
	clone.Flags().StringVar(&repo.Dir, "dir", "", "the directory of the clone")
	clone.Flags().StringVar(&branch, "branch", "", "the branch that is created")
	hold := &cobra.Command{
		Use: "k8s-hold", Short: "Keep an agent's work accessible", Hidden: true, Args: noArgs, PreRunE: refuseOutsidePod,
		RunE: func(*cobra.Command, []string) error {
			kubernetes.Hold()
			return nil
		},
	}
	return []*cobra.Command{files, walls, wait, trust, clone, start, hold}
}
