package setup

import "strings"

// release is one file of an upstream release that setup can install.
type release struct {
	part string
	// pattern matches the file's name; ARCH is the architecture.
	pattern string
	// programs are the programs in an archive by their paths in it, or, for a single program,
	// the name under which it is installed.
	programs map[string]string
}

// releases are the files that each part needs, as upstream names them.
var releases = []release{
	{PartContainerd, "containerd-*-linux-ARCH.tar.gz", map[string]string{
		"bin/containerd":              privateBin + "/containerd",
		"bin/containerd-shim-runc-v2": privateBin + "/containerd-shim-runc-v2",
		"bin/ctr":                     privateBin + "/ctr",
	}},
	{PartGVisor, "runsc", map[string]string{"": programDir + "/runsc"}},
	{PartGVisor, "containerd-shim-runsc-v1", map[string]string{"": programDir + "/containerd-shim-runsc-v1"}},
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

// pins are the releases that setup accepts without checksums of the user's.
var pins = []pin{
	{"2.3.4", "amd64", "containerd-2.3.4-linux-amd64.tar.gz", "9d68969855fbf676cdb8ed758e420fb048d61f984f61de3e53eddfebe484d168"},
	{"2.3.4", "arm64", "containerd-2.3.4-linux-arm64.tar.gz", "a985fbb7e18fc0362d31a055338f5d7b0e087a3e27f14c70d1c5965399a29f95"},
	{"20260817.0", "amd64", "runsc", "84936438d583ec976800f464e75a83e1515f0890b451b9b4db219c4472b54ca9b106a6772ee683f1e64cce2128871d7637b14d800591f8451b8137f6c39fb2ef"},
	{"20260817.0", "arm64", "runsc", "6394fd161a4af0dc9a2c29f75c3016d05275a55744f124e12023fa7666a9f161c68d6ce3803ad49205c6a7b5bee0ad2ccf48edff340db344fdafec678c788aa4"},
	{"20260817.0", "amd64", "containerd-shim-runsc-v1", "b60d1c418b841ab046951cc7a91f490a221198fbe81ec55dc364432578fddd44e97063793ce6651be397af2f64ec47170dff77a45db277819c3fb08fec9f3ced"},
	{"20260817.0", "arm64", "containerd-shim-runsc-v1", "a7c0147f635938225e41c9660b95ba5235121a142c11830794e2a52b472783547e2b089bdba4f1344d30f65aeee651b377a1cafadd262a134f5e1ac10c6bf4bb"},
	{"1.4.3", "amd64", "runc.amd64", "f6ae8efc0fa40079e1475e97cbe9d1bd3f106a28d6af78a11d9f1bd565515e60"},
	{"1.4.3", "arm64", "runc.arm64", "633301e2e32f8a5ad54031aab4901eb00308bec677dd15faa2751e8f9dab5ca4"},
	{"1.9.1", "amd64", "cni-plugins-linux-amd64-v1.9.1.tgz", "b98f74a0f8522f0a83867178729c1aa70f2158f90c45a2ca8fa791db1c76b303"},
	{"1.9.1", "arm64", "cni-plugins-linux-arm64-v1.9.1.tgz", "56171987d3947707c3563db2f4001bccaf50fd63468611b9f3cbecb1375ee7ec"},
}

func (r release) glob(arch string) string { return strings.ReplaceAll(r.pattern, "ARCH", arch) }

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
