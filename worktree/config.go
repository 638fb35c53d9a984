package worktree

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// copied are the patterns of settings that the agent's repository takes over. All others
// stay behind: they name programs, or paths of the host.
var copiedConfig = `^(core\.(autocrlf|eol|filemode|ignorecase|symlinks|precomposeunicode|sparsecheckout|sparsecheckoutcone)` +
	`|extensions\.(objectformat|partialclone)|remote\..*\.(url|fetch|promisor|partialclonefilter)` +
	`|branch\..*\.(remote|merge)|submodule\..*\.(url|active))$`

// repoConfig returns the configuration file of the agent's repository.
func (r *repository) repoConfig(ctx context.Context, sparse bool) (string, error) {
	out, err := r.git.output(ctx, "config", "-z", "--get-regexp", copiedConfig)
	if err != nil && exitCode(err) != 1 {
		return "", fmt.Errorf("read the repository's configuration: %w", err)
	}
	settings := []string{
		// The copy's files have other inodes and change times, but the same size and
		// modification time.
		"core.bare\nfalse", "core.logallrefupdates\ntrue", "core.checkstat\nminimal", "core.trustctime\nfalse",
	}
	version := "0"
	for setting := range fields(out) {
		key, value, _ := strings.Cut(setting, "\n")
		switch {
		case sparse && strings.HasPrefix(key, "core.sparsecheckout"):
			continue
		case strings.HasPrefix(key, "extensions."):
			version = "1"
		case strings.HasSuffix(key, ".url"):
			setting = key + "\n" + stripURL(value)
		}
		settings = append(settings, setting)
	}
	if sparse {
		settings = append(settings, "core.sparsecheckout\ntrue", "core.sparsecheckoutcone\ntrue")
	}
	settings = append([]string{"core.repositoryformatversion\n" + version}, settings...)
	return encodeConfig(slices.Compact(settings)), nil
}

// encodeConfig writes settings, each KEY LF VALUE (git-config(1), Syntax).
func encodeConfig(settings []string) string {
	var b strings.Builder
	for _, s := range settings {
		key, value, set := strings.Cut(s, "\n")
		section, name := key[:strings.IndexByte(key, '.')], key[strings.LastIndexByte(key, '.')+1:]
		fmt.Fprintf(&b, "[%s", section)
		if sub := strings.TrimSuffix(strings.TrimPrefix(key, section+"."), name); sub != "" {
			fmt.Fprintf(&b, " %s", quoted(strings.TrimSuffix(sub, ".")))
		}
		fmt.Fprintf(&b, "]\n\t%s", name)
		if set {
			fmt.Fprintf(&b, " = %s", quoted(value))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`, "\t", `\t`).Replace(s) + `"`
}

// stripURL removes credentials from a URL. A name alone stays only where it belongs to
// the address, as in ssh's.
func stripURL(raw string) string {
	u, err := url.Parse(raw)
	if scheme, rest, ok := strings.Cut(raw, "://"); err != nil && ok {
		host, path, _ := strings.Cut(rest, "/")
		return scheme + "://" + host[strings.LastIndexByte(host, '@')+1:] + "/" + path
	}
	if err != nil || u.Host == "" || u.Scheme == "" {
		return raw // a path, or host:path
	}
	switch {
	case u.User == nil:
	case u.Scheme == "ssh" || strings.HasSuffix(u.Scheme, "+ssh"):
		u.User = url.User(u.User.Username())
	default:
		u.User = nil
	}
	if u.Scheme == "http" || u.Scheme == "https" {
		u.RawQuery, u.Fragment = "", ""
	}
	return u.String()
}
