#!/bin/bash
# Loads the images of the pods on the node, and creates what a cluster offers to its users:
# the RuntimeClass, and a DNS service.
set -euo pipefail

import() { ctr --address "$KUBE_NODE/containerd.sock" --namespace k8s.io images import --local --snapshotter overlayfs "$1" >>"$KUBE_NODE/log/import.log" 2>&1; }

disk=/var/lib/bottle-lab/$LAB_ID/kube
for archive in "$disk/images"/*.tar "$LAB_KUBE_AGENT"; do
  import "$archive" || { tail -n 1 "$KUBE_NODE/log/import.log" >&2; exit 1; }
done
# Kubernetes always pulls images with the tag latest.
ctr --address "$KUBE_NODE/containerd.sock" --namespace k8s.io images tag docker.io/library/claude-bottle:latest lab.test/agent:test \
  >>"$KUBE_NODE/log/import.log" 2>&1
kubectl apply -f - >/dev/null <<'END_OBJECTS'
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: gvisor}
handler: runsc
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: 10.96.0.10
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, protocol: UDP, port: 53}, {name: dns-tcp, protocol: TCP, port: 53}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: kube-dns, namespace: kube-system}
spec:
  selector: {matchLabels: {k8s-app: kube-dns}}
  template:
    metadata: {labels: {k8s-app: kube-dns}}
    spec:
      dnsPolicy: Default
      automountServiceAccountToken: false
      containers:
        - name: dns
          image: lab.test/helper:test
          command: [/helper, dns, "198.51.101.53:53"]
          securityContext: {runAsUser: 0}
END_OBJECTS
kubectl --namespace kube-system rollout status deployment/kube-dns --timeout=60s >/dev/null
