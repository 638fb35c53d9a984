package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"syscall"
	"time"

	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	benchImage   = "docker.io/library/bottle-demo:latest"
	minimalNetNS = "bottle-bench"
	runscOptions = "io.containerd.runsc.v1.options"
	runscRuntime = "io.containerd.runsc.v1"
)

// minimal is the shortest containerd client that starts an agent with a network.
// It has no checks, no undo and no isolation.
type minimal struct {
	ctrd    *containerd.Client
	dir     string
	cni     *libcni.CNIConfig
	network *libcni.NetworkConfigList
}

const minimalNetwork = `{
  "cniVersion": "1.0.0", "name": "bench",
  "plugins": [{
    "type": "bridge", "bridge": "bench0", "isGateway": false, "ipMasq": false,
    "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.211.0.0/24"}]]}
  }]
}`

func newMinimal(dir string) (*minimal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	ctrd, err := containerd.New(os.Getenv("CONTAINERD_ADDRESS"))
	if err != nil {
		return nil, err
	}
	list, err := libcni.NetworkConfFromBytes(fmt.Appendf(nil, minimalNetwork, filepath.Join(dir, "ipam")))
	if err != nil {
		return nil, errors.Join(err, ctrd.Close())
	}
	plugins := filepath.SplitList(os.Getenv("CNI_PATH"))
	return &minimal{
		ctrd: ctrd, dir: dir, network: list,
		cni: libcni.NewCNIConfigWithCacheDir(plugins, filepath.Join(dir, "cache"), nil),
	}, nil
}

// close also removes the bridge, which its plugin leaves behind.
func (m *minimal) close() {
	_ = m.ctrd.Close()
	if l, err := netlink.LinkByName("bench0"); err == nil {
		_ = netlink.LinkDel(l)
	}
}

func (m *minimal) context(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, os.Getenv("CONTAINERD_NAMESPACE"))
}

func (m *minimal) round(ctx context.Context, n int) (r round, err error) {
	ctx = m.context(ctx)
	id := fmt.Sprintf("bench-minimal-%d", n)
	start := time.Now()
	net := &libcni.RuntimeConf{ContainerID: id, NetNS: filepath.Join(m.dir, id+".netns"), IfName: "eth0"}
	if err := pinNetNS(net.NetNS); err != nil {
		return r, err
	}
	if _, err := m.cni.AddNetworkList(ctx, m.network, net); err != nil {
		return r, err
	}
	task, err := m.start(ctx, id, net.NetNS)
	if err != nil {
		return r, err
	}
	started := time.Since(start)
	if err := m.exec(ctx, task); err != nil {
		return r, err
	}
	r.launch = time.Since(start)
	r.steps = []step{{"start", 0, started}, {"first exec", started, r.launch - started}}
	start = time.Now()
	err = m.end(ctx, id, task, net)
	r.teardown = time.Since(start)
	return r, err
}

func (m *minimal) start(ctx context.Context, id, netns string) (containerd.Task, error) {
	img, err := m.ctrd.GetImage(ctx, benchImage)
	if err != nil {
		return nil, err
	}
	cont, err := m.ctrd.NewContainer(ctx, id,
		containerd.WithImage(img),
		containerd.WithNewSnapshot(id, img),
		containerd.WithRuntime(runscRuntime, &runtimeoptions.Options{TypeUrl: runscOptions, ConfigPath: os.Getenv("LAB_RUNSC_CONFIG")}),
		containerd.WithNewSpec(
			oci.WithImageConfig(img), oci.WithProcessArgs("sleep", "1000"),
			oci.WithLinuxNamespace(specNetNS(netns)),
			oci.WithAnnotations(map[string]string{"io.kubernetes.cri.container-type": "sandbox"}),
		))
	if err != nil {
		return nil, err
	}
	task, err := cont.NewTask(ctx, cio.NullIO)
	if err != nil {
		return nil, err
	}
	return task, task.Start(ctx)
}

// exec runs one process to its end.
func (m *minimal) exec(ctx context.Context, task containerd.Task) error {
	spec, err := task.Spec(ctx)
	if err != nil {
		return err
	}
	process := *spec.Process
	process.Args = []string{"true"}
	p, err := task.Exec(ctx, "first", &process, cio.NewCreator(cio.WithStreams(nil, io.Discard, io.Discard), cio.WithFIFODir(m.dir)))
	if err != nil {
		return err
	}
	exit, err := p.Wait(ctx)
	if err != nil {
		return err
	}
	if err := p.Start(ctx); err != nil {
		return err
	}
	if st := <-exit; st.ExitCode() != 0 {
		return fmt.Errorf("first exec: exit code %d", st.ExitCode())
	}
	_, err = p.Delete(ctx)
	return err
}

func (m *minimal) end(ctx context.Context, id string, task containerd.Task, net *libcni.RuntimeConf) error {
	exit, err := task.Wait(ctx)
	if err != nil {
		return err
	}
	if err := task.Kill(ctx, syscall.SIGKILL); err != nil {
		return err
	}
	<-exit
	if _, err := task.Delete(ctx); err != nil {
		return err
	}
	cont, err := m.ctrd.LoadContainer(ctx, id)
	if err != nil {
		return err
	}
	if err := cont.Delete(ctx, containerd.WithSnapshotCleanup); err != nil {
		return err
	}
	if err := m.cni.DelNetworkList(ctx, m.network, net); err != nil {
		return err
	}
	if err := unix.Unmount(net.NetNS, unix.MNT_DETACH); err != nil {
		return err
	}
	return os.Remove(net.NetNS)
}

// pinNetNS creates a network namespace with lo up and bind mounts it on a file.
func pinNetNS(path string) error {
	if err := os.WriteFile(path, nil, 0o400); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		// Never unlocked, so that the thread ends with this goroutine and is not
		// reused in the new namespace.
		goruntime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return err
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(lo); err != nil {
				return err
			}
			return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}()
	}()
	return <-done
}

// runscFlags are the settings that the other contenders use.
func runscFlags(root string) []string {
	return strings.Fields("--root " + root + " --platform systrap --network none")
}
