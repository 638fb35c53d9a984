package bottle

import (
	"fmt"
	"path/filepath"
)

// Places of controls. A control makes the same attempt with the same program, but
// without the protection.
const (
	// onHost is outside of any bottle, with an open proxy.
	onHost = "host"
	// inOpenBottle is a bottle without its rules, settings and proxy.
	inOpenBottle = "unprotected bottle"
	// inNeighbourProxy is the network namespace of another bottle's proxy.
	inNeighbourProxy = "other bottle's proxy"
)

// Victims of attempts. They see whether an attempt succeeds.
const (
	// prober is the victim of attempts whose result the prober sees itself.
	prober = "prober"
	// noVictim is for requests that are allowed.
	noVictim         = ""
	hostVictim       = "host"
	proxyVictim      = "proxy"
	otherVictim      = "other bottle's proxy"
	otherAgentVictim = "other bottle's agent"
	worldVictim      = "world "         // followed by the address, with the port if there is one
	worldRequest     = "world request " // followed by site and path
	worldQuery       = "world query "   // followed by the name
	settingVictim    = "setting"        // of any network namespace on the host
	setting          = "log_martians"   // of lo; nothing else changes it
	victimPort       = 7777
	canary           = "/run/bottle-escape-canary"
	canaryText       = "the host's own\n"
	hostSocket       = "/run/bottle-escape.sock"
	abstractSocket   = "@bottle-escape"
)

// escape is an attempt with its victim and the place of its control.
type escape struct {
	name, kind string
	args       []string
	victim     string
	control    string
	// exclusive attempts change routes or addresses, so they run after all others.
	exclusive bool
	// frequent attempts have a short interval when they are repeated.
	frequent bool
}

// place holds the targets of attempts, as seen from the place where they are made.
type place struct {
	link      string // name of a link, for link-local addresses
	hostLL    string // the host's link-local address
	proxy     string // this bottle's proxy, on the egress network
	other     string // another bottle's proxy
	pid       string // id of a process on the host
	comm      string // its command
	netns     string // the host's network namespace, as its link in /proc reads
	guestFile string // a file that is mounted read-only into the bottle
	work      string // the workspace, or on the host what is copied into it
	onHost    bool
}

// escapes is the table of all attempts.
func escapes(p place) []escape {
	var out []escape
	for _, part := range [][]escape{direct(p), privileged(p), literals(p), attemptNames(), requests(), handshakes(), files(p)} {
		out = append(out, part...)
	}
	return out
}

// direct attempts bypass the proxy.
func direct(p place) []escape {
	var out []escape
	add := func(kind, to, victim, control string) {
		out = append(out, escape{name: kind + " " + to, kind: kind, args: []string{to}, victim: victim, control: control})
	}
	port := func(addr string) string { return fmt.Sprintf("%s:%d", addr, victimPort) }
	for _, kind := range []string{"tcp", "udp"} {
		// All addresses of the host; 10.210.0.1 is the bridge's, the gateway of the
		// proxies.
		for _, addr := range []string{"192.0.2.2", "[2001:db8:2::2]", "[" + p.hostLL + "%" + p.link + "]", "10.210.0.1"} {
			add(kind, port(addr), hostVictim, onHost)
		}
		add(kind, port("10.77.0.1"), proxyVictim, inOpenBottle)
		add(kind, port(p.proxy), proxyVictim, onHost)
		add(kind, port(p.other), otherVictim, onHost)
		// Addresses beyond the host: public, LAN, private, shared and metadata.
		for _, to := range []string{
			"198.51.101.66:9999", "8.8.8.8:53", "10.99.0.10:9999", "172.31.99.10:443", "192.168.99.10:9999",
			"100.64.99.10:53", "169.254.169.254:9999", "[fd00:ec2::254]:9999", "[2001:db8:77::66]:443", "[64:ff9b::a63:a]:9999",
		} {
			add(kind, to, worldVictim+to, onHost)
		}
	}
	add("tcp", port("127.0.0.1"), hostVictim, onHost)
	add("tcp", "198.51.101.10:443", worldVictim+"198.51.101.10:443", onHost) // allowed only through the proxy
	add("udp", "198.51.101.66:443", worldVictim+"198.51.101.66:443", onHost) // as with QUIC
	for _, to := range []string{"198.51.101.66", "8.8.8.8", "169.254.169.254", "2001:db8:77::66"} {
		add("icmp", to, worldVictim+to, onHost)
	}
	for _, proto := range []string{"udp", "tcp"} {
		name := "direct-" + proto + ".refused.test."
		out = append(out, escape{name: "lookup over " + proto, kind: "lookup", args: []string{proto, "198.51.101.53:53", name}, victim: worldQuery + name, control: onHost})
	}
	return out
}

