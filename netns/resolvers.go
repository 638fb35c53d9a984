package netns

import (
	"bufio"
	"net/netip"
	"os"
	"strings"
)

// HostResolvers returns the host's name servers that a proxy can reach, and the file
// they were read from. A proxy cannot reach a stub on a loopback address: instead, the
// upstream servers of systemd-resolved are used.
func HostResolvers() (servers []netip.Addr, file string) {
	for _, file = range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		if servers = readResolvers(file); len(servers) > 0 {
			return servers, file
		}
	}
	return nil, ""
}

// readResolvers returns the IPv4 name servers of a resolv.conf, without loopback
// addresses. The egress network has no IPv6.
func readResolvers(file string) []netip.Addr {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	var out []netip.Addr
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil && a.Is4() && !a.IsLoopback() {
			out = append(out, a)
		}
	}
	return out
}
