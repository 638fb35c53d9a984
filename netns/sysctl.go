package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// sysctlDir contains the settings of the opening thread's network namespace.
const sysctlDir = "/proc/sys/net"

// setting is a file under sysctlDir and its value.
type setting struct{ key, value string }

// nsSettings are the settings of both of a bottle's namespaces. A new namespace
// inherits the host's forwarding, which CNI turns on. The others prevent a link from
// answering for, or being redirected to, another one
// (Documentation/networking/ip-sysctl.rst).
var nsSettings = []setting{
	{"ipv4/ip_forward", "0"},
	{"ipv4/conf/all/forwarding", "0"},
	{"ipv4/conf/default/forwarding", "0"},
	{"ipv6/conf/all/disable_ipv6", "1"},
	{"ipv6/conf/default/disable_ipv6", "1"},
	{"ipv6/conf/lo/disable_ipv6", "1"},
	{"ipv4/conf/all/arp_ignore", "1"},
	{"ipv4/conf/all/arp_announce", "2"},
	{"ipv4/conf/all/rp_filter", "1"},
	{"ipv4/conf/default/rp_filter", "1"},
	{"ipv4/conf/all/route_localnet", "0"},
	{"ipv4/conf/default/route_localnet", "0"},
	{"ipv4/conf/all/proxy_arp", "0"},
	{"ipv4/conf/default/proxy_arp", "0"},
	{"ipv4/conf/all/accept_redirects", "0"},
	{"ipv4/conf/default/accept_redirects", "0"},
	{"ipv4/conf/all/send_redirects", "0"},
	{"ipv4/conf/default/send_redirects", "0"},
	{"ipv4/conf/all/accept_source_route", "0"},
	{"ipv4/conf/default/accept_source_route", "0"},
}

// perLink are the settings that Verify reads back for each link.
var perLink = []setting{
	{"ipv4/conf/*/forwarding", "0"},
	{"ipv6/conf/*/disable_ipv6", "1"},
	{"ipv4/conf/*/route_localnet", "0"},
	{"ipv4/conf/*/proxy_arp", "0"},
}

func readSysctl(key string) (string, error) {
	data, err := os.ReadFile(filepath.Join(sysctlDir, key))
	return strings.TrimSpace(string(data)), err
}

func writeSysctl(key, value string) error {
	// os.WriteFile would create and truncate, which procfs does not need.
	f, err := os.OpenFile(filepath.Join(sysctlDir, key), os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set %s: %w", key, err)
	}
	_, err = f.WriteString(value)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("set %s to %s: %w", key, value, err)
	}
	return nil
}

// ipv6Missing reports whether err means that the kernel has no IPv6, which is
// equivalent to IPv6 being disabled.
func ipv6Missing(key string, err error) bool {
	if !strings.HasPrefix(key, "ipv6/") || !errors.Is(err, os.ErrNotExist) {
		return false
	}
	_, serr := os.Stat(filepath.Join(sysctlDir, "ipv6"))
	return errors.Is(serr, os.ErrNotExist)
}

// disableIPv6 disables IPv6 on one link of the thread's namespace.
func disableIPv6(link string) error {
	key := "ipv6/conf/" + link + "/disable_ipv6"
	if err := writeSysctl(key, "1"); err != nil && !ipv6Missing(key, err) {
		return err
	}
	return nil
}

// writeNSSettings applies nsSettings to the thread's namespace.
func writeNSSettings() error {
	for _, s := range nsSettings {
		if err := writeSysctl(s.key, s.value); err != nil && !ipv6Missing(s.key, err) {
			return err
		}
	}
	return nil
}

// diffSettings reads settings back and returns the differences.
func diffSettings(settings []setting) (out []string) {
	for _, s := range settings {
		got, err := readSysctl(s.key)
		switch {
		case err != nil && !ipv6Missing(s.key, err):
			out = append(out, err.Error())
		case err == nil && got != s.value:
			out = append(out, fmt.Sprintf("%s is %s, not %s", s.key, got, s.value))
		}
	}
	return out
}

// linkSettings returns perLink for one link.
func linkSettings(link string) []setting {
	out := make([]setting, len(perLink))
	for i, s := range perLink {
		out[i] = setting{strings.Replace(s.key, "*", link, 1), s.value}
	}
	return out
}
