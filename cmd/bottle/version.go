package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle"
)

// versions are what `bottle version` prints. Containerd's is empty if it cannot be
// reached, and those of programs if they are missing.
type versions struct {
	Version    string `json:"version"`
	Go         string `json:"go"`
	Platform   string `json:"platform"`
	Containerd string `json:"containerd"`
	Runsc      string `json:"runsc"`
	Runc       string `json:"runc"`
	CNI        string `json:"cni"`
	Kernel     string `json:"kernel"`
	Error      string `json:"error,omitempty"` // why containerd's version is unknown
}

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of bottle and of what it uses",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			done := a.busy(textBusyVersion)
			v := versions{Version: version(), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
			v.Runsc = firstLine(a.ctx, "runsc", "--version")
			v.Runc = firstLine(a.ctx, "runc", "--version")
			v.Kernel = kernelRelease()
			if cfg, err := a.config(); err == nil {
				v.CNI = pluginVersion(a.ctx, cfg.CNIPath)
			}
			// bottle's own version is known without containerd.
			err := a.withEngine(func(e *bottle.Engine) (err error) {
				v.Containerd, err = e.Version(a.ctx)
				return err
			})
			if err != nil {
				v.Error = err.Error()
			}
			done()
			if asJSON {
				return a.printJSON(v)
			}
			return a.printVersions(v)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) printVersions(v versions) error {
	t := tabwriter.NewWriter(wrapped(a.stdout), 0, 0, 2, ' ', 0)
	containerd := v.Containerd
	if containerd == "" {
		containerd = "unknown (" + v.Error + ")"
	}
	for _, row := range [][2]string{{"bottle", v.Version}, {"go", v.Go}, {"platform", v.Platform}, {"containerd", containerd},
		{"runsc", orMissing(v.Runsc)}, {"runc", orMissing(v.Runc)}, {"CNI plugins", orMissing(v.CNI)}, {"kernel", v.Kernel}} {
		if _, err := fmt.Fprintf(t, "%s\t%s\n", row[0], oneLine(row[1])); err != nil {
			return err
		}
	}
	return t.Flush()
}

func orMissing(version string) string {
	if version == "" {
		return textMissing
	}
	return version
}

// versionTimeout bounds a program that prints its version.
const versionTimeout = 10 * time.Second

// firstLine returns the first line that a program prints; "" if it is missing or fails.
func firstLine(ctx context.Context, name string, args ...string) string {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}

// pluginVersion returns what the CNI plugin bridge prints about itself, on standard error, if
// it is run without a command of CNI.
func pluginVersion(ctx context.Context, path string) string {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	for _, dir := range filepath.SplitList(path) {
		cmd := exec.CommandContext(ctx, filepath.Join(dir, "bridge"))
		cmd.Env = []string{}
		if out, err := cmd.CombinedOutput(); err == nil {
			line, _, _ := strings.Cut(string(out), "\n")
			return strings.TrimSpace(line)
		}
	}
	return ""
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
