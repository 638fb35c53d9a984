// Package clustertest runs exported agents on a Kubernetes cluster, the one of scripts/kube
// (make test-kube). Its tests run on the cluster's node, with the build tag kube.
package clustertest
