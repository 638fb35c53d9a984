package main

const (
	textKubeLong = `Run agents of the manifest on a Kubernetes cluster, with the objects that bottle export
kubernetes prints. The cluster is the current one of the kubeconfig, or another one with
--context. Run these commands as yourself: they need no root. See docs/kubernetes.md.`
	textKubeRunExample = `  bottle kube run implementer --image-prefix registry.example/team
  bottle kube run implementer --image-prefix registry.example/team -n 20 --repo https://git.example/team/app.git -d
  bottle kube egress implementer --denied`
	textKubeStarting   = "%s: %s"
	textKubeDetached   = "%s runs on the cluster. Rejoin it with: bottle kube attach %s"
	textKubeEnded      = "the session of %s ended with exit code %d"
	hintKubeEnded      = "see its output with bottle kube logs %s, or remove it with bottle kube rm %s"
	textKubeNotYet     = "%s does not run yet: %s"
	textKubeFailed     = "%s did not start: %s"
	hintKubeExists     = "remove it with bottle kube rm %s, or choose another --namespace"
	hintKubeRun        = "bottle kube run AGENT"
	textKubeNoAgents   = "No agents on the cluster."
	hintKubeNeedsTerm  = "run bottle on a terminal, or use --detach"
	textKubeNeedsTerm  = "the agent's session needs a terminal"
	textKubeCount      = "invalid number of agents %d: want at least 1"
	textKubeManyDetach = "a terminal shows one session"
	hintKubeManyDetach = "add --detach, and look at single agents with bottle kube attach, logs and fetch"
	textKubeKept       = "The work is kept: bottle kube fetch %s brings it over, and bottle kube rm %s removes it."
	textKubeNoRepo     = "%s has no clone of a repository"
	hintKubeNoRepo     = "run agents with bottle kube run AGENT --repo URL"
	textKubeFetchLong  = `Bring the commits of an agent that was run with --repo to the branch bottle/NAME of the
repository of the working directory, and its uncommitted work as one more commit, as
bottle fetch does, also after its session has ended. The commits are verified first;
none of the agent's settings, hooks or filters is used.`
	textKubeRemoved = "Removed %s."
)
