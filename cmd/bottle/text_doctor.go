package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/bot-bottle/bottle/doctor"
)

const textDoctorLong = `Check everything on this host that a bottle needs: containerd, gVisor and runc with
their shims, CNI plugins, kernel, firewall, cgroups, disk, tmpfs and resolvers; and
whether the manifest pins the image of each proxy. Each check is ok, warn or fail,
with a suggested fix. The exit code is 1 if one fails. --hardening checks instead what
a host needs whose users must not become root.`

func (a *app) printFindings(found []doctor.Finding) error {
	t := tabwriter.NewWriter(wrapped(a.stdout), 0, 0, 2, ' ', 0)
	for _, f := range found {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\n", f.Level, f.Check, visible(f.Detail))
		if f.Fix != "" {
			_, _ = fmt.Fprintf(t, "\t\tfix: %s\n", visible(f.Fix))
		}
	}
	return t.Flush()
}
