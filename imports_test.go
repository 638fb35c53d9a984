package bottle

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/bot-bottle/bottle"

// allowedImporters maps prefixes of import paths to the only packages that may import
// them.
var allowedImporters = map[string][]string{
	"github.com/containerd/containerd/": {"runtime", "images", "images/buildkit", "internal/imageowner", "internal/known"},
	"github.com/moby/buildkit/":         {"images/buildkit"},
	"github.com/containernetworking/":   {"netns", "cni-conf"},
	"github.com/vishvananda/":           {"netns"},
	"github.com/google/nftables":        {"netns"},
	"github.com/spf13/":                 {"cmd/bottle"},
	"k8s.io/":                           {"kube"},
	"golang.org/x/crypto/":              {"sshagent", "images/buildkit"}, // forwards the caller's agent to builds
	"go.yaml.in/":                       {"agents", "manifest", "policy", "egress", "kube", "kubernetes", "internal/loginfile", "internal/secret/secrettest"},
}

// guestPackages are the packages of the guest program. Every session waits for it to
// start, so they import only the standard library and guestLibraries.
var guestPackages = []string{
	"cmd/bottle/guest", "cmd/bottle/guest/program", "internal/drain", "internal/filetree", "internal/sessionproto", "internal/termmodes", "sshagent/relay",
}

var guestLibraries = []string{
	"golang.org/x/sys/unix",
	// The terminal of a held session, and its screen.
	"github.com/creack/pty", "github.com/charmbracelet/x/vt", "github.com/charmbracelet/x/ansi", "github.com/charmbracelet/ultraviolet",
}

// diagram matches a line of the package diagram in ARCHITECTURE.md: a package and the
// packages of this module that it imports, without internal ones.
var diagram = regexp.MustCompile(`(?m)^    (\S+) +-> ?(.*)$`)

// TestImports compares the imports of every package with the package diagram in
// ARCHITECTURE.md, which must list exactly those.
func TestImports(t *testing.T) {
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, m := range diagram.FindAllStringSubmatch(string(text), -1) {
		documented[m[1]] = strings.Join(slices.Sorted(slices.Values(strings.Fields(m[2]))), " ")
	}
	actual := map[string]string{}
	for pkg, imports := range packages(t) {
		var own []string
		for _, i := range imports {
			for prefix, allowed := range allowedImporters {
				if strings.HasPrefix(i, prefix) && !slices.Contains(allowed, pkg) {
					t.Errorf("%s imports %s, which only %v may", pkg, i, allowed)
				}
			}
			name, ours := relative(i)
			if slices.Contains(guestPackages, pkg) && !slices.Contains(guestPackages, name) && !slices.Contains(guestLibraries, i) && (ours || strings.Contains(i, ".")) {
				t.Errorf("%s imports %s: the guest program must stay small", pkg, i)
			}
			switch {
			case !ours:
			case strings.HasPrefix(pkg, "internal/"):
				if !strings.HasPrefix(name, "internal/") {
					t.Errorf("%s imports %s: internal packages may import only internal packages", pkg, name)
				}
			case !strings.HasPrefix(name, "internal/"):
				own = append(own, name)
			}
		}
		if !strings.HasPrefix(pkg, "internal/") {
			actual[pkg] = strings.Join(slices.Sorted(slices.Values(own)), " ")
		}
	}
	for _, pkg := range slices.Sorted(maps.Keys(actual)) {
		want, ok := documented[pkg]
		if !ok {
			t.Errorf("ARCHITECTURE.md's package diagram lacks %s, which imports: %s", pkg, actual[pkg])
		} else if want != actual[pkg] {
			t.Errorf("ARCHITECTURE.md's package diagram has %s -> %s, but it imports: %s", pkg, want, actual[pkg])
		}
	}
	for pkg := range documented {
		if _, ok := actual[pkg]; !ok {
			t.Errorf("ARCHITECTURE.md's package diagram has %s, which is not a package", pkg)
		}
	}
}

// unneeded are packages that no command needs, but that every one would initialize.
var unneeded = []string{"github.com/spf13/cobra/doc", "github.com/russross/blackfriday/v2", "testing"}

// TestProgram keeps packages out of the program that it would initialize in vain.
func TestProgram(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "./cmd/bottle").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for _, dep := range strings.Fields(string(out)) {
		if slices.Contains(unneeded, dep) {
			t.Errorf("the program contains %s", dep)
		}
	}
	// What an early package imports is initialized before it. Package net is among the last.
	for _, early := range []string{"cmd/bottle/shim", "cmd/bottle/fastexec"} {
		out, err := exec.Command("go", "list", "-deps", "./"+early).Output()
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		for _, dep := range strings.Fields(string(out)) {
			if _, ours := relative(dep); !ours && strings.Contains(dep, ".") && dep != "golang.org/x/sys/unix" && !strings.HasPrefix(dep, "vendor/") || dep == "net" {
				t.Errorf("%s depends on %s", early, dep)
			}
		}
	}
}

// relative returns a package's path in this module, "bottle" for the root package.
func relative(importPath string) (name string, ours bool) {
	if importPath == module {
		return path.Base(module), true
	}
	return strings.CutPrefix(importPath, module+"/")
}

// packages returns the imports of each package of this module, except for tests, the
// tools under scripts and the libraries of tests.
func packages(t *testing.T) map[string][]string {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	found := map[string][]string{}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatal(err)
		}
		name, _ := relative(p.ImportPath)
		if !strings.HasPrefix(name, "scripts/") && !strings.HasPrefix(name, "internal/labtest") && name != "internal/leakcheck" {
			found[name] = p.Imports
		}
	}
}
