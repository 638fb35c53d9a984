package main

const (
	textKubeLong = `Run agents of the manifest on a Kubernetes cluster, with the objects that bottle export
kubernetes prints. The cluster is the current one of the kubeconfig, or another one with
--context. Run these commands as yourself: they need no root. See docs/kubernetes.md.`
	textKubeRunExample = `  bottle kube run implementer --image-prefix registry.example/team
  bottle kube run implementer --image-prefix registry.example/team --detach
  bottle kube egress implementer --denied`
	textKubeStarting  = "%s: %s"
	textKubeDetached  = "%s runs on the cluster. Rejoin it with: bottle kube attach %s"
	textKubeEnded     = "the session of %s ended with exit code %d"
	hintKubeEnded     = "see its output with bottle kube logs %s, or remove it with bottle kube rm %s"
	textKubeNotYet    = "%s does not run yet: %s"
	textKubeFailed    = "%s did not start: %s"
	hintKubeExists    = "remove it with bottle kube rm %s, or choose another --namespace"
	hintKubeRun       = "bottle kube run AGENT"
	textKubeNoAgents  = "No agents on the cluster."
	hintKubeNeedsTerm = "run bottle on a terminal, or use --detach"
	textKubeNeedsTerm = "the agent's session needs a terminal"
	textKubeRemoved   = "Removed %s."
)
