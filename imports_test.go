package bottle

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestImports holds the direction of imports: commands -> this package ->
// leaves, which know nothing of one another; and each outside system has one
// package that speaks to it.
func TestImports(t *testing.T) {
	const module = "github.com/bot-bottle/bottle"
	const guest, relay = module + "/cmd/bottle/guest", module + "/sshagent/relay"
	leaves := []string{module + "/runtime", module + "/netns", module + "/images", module + "/images/buildkit",
		module + "/images/agent", module + "/egress", module + "/cni-conf", module + "/sshagent", relay}
	only := map[string][]string{ // what may import what begins so
		"github.com/containerd/containerd/": {module + "/runtime", module + "/images", module + "/images/buildkit"},
		"github.com/moby/buildkit/":         {module + "/images/buildkit"},
		"github.com/containernetworking/":   {module + "/netns", module + "/cni-conf"},
		"github.com/vishvananda/":           {module + "/netns"},
		"github.com/google/nftables":        {module + "/netns"},
		"github.com/spf13/":                 {module + "/cmd/bottle"},
		"golang.org/x/crypto/":              {module + "/sshagent"},
		"go.yaml.in/":                       {module, module + "/egress"},
	}
	seen := 0
	for path, imports := range packages(t) {
		if strings.HasPrefix(path, module+"/scripts/") || strings.HasPrefix(path, module+"/internal/lab") || path == module+"/internal/leakcheck" {
			continue // the test host's
		}
		seen++
		for _, i := range imports {
			for prefix, allowed := range only {
				if strings.HasPrefix(i, prefix) && !slices.Contains(allowed, path) {
					t.Errorf("%s imports %s, which only %v may", path, i, allowed)
				}
			}
			if (path == guest || path == relay) && strings.Contains(i, ".") && i != "golang.org/x/sys/unix" && i != relay {
				t.Errorf("%s imports %s: every session waits for the guest program, which is to stay small", path, i)
			}
			if !strings.HasPrefix(i, module) {
				continue
			}
			isLeaf := slices.Contains(leaves, path)
			below := path == module+"/netns" && i == module+"/cni-conf" || path == module+"/sshagent" && i == relay
			if isLeaf && !below {
				t.Errorf("%s imports %s: leaves know nothing of the rest", path, i)
			}
			if path == module && !slices.Contains(leaves, i) || strings.HasPrefix(path, module+"/cmd/") && i != module && i != guest && (path != guest || i != relay) {
				t.Errorf("%s imports %s: imports go one way", path, i)
			}
		}
	}
	if seen < 8 {
		t.Errorf("only %d packages seen", seen)
	}
}

// packages lists this module's packages with what they import, tests left out.
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
		found[p.ImportPath] = p.Imports
	}
}
