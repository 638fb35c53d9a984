package main

import (
	"fmt"
	"runtime"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/bot-bottle/bottle"
)

// versions are what `bottle version` prints. Containerd's is empty if it cannot be
// reached.
type versions struct {
	Version    string `json:"version"`
	Go         string `json:"go"`
	Platform   string `json:"platform"`
	Containerd string `json:"containerd"`
	Error      string `json:"error,omitempty"` // why containerd's version is unknown
}

func (a *app) versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the versions of bottle and containerd",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			v := versions{Version: version(), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
			// bottle's own version is known without containerd.
			err := a.withEngine(func(e *bottle.Engine) (err error) {
				v.Containerd, err = e.Version(a.ctx)
				return err
			})
			if err != nil {
				v.Error = err.Error()
			}
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
	t := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	containerd := v.Containerd
	if containerd == "" {
		containerd = "unknown (" + v.Error + ")"
	}
	for _, row := range [][2]string{{"bottle", v.Version}, {"go", v.Go}, {"platform", v.Platform}, {"containerd", containerd}} {
		if _, err := fmt.Fprintf(t, "%s\t%s\n", row[0], oneLine(row[1])); err != nil {
			return err
		}
	}
	return t.Flush()
}
