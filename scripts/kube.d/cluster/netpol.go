package main

import (
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/cloudnativelabs/kube-router/v2/pkg/controllers/netpol"
	"github.com/cloudnativelabs/kube-router/v2/pkg/healthcheck"
	"github.com/cloudnativelabs/kube-router/v2/pkg/options"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
)

// enforce applies NetworkPolicies to this node with the controller of kube-router alone,
// which has no network plugin of its own then. IPv4 only: its rules for IPv6 fail, and
// those for IPv4 are not written then either.
func enforce(kubeconfig string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	opt := options.NewKubeRouterConfig()
	opt.HostnameOverride = "node"
	opt.ClusterIPCIDRs = []string{"10.96.0.0/16"}
	opt.EnableIPv4, opt.EnableIPv6 = true, false
	opt.IPTablesSyncPeriod = 5 * time.Minute
	handlers, sets, err := netpol.NewIPTablesHandlers(opt)
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	pods, namespaces := factory.Core().V1().Pods().Informer(), factory.Core().V1().Namespaces().Informer()
	policies := factory.Networking().V1().NetworkPolicies().Informer()
	stop := make(chan struct{})
	factory.Start(stop)
	if !cache.WaitForCacheSync(stop, pods.HasSynced, namespaces.HasSynced, policies.HasSynced) {
		return fmt.Errorf("read the cluster's policies")
	}
	controller, err := netpol.NewNetworkPolicyController(client, opt, pods, policies, namespaces, new(sync.Mutex), handlers, sets)
	if err != nil {
		return err
	}
	for informer, handler := range map[cache.SharedIndexInformer]cache.ResourceEventHandler{
		pods: controller.PodEventHandler, namespaces: controller.NamespaceEventHandler, policies: controller.NetworkPolicyEventHandler,
	} {
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	beats := make(chan *healthcheck.ControllerHeartbeat)
	go func() {
		for range beats { // nobody asks for its health
		}
	}()
	var wg sync.WaitGroup
	wg.Add(1)
	controller.Run(beats, stop, &wg)
	return net.ErrClosed
}