// privileged attempts need NET_ADMIN or NET_RAW.
func privileged(p place) []escape {
	const nearby = "10.77.0.1"
	port := func(addr string) string { return fmt.Sprintf("%s:%d", addr, victimPort) }
	link := "eth0"
	return []escape{
		{name: "route to the world", kind: "route", args: []string{"0.0.0.0/0", nearby, "198.51.101.66:123"}, victim: worldVictim + "198.51.101.66:123", control: inOpenBottle, exclusive: true},
		{name: "route to the metadata service", kind: "route", args: []string{"169.254.169.254/32", nearby, "169.254.169.254:123"}, victim: worldVictim + "169.254.169.254:123", control: inOpenBottle, exclusive: true},
		{name: "route to the host", kind: "route", args: []string{"192.0.2.2/32", nearby, port("192.0.2.2")}, victim: hostVictim, control: inOpenBottle, exclusive: true},
		{name: "route to the bridge", kind: "route", args: []string{"10.210.0.1/32", nearby, port("10.210.0.1")}, victim: hostVictim, control: inOpenBottle, exclusive: true},
		{name: "route to another bottle", kind: "route", args: []string{p.other + "/32", nearby, port(p.other)}, victim: otherVictim, control: inOpenBottle, exclusive: true},
		{name: "address of the egress network", kind: "address", args: []string{"10.210.7.7/16", port("10.210.0.1")}, victim: hostVictim, control: inOpenBottle, exclusive: true},
		{name: "address of the host's LAN", kind: "address", args: []string{"192.0.2.77/24", port("192.0.2.2")}, victim: hostVictim, control: inOpenBottle, exclusive: true},
		{name: "source address of another bottle", kind: "spoof", args: []string{p.other, "198.51.101.66:9999"}, victim: worldVictim + "198.51.101.66:9999", control: inOpenBottle, exclusive: true},
		{name: "unassigned source", kind: "spoof", args: []string{"203.0.113.9", "198.51.101.66:9999"}, victim: worldVictim + "198.51.101.66:9999", control: inOpenBottle, exclusive: true},
		{name: "broadcast frame to the broadcast address", kind: "frame", args: []string{link, "10.77.0.2", port("255.255.255.255")}, victim: proxyVictim, control: inOpenBottle},
		{name: "broadcast frame to the proxy", kind: "frame", args: []string{link, "10.77.0.2", port(nearby)}, victim: proxyVictim, control: inOpenBottle},
		{name: "broadcast frame to another bottle's agent", kind: "frame", args: []string{frameLink(p), "10.77.0.1", port("10.77.0.2")}, victim: otherAgentVictim, control: inNeighbourProxy},
	}
}

// frameLink is the link of another bottle's agent in the control, and the agent's
// own link otherwise.
func frameLink(p place) string {
	if p.onHost {
		return "internal0"
	}
	return "eth0"
}

func connect(target string) string {
	return "CONNECT " + target + " HTTP/1.1\r\nHost: allowed.test:443\r\n\r\n"
}

// literals request addresses from the proxy in every notation.
func literals(p place) []escape {
	var out []escape
	add := func(target, victim string) {
		out = append(out, escape{name: "CONNECT " + target, kind: "raw", args: []string{connect(target)}, victim: victim, control: onHost})
	}
	const private = worldVictim + "10.99.0.10:443"
	for _, target := range []string{
		"10.99.0.10:443", "174260234:443", "0x0a63000a:443", "012.0143.0.012:443", "0xa.0x63.0.0xa:443", "10.6488074:443",
		"[::ffff:10.99.0.10]:443", "[::ffff:a63:a]:443",
	} {
		add(target, private)
	}
	add("[64:ff9b::a63:a]:443", worldVictim+"[64:ff9b::a63:a]:443")
	add("198.51.101.66:443", worldVictim+"198.51.101.66:443")
	add("198.51.101.10:443", worldVictim+"198.51.101.10:443") // the address of an allowed name
	add("169.254.169.254:80", worldVictim+"169.254.169.254:80")
	add("[fd00:ec2::254]:80", worldVictim+"[fd00:ec2::254]:80")
	add("[2001:db8:77::66]:443", worldVictim+"[2001:db8:77::66]:443")
	add("192.0.2.2:7777", hostVictim)
	add("10.210.0.1:7777", hostVictim)
	add(p.other+":7777", otherVictim)
	add(p.proxy+":7777", proxyVictim)
	add("198.51.101.53:53", worldVictim+"198.51.101.53:53")
	add("allowed.test:22", worldVictim+"198.51.101.10:22")
	return out
}

