package setup

import "strings"

// release is one file of an upstream release that setup can install.
type release struct {
	part string
	// pattern matches the file's name; ARCH is the architecture, and CPU its other name.
	pattern string
	// programs are the programs in an archive by their paths in it, or, for a single program,
	// the name under which it is installed. A path that ends with a slash is a directory whose
	// files are installed.
	programs map[string]string
}

// releases are the files that each part needs, as upstream names them.
var releases = []release{
	{PartContainerd, "containerd-*-linux-ARCH.tar.gz", map[string]string{
		"bin/containerd":              privateBin + "/containerd",
		"bin/containerd-shim-runc-v2": privateBin + "/containerd-shim-runc-v2",
		"bin/ctr":                     privateBin + "/ctr",
	}},
	// runsc executes the programs of gvisor-bin, which it expects beside itself.
	{PartGVisor, "gvisor-CPU.tar.bz2", map[string]string{
		"runsc":                    programDir + "/runsc",
		"containerd-shim-runsc-v1": programDir + "/containerd-shim-runsc-v1",
		"gvisor-bin/":              programDir + "/gvisor-bin/",
	}},
	{PartRunc, "runc.ARCH", map[string]string{"": programDir + "/runc"}},
	{PartCNI, "cni-plugins-linux-ARCH-v*.tgz", map[string]string{
		"bridge":     privateCNI + "/bridge",
		"host-local": privateCNI + "/host-local",
		"static":     privateCNI + "/static",
	}},
}

// pin is a file of an upstream release, with the digest that its project has published.
type pin struct {
	version, arch, name string
	digest              string // SHA-256 or SHA-512, in hexadecimal digits
}

// pins are the releases that setup accepts without checksums of the user's. docs/install.md says
// what the digests rest on.
var pins = []pin{
	{"2.4.1", "amd64", "containerd-2.4.1-linux-amd64.tar.gz", "d65eda6a188aac1006848d8060099be88ba9c4bcddbfd9a23a961194710d0dd4"},
	{"2.4.1", "arm64", "containerd-2.4.1-linux-arm64.tar.gz", "67f9b0a81c7140aaf15fe69053e88175270fadd33aeaffc1b9017123c1f55cea"},
	{"20260907.0", "amd64", "gvisor-x86_64.tar.bz2", "81416511897ab8abd4e723d66823c5b0461a2ee3311cfa70d152404ef9b860cf"},
	{"20260907.0", "arm64", "gvisor-aarch64.tar.bz2", "2b162adb35860f598ab2f89b9d752bff2c7ee6175c05d9cc532174a336cfb38c"},
	{"1.4.3", "amd64", "runc.amd64", "f6ae8efc0fa40079e1475e97cbe9d1bd3f106a28d6af78a11d9f1bd565515e60"},
	{"1.4.3", "arm64", "runc.arm64", "633301e2e32f8a5ad54031aab4901eb00308bec677dd15faa2751e8f9dab5ca4"},
	{"1.9.1", "amd64", "cni-plugins-linux-amd64-v1.9.1.tgz", "b98f74a0f8522f0a83867178729c1aa70f2158f90c45a2ca8fa791db1c76b303"},
	{"1.9.1", "arm64", "cni-plugins-linux-arm64-v1.9.1.tgz", "56171987d3947707c3563db2f4001bccaf50fd63468611b9f3cbecb1375ee7ec"},
}

// cpus are the architectures as gVisor's releases name them.
var cpus = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}

func (r release) glob(arch string) string {
	cpu, ok := cpus[arch]
	if !ok {
		cpu = arch
	}
	return strings.NewReplacer("ARCH", arch, "CPU", cpu).Replace(r.pattern)
}

// Release is a file that setup can install, for documentation and messages.
type Release struct {
	Part    string `json:"part"`
	Name    string `json:"name"`
	Version string `json:"version"`
	Digest  string `json:"digest"`
}

// Releases returns the pinned releases for an architecture.
func Releases(arch string) []Release {
	var out []Release
	for _, r := range releases {
		for _, p := range pins {
			if p.arch == arch && matches(r.glob(arch), p.name) {
				out = append(out, Release{Part: r.part, Name: p.name, Version: p.version, Digest: p.digest})
			}
		}
	}
	return out
}
