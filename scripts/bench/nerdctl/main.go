// Command nerdctl compares `bottle run`, up to the agent's first output, with the commands of
// nerdctl that create something similar: a container on two networks in the proxy's place, an
// agent under runsc on one of them, and an exec. nerdctl has less to do: its networks exist
// already and have neither rules nor isolation, and the first container runs no proxy. It runs
// inside the test host, after make build, with nerdctl in PATH or named by BOTTLE_BENCH_NERDCTL:
//
//	scripts/lab exec -- go run ./scripts/bench/nerdctl
//
// or, with all other benchmarks, with make bench.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"github.com/bot-bottle/bottle/scripts/bench/compare"
	"github.com/bot-bottle/bottle/scripts/bench/results"
)

const benchManifest = `version: 1
bottles:
  bench: {image: "bottle-demo:latest", egress: {allow: [allowed.test]}, limits: {memory: 128MiB}}
agents:
  speak: {bottle: bench, command: [echo, hello]}
`

// programVar names nerdctl's program.
const programVar = "BOTTLE_BENCH_NERDCTL"

// goalSequence is the highest acceptable ratio to nerdctl's commands in sequence.
const goalSequence = 0.45

const image = "docker.io/library/bottle-demo:latest"

// Names of nerdctl's containers. Names of one letter are not valid there.
const (
	proxyName = "bench-proxy"
	agentName = "bench-agent"
)

func main() {
	rounds := flag.Int("n", 10, "measured rounds, after one for warming up")
	flag.Parse()
	compare.Main(func(ctx context.Context) error { return bench(ctx, *rounds) })
}

func bench(ctx context.Context, rounds int) (err error) {
	program, err := exec.LookPath(cmp.Or(os.Getenv(programVar), "nerdctl"))
	if err != nil {
		fmt.Println("nerdctl is not installed: no ratio")
		return nil
	}
	b, err := compare.NewBottle(benchManifest)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	n, err := newNerdctl(program)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	ours := &compare.Contender[time.Duration]{Name: "bottle run to the first output", Run: func(ctx context.Context, _ int) (time.Duration, error) {
		first, _, _, err := compare.FirstOutput(b.Command(ctx, compare.RunArgs("speak")...))
		return first, err
	}}
	sequence := &compare.Contender[time.Duration]{Name: "nerdctl in sequence", Run: func(ctx context.Context, _ int) (time.Duration, error) {
		return n.pair(ctx, false)
	}}
	parallel := &compare.Contender[time.Duration]{Name: "nerdctl in parallel", Run: func(ctx context.Context, _ int) (time.Duration, error) {
		return n.pair(ctx, true)
	}}
	if err := compare.Run(ctx, rounds, ours, sequence, parallel); err != nil {
		return err
	}
	r := results.Result{Benchmark: "nerdctl", Ratios: []results.Ratio{
		{Name: "bottle run / nerdctl in sequence", Value: compare.Ratio(ours, sequence, compare.Self), Goal: goalSequence},
		{Name: "bottle run / nerdctl in parallel", Value: compare.Ratio(ours, parallel, compare.Self)},
	}}
	for _, c := range []*compare.Contender[time.Duration]{ours, sequence, parallel} {
		f := c.Figure(c.Name, compare.Self)
		r.Figures = append(r.Figures, f)
		fmt.Printf("%s: %.1f ms (%.1f to %.1f)\n", f.Name, f.Median, f.Low, f.High)
	}
	for _, ratio := range r.Ratios {
		fmt.Printf("%s: %.2f\n", ratio.Name, ratio.Value)
	}
	fmt.Printf("goal: at most %.2f of nerdctl in sequence\n", goalSequence)
	return results.Record(r)
}

// nerdctl is the program with networks and a store of its own.
type nerdctl struct {
	program, dir string
}

// networks are nerdctl's networks and their bridges. It requires a default one.
var networks = []struct{ name, bridge, subnet, labels string }{
	{"bridge", "bench-nd0", "10.211.0.0/24", `{"nerdctl/default-network": "true"}`},
	{"bench-inner", "bench-nd1", "10.211.1.0/24", `{}`},
	{"bench-outer", "bench-nd2", "10.211.2.0/24", `{}`},
}

const network = `{
  "cniVersion": "1.0.0", "name": %q, "nerdctlID": "%064d", "nerdctlLabels": %s,
  "plugins": [{
    "type": "bridge", "bridge": %q, "isGateway": true,
    "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": %q}]]}
  }]
}`

func newNerdctl(program string) (*nerdctl, error) {
	dir, err := os.MkdirTemp("/run", "bottle-bench-")
	if err != nil {
		return nil, err
	}
	n := &nerdctl{program: program, dir: dir}
	for i, w := range networks {
		text := fmt.Appendf(nil, network, w.name, i+1, w.labels, w.bridge, filepath.Join(dir, "ipam"), w.subnet)
		if _, err := libcni.NetworkConfFromBytes(text); err != nil {
			return nil, errors.Join(err, n.close())
		}
		if err := os.WriteFile(filepath.Join(dir, w.name+".conflist"), text, 0o600); err != nil {
			return nil, errors.Join(err, n.close())
		}
	}
	return n, nil
}

// close removes the networks.
func (n *nerdctl) close() error {
	var errs []error
	for _, w := range networks {
		link, err := netlink.LinkByName(w.bridge)
		if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
			continue
		}
		if err == nil {
			err = netlink.LinkDel(link)
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, os.RemoveAll(n.dir))...)
}

func (n *nerdctl) command(ctx context.Context, args ...string) error {
	out, err := exec.CommandContext(ctx, n.program, append([]string{
		"--cni-netconfpath", n.dir, "--cni-path", os.Getenv("CNI_PATH"), "--data-root", filepath.Join(n.dir, "data"),
	}, args...)...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("nerdctl %s: %w\n%s", args[0], err, out)
	}
	return err
}

// pair creates both containers and runs a command in the agent's, and returns how long that
// took. It then removes them.
func (n *nerdctl) pair(ctx context.Context, parallel bool) (took time.Duration, err error) {
	run := func(name string, args ...string) func() error {
		return func() error {
			all := append([]string{"run", "-d", "--name", name, "--log-driver", "none", "--pull", "never"}, args...)
			return n.command(ctx, append(all, image, "sleep", "100000")...)
		}
	}
	var g errgroup.Group
	if !parallel {
		g.SetLimit(1)
	}
	start := time.Now()
	g.Go(run(proxyName, "--net", "bench-outer", "--net", "bench-inner"))
	// Without the annotation runsc's shim takes the container for a part of a pod.
	g.Go(run(agentName, "--net", "bench-inner", "--memory", "128m", "--runtime", "io.containerd.runsc.v1",
		"--annotation", "io.kubernetes.cri.container-type=sandbox"))
	if err = g.Wait(); err == nil {
		err = n.command(ctx, "exec", agentName, "echo", "hello")
	}
	took = time.Since(start)
	return took, errors.Join(err, n.command(context.WithoutCancel(ctx), "rm", "-f", agentName, proxyName))
}
