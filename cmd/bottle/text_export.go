package main

const (
	textExportLong = `Print the Kubernetes objects that run an agent of the manifest: a namespace with the
agent's pod under gVisor, its egress proxy, and the network policies of both. The
comment at the top says how to create the Secret of its variables and what is not
carried over. Nothing is created, and no value of a variable is read. See
docs/kubernetes.md.`
	textExportExample = `  bottle export kubernetes implementer --image-prefix registry.example/team > agent.yaml`
	hintExport        = "bottle export kubernetes AGENT"
	textExportCwd     = "--cwd needs a directory of this host, which a cluster does not have"
	hintExportCwd     = "let the agent clone a git URL through the proxy with --repo, and add its host to egress.allow"
	textPodCommand    = "%s is only for the pods of bottle export kubernetes"
	textExportLearn   = "--learn is not available on Kubernetes"
	hintExportLearn   = "learn the policy on one host with bottle run AGENT --learn"
)
