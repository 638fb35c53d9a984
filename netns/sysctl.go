package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// sysctlDir shows the settings of the network namespace that the opening thread
// is in.
const sysctlDir = "/proc/sys/net"

// setting is a file under sysctlDir and its value.
type setting struct{ key, value string }

// closed are the settings of both of a bottle's namespaces. A new namespace
// takes the host's forwarding over, and CNI turns that on. The others keep what
// comes in by one link from answering for, or being steered to, another
// (Documentation/networking/ip-sysctl.rst).
var closed = []setting{
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

// perLink are the settings that Verify reads for each link.
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
	// Without O_CREATE and O_TRUNC, which procfs has no use for.
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

// lacksIPv6 tells whether an error is that the kernel has no IPv6 at all, which
// is as good as having it turned off.
func lacksIPv6(key string, err error) bool {
	if !strings.HasPrefix(key, "ipv6/") || !errors.Is(err, os.ErrNotExist) {
		return false
	}
	_, serr := os.Stat(filepath.Join(sysctlDir, "ipv6"))
	return errors.Is(serr, os.ErrNotExist)
}

// disableIPv6 turns IPv6 off on one link of the thread's namespace.
func disableIPv6(link string) error {
	key := "ipv6/conf/" + link + "/disable_ipv6"
	if err := writeSysctl(key, "1"); err != nil && !lacksIPv6(key, err) {
		return err
	}
	return nil
}

// closeNS writes closed into the thread's namespace.
func closeNS() error {
	for _, s := range closed {
		if err := writeSysctl(s.key, s.value); err != nil && !lacksIPv6(s.key, err) {
			return err
		}
	}
	return nil
}

// differences reads settings back and returns what differs.
func differences(settings []setting) (out []string) {
	for _, s := range settings {
		got, err := readSysctl(s.key)
		switch {
		case err != nil && !lacksIPv6(s.key, err):
			out = append(out, err.Error())
		case err == nil && got != s.value:
			out = append(out, fmt.Sprintf("%s is %s, not %s", s.key, got, s.value))
		}
	}
	return out
}

// settingsOf are perLink for one link.
func settingsOf(link string) []setting {
	out := make([]setting, len(perLink))
	for i, s := range perLink {
		out[i] = setting{strings.Replace(s.key, "*", link, 1), s.value}
	}
	return out
}