// attemptNames requests names from the proxy: refused names, names that resemble
// allowed ones, and allowed names with addresses that are not allowed.
func attemptNames() []escape {
	var out []escape
	add := func(target, victim, control string) {
		out = append(out, escape{name: fmt.Sprintf("CONNECT %q", target), kind: "raw", args: []string{connect(target)}, victim: victim, control: control})
	}
	const refused, lookalike = worldVictim + "198.51.101.11:443", worldVictim + "198.51.101.66:443"
	for _, target := range []string{
		"refused.test:443", "REFUSED.TEST:443", "refused.test.:443", "ｒefused.test:443",
		"refused.test\x00.wild.test:443", "refused.test:443\x00.wild.test:443",
	} {
		add(target, refused, onHost)
	}
	for _, target := range []string{
		"evilallowed.test:443", "allowed.test.evil.com:443", "evilwild.test:443", "wild.test.evil.com:443",
		"аllowed.test:443", "xn--llowed-2nf.test:443",
	} {
		add(target, lookalike, onHost)
	}
	add("leak-by-name.refused.test:443", worldQuery+"leak-by-name.refused.test.", onHost)
	// The following names are allowed.
	add("private.test:443", worldVictim+"10.99.0.10:443", onHost)
	add("PRIVATE.test.:443", worldVictim+"10.99.0.10:443", onHost)
	add("private6.test:443", worldVictim+"[fd00:99::10]:443", onHost)
	add("meta.test:80", worldVictim+"169.254.169.254:80", onHost)
	add("meta6.test:80", worldVictim+"[fd00:ec2::254]:80", onHost)
	add("nat64.test:443", worldVictim+"[64:ff9b::a63:a]:443", onHost)
	add("mixed.test:443", worldVictim+"10.99.0.10:443", onHost)
	add("mixed6.test:443", worldVictim+"[fd00:99::10]:443", onHost)
	add("mapped.test:443", worldVictim+"10.99.0.10:443", onHost)
	add("labhost.test:7777", hostVictim, onHost)
	add("loopback.test:7777", proxyVictim, inOpenBottle)
	add("internal.test:7777", proxyVictim, inOpenBottle)
	add("zero.test:7777", proxyVictim, inOpenBottle)
	out = append(out, escape{name: "CONNECT to a name whose address changes", kind: "flip", args: []string{connect("flip.test:443")}, victim: worldVictim + "10.99.0.10:443", control: onHost})
	return out
}

// requests are plain HTTP requests, which the proxy parses.
func requests() []escape {
	get := func(url, host string) string {
		return "GET " + url + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	}
	raw := func(name, path string, texts ...string) escape {
		return escape{name: name, kind: "raw", args: texts, victim: worldRequest + path, control: onHost}
	}
	return []escape{
		raw("GET of a refused host", "refused.test/plain", get("http://refused.test/plain", "refused.test")),
		raw("GET of a refused host with the Host of an allowed one", "refused.test/host", get("http://refused.test/host", "allowed.test")),
		raw("GET of an allowed host with the Host of a refused one", "Host refused.test/differs", get("http://allowed.test/differs", "refused.test")),
		raw("GET of an address", "private.test/address", get("http://10.99.0.10/address", "allowed.test")),
		raw("GET of a decimal address", "private.test/decimal", get("http://174260234/decimal", "allowed.test")),
		raw("GET of the metadata service", "meta.test/latest", get("http://169.254.169.254/latest", "169.254.169.254")),
		raw("GET of a private name", "private.test/name", get("http://private.test/name", "private.test")),
		raw("refused host after a user name", "refused.test/user", get("http://allowed.test@refused.test/user", "allowed.test")),
		raw("second request on a connection", "refused.test/second", get("http://allowed.test/", "allowed.test"), get("http://refused.test/second", "allowed.test")),
		raw("pipelined request", "refused.test/pipelined", get("http://allowed.test/", "allowed.test")+get("http://refused.test/pipelined", "allowed.test")),
		raw("line break in the target", "refused.test/broken", "GET http://refused.test/broken\r\nX: .wild.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n"),
		raw("NUL in the host", "refused.test/nul", get("http://refused.test\x00.wild.test/nul", "allowed.test")),
		{name: "redirect to a refused host", kind: "follow", args: []string{"http://allowed.test/redirect?to=http://refused.test/redirected"}, victim: worldRequest + "refused.test/redirected", control: onHost},
		{name: "redirect to the metadata service", kind: "follow", args: []string{"http://allowed.test/redirect?to=http://169.254.169.254/redirected"}, victim: worldRequest + "meta.test/redirected", control: onHost},
	}
}

