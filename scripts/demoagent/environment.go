package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// printEnvironment prints what the process can find out about its environment.
func printEnvironment(w io.Writer) error {
	host, err := os.Hostname()
	if err != nil {
		host = err.Error()
	}
	for _, fact := range [][2]string{
		{"user", fmt.Sprintf("uid %d, gid %d", os.Getuid(), os.Getgid())},
		{"host", host},
		{"kernel", kernel()},
		{"links", links()},
		{"routes", routes()},
		{"proxy", proxy()},
	} {
		if _, err := fmt.Fprintf(w, "%-7s  %s\n", fact[0], fact[1]); err != nil {
			return err
		}
	}
	return nil
}

// kernel reports gVisor if the kernel log says so: gVisor's /proc/version shows a
// version of Linux.
func kernel() string {
	version, err := os.ReadFile("/proc/version")
	if err != nil {
		version = []byte(err.Error())
	}
	buf := make([]byte, 64<<10)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, buf)
	if err == nil && bytes.Contains(buf[:n], []byte("gVisor")) {
		return "gVisor, reported as " + printable(version)
	}
	return printable(version)
}

func links() string {
	all, err := net.Interfaces()
	if err != nil {
		return err.Error()
	}
	var texts []string
	for _, l := range all {
		addrs, err := l.Addrs()
		if err != nil {
			return err.Error()
		}
		text := l.Name
		for _, a := range addrs {
			text += " " + a.String()
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, ", ")
}

// routes reads the IPv4 routes from /proc/net/route (proc(5)).
func routes() string {
	data, err := os.ReadFile("/proc/net/route")
	if err != nil {
		return err.Error()
	}
	var texts []string
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Scan() // skip the header
	for lines.Scan() {
		if f := strings.Fields(lines.Text()); len(f) >= 8 {
			texts = append(texts, network(f[1], f[7])+" on "+f[0])
		}
	}
	if len(texts) == 0 {
		return "none"
	}
	return strings.Join(texts, ", ")
}

// network parses an address and a mask of /proc/net/route: hexadecimal, with the
// bytes of the address in memory order.
func network(address, mask string) string {
	a, err1 := strconv.ParseUint(address, 16, 32)
	m, err2 := strconv.ParseUint(mask, 16, 32)
	if err1 != nil || err2 != nil {
		return address + "/" + mask
	}
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], uint32(a))
	p := netip.PrefixFrom(netip.AddrFrom4(b), bits.OnesCount32(uint32(m)))
	if p.Bits() == 0 {
		return "default"
	}
	return p.String()
}

func proxy() string {
	for _, name := range []string{"HTTPS_PROXY", "https_proxy"} {
		if v := os.Getenv(name); v != "" {
			return v
		}
	}
	return "none"
}
