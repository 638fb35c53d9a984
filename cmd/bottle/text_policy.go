package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/bot-bottle/bottle/audit"
	"github.com/bot-bottle/bottle/plan"
	"github.com/bot-bottle/bottle/policy"
)

const (
	textPolicyCheckLong = `Validate /etc/bottle/policy.yaml and /etc/bottle/config.yaml, their owners and
permissions, and report all errors. With FILE, validate that file's content before it
is installed: as system configuration if it is named config.yaml, else as policy.`
	textPolicyCheckExample = `  bottle policy check
  bottle policy check ./policy.yaml`
	textPolicyShowLong = `Show what users of sudo may request, and the settings of the host for everybody. Root
is not bound.`
	textPolicyValid    = "%s is valid."
	textPolicyNone     = "%s does not exist: the defaults apply (bottle policy show)."
	textAuditFailed    = "WARNING: %s"
	textPolicyTooLarge = "larger than 1 MiB"

	hintPolicyUnreadable = "make it readable for everybody (chmod 0644): it contains no secrets"
)

// policyText describes the policy of a plan.
func policyText(p *plan.Policy) string {
	if len(p.Bounds) == 0 {
		return p.Path
	}
	var effects []string
	for _, b := range p.Bounds {
		effects = append(effects, b.Key+": "+b.Effect)
	}
	return fmt.Sprintf("%s (%s)", p.Path, strings.Join(effects, "; "))
}

// printPolicy prints a row for each key of a policy, with the defaults.
func printPolicy(w io.Writer, p *policy.Policy, c *policy.Config, dir string) error {
	t := tabwriter.NewWriter(wrapped(w), 0, 0, 2, ' ', 0)
	row := func(key, value string) { _, _ = fmt.Fprintf(t, "  %s\t%s\n", key, visible(value)) }
	title := "policy " + p.Path
	if p.Path == "" {
		title = fmt.Sprintf("policy (defaults, %s does not exist)", filepath.Join(dir, policy.File))
	}
	_, _ = fmt.Fprintln(t, title)
	list := func(key string, list []string, missing, empty string) {
		switch {
		case list == nil:
			row(key, missing)
		case len(list) == 0:
			row(key, empty)
		default:
			row(key, strings.Join(list, ", "))
		}
	}
	limit := func(key, value string, set bool) {
		if !set {
			value = "no maximum"
		}
		row(key, value)
	}
	list("runtimes", p.Runtimes, "runsc", "none")
	list("proxies.kinds", p.Proxies.Kinds, "all", "none")
	list("proxies.images", p.Proxies.Images, "none", "none")
	list("images", p.Images, "all", "none")
	list("egress.never", p.Egress.Never, "none", "none")
	list("egress.at_most", p.Egress.AtMost, "all public hosts", "none")
	list("egress.private", p.Egress.Private, "none", "none")
	limit("limits.memory", size(p.Limits.Memory), p.Limits.Memory > 0)
	limit("limits.disk", size(p.Limits.Disk), p.Limits.Disk > 0)
	limit("limits.workspace", size(p.Limits.Workspace), p.Limits.Workspace > 0)
	limit("limits.cpus", fmt.Sprintf("%g", p.Limits.CPUs), p.Limits.CPUs > 0)
	limit("limits.pids", strconv.FormatInt(p.Limits.Pids, 10), p.Limits.Pids > 0)
	limit("bottles_per_user", strconv.Itoa(p.BottlesPerUser), p.BottlesPerUser > 0)
	row("builds.allowed", yesNo(!p.Builds.Forbidden))
	row("builds.host_network", yesNo(p.Builds.HostNetwork))
	list("builds.at_most", p.Builds.AtMost, "as egress.at_most", "none")
	row("kept_work", yesNo(!p.NoKeptWork))
	row("learn", yesNo(!p.NoLearn))
	list("secrets", p.Secrets, "all sources", "none")
	if c.Path != "" {
		_, _ = fmt.Fprintln(t, "configuration "+c.Path)
		for _, key := range slices.Sorted(maps.Keys(c.Values)) {
			row(key, c.Values[key])
		}
		if c.Audit.To != "" {
			row("audit.to", c.Audit.To)
			row("audit.on_failure", cmp.Or(c.Audit.OnFailure, audit.Continue))
		}
		list("users_may_set", c.UsersMaySet, "nothing", "nothing")
	}
	return t.Flush()
}

func yesNo(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}