// handshakes name a different server in TLS than in CONNECT.
func handshakes() []escape {
	const target = "allowed.test:443"
	plain := func(path, host string) string { return "GET " + path + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n" }
	return []escape{
		{name: "SNI of another host", kind: "tls", args: []string{target, "refused.test", "", "/sni"}, victim: worldRequest + "allowed.test/sni", control: onHost},
		{name: "SNI of another host in a split ClientHello", kind: "tls", args: []string{target, "refused.test", "split", "/split"}, victim: worldRequest + "allowed.test/split", control: onHost},
		{name: "no SNI", kind: "tls", args: []string{target, "", "", "/nosni"}, victim: worldRequest + "allowed.test/nosni", control: onHost},
		{name: "SNI that resembles an allowed host", kind: "tls", args: []string{target, "allowed.test.evil.com", "", "/longer"}, victim: worldRequest + "allowed.test/longer", control: onHost},
		// Plain HTTP in a tunnel is allowed for the host that CONNECT named.
		{name: "plain HTTP in a tunnel, for another host", kind: "raw", args: []string{connect("allowed.test:80"), plain("/tunnelled", "refused.test")}, victim: worldRequest + "Host refused.test/tunnelled", control: onHost},
		{name: "plain HTTP in a tunnel, second request", kind: "raw", args: []string{connect("allowed.test:80"), plain("/", "allowed.test"), plain("/tunnelled2", "refused.test")}, victim: worldRequest + "Host refused.test/tunnelled2", control: onHost},
		{name: "plain HTTP in a tunnel, pipelined request", kind: "raw", args: []string{connect("allowed.test:80"), plain("/", "allowed.test") + plain("/tunnelled3", "refused.test")}, victim: worldRequest + "Host refused.test/tunnelled3", control: onHost},
	}
}

// files attempts to use the host's files, devices, namespaces and processes.
func files(p place) []escape {
	e := func(name, kind, victim string, args ...string) escape {
		return escape{name: name, kind: kind, args: args, victim: victim, control: onHost}
	}
	return []escape{
		e("the host's socket", "unix", hostVictim, hostSocket),
		e("the host's abstract socket", "unix", hostVictim, abstractSocket),
		e("the host's file", "open", prober, canary, "read", canaryText),
		e("the host's file through PID 1's root", "open", prober, "/proc/1/root"+canary, "read", canaryText),
		e("the host's file through parent directories", "open", prober, "/../../../../.."+canary, "read", canaryText),
		e("the host's file through a link in the workspace", "open", prober, p.work+"/absolute", "read", canaryText),
		e("the host's file through a relative link in the workspace", "open", prober, p.work+"/relative", "read", canaryText),
		e("the host's file through a directory of the workspace", "open", prober, p.work+"/run/"+filepath.Base(canary), "read", canaryText),
		e("loop devices", "open", prober, "/dev/loop-control", "read"),
		e("containerd's socket", "unix", prober, "/run/lab/containerd.sock"),
		e("write to bottle's directory", "write", prober, p.guestFile),
		e("/proc/sys/kernel/core_pattern", "open", prober, "/proc/sys/kernel/core_pattern", "write"),
		e("a kernel setting", "write", settingVictim, "/proc/sys/net/ipv4/conf/lo/"+setting, "1"),
		e("/proc/interrupts", "open", prober, "/proc/interrupts", "read", "*"),
		e("/dev/kmsg", "open", prober, "/dev/kmsg", "write"),
		e("write access to /sys", "open", prober, "/sys/class/net/"+p.link+"/mtu", "write"),
		e("memory device", "mknod", prober, "c", "1", "1"),
		e("disk device", "mknod", prober, "b", "8", "0"),
		e("loop device", "mknod", prober, "b", "7", "0"),
		e("mount of proc", "mount", prober, "proc", "proc", ""),
		e("mount of sysfs", "mount", prober, "sysfs", "sysfs", ""),
		e("mount of the cgroups", "mount", prober, "cgroup2", "cgroup2", ""),
		e("the host's network namespace", "setns", prober, "/proc/"+p.pid+"/ns/net", p.netns),
		e("PID 1's network namespace", "setns", prober, "/proc/1/ns/net", p.netns),
		e("a process of the host", "signal", prober, p.pid, p.comm),
	}
}
