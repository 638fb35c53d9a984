package bottle

import "fmt"

// Where an attempt's control is run: the same attempt, by the same program, with
// the wall away.
const (
	// onHost: outside of any bottle, with a proxy that refuses nothing.
	onHost = "host"
	// inOpened: in a bottle whose rules, settings and proxy were taken away.
	inOpened = "opened bottle"
	// besideNeighbour: in the namespace of another bottle's proxy.
	besideNeighbour = "neighbour's proxy"
)

// Victims: who sees that an attempt has succeeded.
const (
	// prober: the attempt itself, which finds in its hands what it must not have.
	prober = "prober"
	// nobody: it is no attempt, but something that is allowed.
	nobody         = ""
	hostVictim     = "host"
	proxyVictim    = "proxy"
	otherVictim    = "other bottle's proxy"
	otherInside    = "other bottle's agent"
	worldVictim    = "world "         // and the address, with a port where it has one
	worldRequest   = "world request " // and the path that was asked for
	worldQuestion  = "world query "   // and the name
	settingVictim  = "setting"        // in any of the network namespaces around
	setting        = "log_martians"   // of lo, which nothing else changes
	victimPort     = 7777
	canary         = "/run/bottle-escape-canary"
	canaryText     = "the host's own\n"
	hostSocket     = "/run/bottle-escape.sock"
	abstractSocket = "@bottle-escape"
)

// escape is one attempt: what is tried, who would see it succeed, and where the
// control is run, in which it does succeed.
type escape struct {
	name, kind string
	args       []string
	victim     string
	control    string
	// alone: it changes routes or addresses, so it comes after the others.
	alone bool
	// often: it is tried often in a vigil.
	often bool
}

// place is what the attempts aim at, as seen from where they are run.
type place struct {
	link      string // a link's name, for link-local addresses
	hostLL    string // the host's link-local address
	proxy     string // this bottle's proxy, on the egress network
	other     string // another bottle's
	pid       string // of a process of the host's
	comm      string // its command
	netns     string // the host's network namespace, as its link reads
	guestFile string // a file that the host mounts read-only into the bottle
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

// direct goes past the proxy.
func direct(p place) []escape {
	var out []escape
	add := func(kind, to, victim, control string) {
		out = append(out, escape{name: kind + " " + to, kind: kind, args: []string{to}, victim: victim, control: control})
	}
	port := func(addr string) string { return fmt.Sprintf("%s:%d", addr, victimPort) }
	for _, kind := range []string{"tcp", "udp"} {
		// The host, by each of its addresses; 10.210.0.1 is the bridge's and the
		// proxies' gateway.
		for _, addr := range []string{"192.0.2.2", "[2001:db8:2::2]", "[" + p.hostLL + "%" + p.link + "]", "10.210.0.1"} {
			add(kind, port(addr), hostVictim, onHost)
		}
		add(kind, port("10.77.0.1"), proxyVictim, inOpened)
		add(kind, port(p.proxy), proxyVictim, onHost)
		add(kind, port(p.other), otherVictim, onHost)
		// What is beyond the host: public, its LAN, private, shared, metadata.
		for _, to := range []string{
			"198.51.101.66:9999", "8.8.8.8:53", "10.99.0.10:9999", "172.31.99.10:443", "192.168.99.10:9999",
			"100.64.99.10:53", "169.254.169.254:9999", "[fd00:ec2::254]:9999", "[2001:db8:77::66]:443", "[64:ff9b::a63:a]:9999",
		} {
			add(kind, to, worldVictim+to, onHost)
		}
	}
	add("tcp", port("127.0.0.1"), hostVictim, onHost)
	add("tcp", "198.51.101.10:443", worldVictim+"198.51.101.10:443", onHost) // allowed, but by the proxy
	add("udp", "198.51.101.66:443", worldVictim+"198.51.101.66:443", onHost) // as QUIC goes
	for _, to := range []string{"198.51.101.66", "8.8.8.8", "169.254.169.254", "2001:db8:77::66"} {
		add("icmp", to, worldVictim+to, onHost)
	}
	for _, proto := range []string{"udp", "tcp"} {
		name := "direct-" + proto + ".refused.test."
		out = append(out, escape{name: "lookup by " + proto, kind: "lookup", args: []string{proto, "198.51.101.53:53", name}, victim: worldQuestion + name, control: onHost})
	}
	return out
}

// privileged needs NET_ADMIN or NET_RAW.
func privileged(p place) []escape {
	const nearby = "10.77.0.1"
	port := func(addr string) string { return fmt.Sprintf("%s:%d", addr, victimPort) }
	link := "eth0"
	return []escape{
		{name: "route to the world", kind: "route", args: []string{"0.0.0.0/0", nearby, "198.51.101.66:123"}, victim: worldVictim + "198.51.101.66:123", control: inOpened, alone: true},
		{name: "route to the metadata service", kind: "route", args: []string{"169.254.169.254/32", nearby, "169.254.169.254:123"}, victim: worldVictim + "169.254.169.254:123", control: inOpened, alone: true},
		{name: "route to the host", kind: "route", args: []string{"192.0.2.2/32", nearby, port("192.0.2.2")}, victim: hostVictim, control: inOpened, alone: true},
		{name: "route to the bridge", kind: "route", args: []string{"10.210.0.1/32", nearby, port("10.210.0.1")}, victim: hostVictim, control: inOpened, alone: true},
		{name: "route to another bottle", kind: "route", args: []string{p.other + "/32", nearby, port(p.other)}, victim: otherVictim, control: inOpened, alone: true},
		{name: "address of the egress network", kind: "address", args: []string{"10.210.7.7/16", port("10.210.0.1")}, victim: hostVictim, control: inOpened, alone: true},
		{name: "address of the host's LAN", kind: "address", args: []string{"192.0.2.77/24", port("192.0.2.2")}, victim: hostVictim, control: inOpened, alone: true},
		{name: "source of another bottle", kind: "spoof", args: []string{p.other, "198.51.101.66:9999"}, victim: worldVictim + "198.51.101.66:9999", control: inOpened, alone: true},
		{name: "source of nobody", kind: "spoof", args: []string{"203.0.113.9", "198.51.101.66:9999"}, victim: worldVictim + "198.51.101.66:9999", control: inOpened, alone: true},
		{name: "frame to all stations", kind: "frame", args: []string{link, "10.77.0.2", port("255.255.255.255")}, victim: proxyVictim, control: inOpened},
		{name: "frame to the proxy", kind: "frame", args: []string{link, "10.77.0.2", port(nearby)}, victim: proxyVictim, control: inOpened},
		{name: "frame to another bottle's agent", kind: "frame", args: []string{frameLink(p), "10.77.0.1", port("10.77.0.2")}, victim: otherInside, control: besideNeighbour},
	}
}

// frameLink is the link that another bottle's agent is on, where the control is
// run, and the agent's own elsewhere.
func frameLink(p place) string {
	if p.onHost {
		return "internal0"
	}
	return "eth0"
}

func connect(target string) string {
	return "CONNECT " + target + " HTTP/1.1\r\nHost: allowed.test:443\r\n\r\n"
}

// literals asks the proxy for addresses in every way of writing them.
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

// names asks the proxy for names: refused ones, look-alikes of allowed ones, and
// allowed ones that lead to where nobody may go.
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
	add("leak-by-name.refused.test:443", worldQuestion+"leak-by-name.refused.test.", onHost)
	// From here on the names are allowed.
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
	add("loopback.test:7777", proxyVictim, inOpened)
	add("internal.test:7777", proxyVictim, inOpened)
	add("zero.test:7777", proxyVictim, inOpened)
	out = append(out, escape{name: "CONNECT to a name that changes", kind: "flip", args: []string{connect("flip.test:443")}, victim: worldVictim + "10.99.0.10:443", control: onHost})
	return out
}

// requests are plain ones, which the proxy reads.
func requests() []escape {
	get := func(url, host string) string {
		return "GET " + url + " HTTP/1.1\r\nHost: " + host + "\r\n\r\n"
	}
	raw := func(name, path string, texts ...string) escape {
		return escape{name: name, kind: "raw", args: texts, victim: worldRequest + path, control: onHost}
	}
	return []escape{
		raw("GET of a refused host", "refused.test/plain", get("http://refused.test/plain", "refused.test")),
		raw("GET with the Host of an allowed one", "refused.test/host", get("http://refused.test/host", "allowed.test")),
		raw("Host that differs from the URL", "Host refused.test/differs", get("http://allowed.test/differs", "refused.test")),
		raw("GET of an address", "private.test/address", get("http://10.99.0.10/address", "allowed.test")),
		raw("GET of a decimal address", "private.test/decimal", get("http://174260234/decimal", "allowed.test")),
		raw("GET of the metadata service", "meta.test/latest", get("http://169.254.169.254/latest", "169.254.169.254")),
		raw("GET of a private name", "private.test/name", get("http://private.test/name", "private.test")),
		raw("user part", "refused.test/user", get("http://allowed.test@refused.test/user", "allowed.test")),
		raw("second request on a connection", "refused.test/second", get("http://allowed.test/", "allowed.test"), get("http://refused.test/second", "allowed.test")),
		raw("pipelined request", "refused.test/pipelined", get("http://allowed.test/", "allowed.test")+get("http://refused.test/pipelined", "allowed.test")),
		raw("line break in the target", "refused.test/broken", "GET http://refused.test/broken\r\nX: .wild.test/ HTTP/1.1\r\nHost: allowed.test\r\n\r\n"),
		raw("NUL in the host", "refused.test/nul", get("http://refused.test\x00.wild.test/nul", "allowed.test")),
		{name: "redirect to a refused host", kind: "follow", args: []string{"http://allowed.test/redirect?to=http://refused.test/redirected"}, victim: worldRequest + "refused.test/redirected", control: onHost},
		{name: "redirect to the metadata service", kind: "follow", args: []string{"http://allowed.test/redirect?to=http://169.254.169.254/redirected"}, victim: worldRequest + "meta.test/redirected", control: onHost},
	}
}

// handshakes name another server in TLS than in CONNECT.
func handshakes() []escape {
	const at = "allowed.test:443"
	return []escape{
		{name: "SNI of another host", kind: "tls", args: []string{at, "refused.test", "", "/sni"}, victim: worldRequest + "allowed.test/sni", control: onHost},
		{name: "SNI of another host, hello split", kind: "tls", args: []string{at, "refused.test", "split", "/split"}, victim: worldRequest + "allowed.test/split", control: onHost},
		{name: "no SNI", kind: "tls", args: []string{at, "", "", "/nosni"}, victim: worldRequest + "allowed.test/nosni", control: onHost},
		{name: "SNI of a look-alike", kind: "tls", args: []string{at, "allowed.test.evil.com", "", "/longer"}, victim: worldRequest + "allowed.test/longer", control: onHost},
		{name: "another protocol in a tunnel", kind: "raw", args: []string{connect("allowed.test:80"), "GET /tunnelled HTTP/1.1\r\nHost: allowed.test\r\n\r\n"}, victim: worldRequest + "allowed.test/tunnelled", control: onHost},
	}
}

// files looks for the host in the file system, and for devices, namespaces and
// processes.
func files(p place) []escape {
	e := func(name, kind, victim string, args ...string) escape {
		return escape{name: name, kind: kind, args: args, victim: victim, control: onHost}
	}
	return []escape{
		e("the host's socket", "unix", hostVictim, hostSocket),
		e("the host's abstract socket", "unix", hostVictim, abstractSocket),
		e("the host's file", "open", prober, canary, "read", canaryText),
		e("the host's file by PID 1's root", "open", prober, "/proc/1/root"+canary, "read", canaryText),
		e("the host's file by dots", "open", prober, "/../../../../.."+canary, "read", canaryText),
		e("containerd's socket", "unix", prober, "/run/lab/containerd.sock"),
		e("write to bottle's folder", "write", prober, p.guestFile),
		e("/proc/sys/kernel/core_pattern", "open", prober, "/proc/sys/kernel/core_pattern", "write"),
		e("a setting of the kernel's", "write", settingVictim, "/proc/sys/net/ipv4/conf/lo/"+setting, "1"),
		e("/proc/interrupts", "open", prober, "/proc/interrupts", "read", "*"),
		e("/dev/kmsg", "open", prober, "/dev/kmsg", "write"),
		e("/sys, to write", "open", prober, "/sys/class/net/"+p.link+"/mtu", "write"),
		e("device of memory", "mknod", prober, "c", "1", "1"),
		e("device of a disk", "mknod", prober, "b", "8", "0"),
		e("mount of proc", "mount", prober, "proc", "proc", ""),
		e("mount of sysfs", "mount", prober, "sysfs", "sysfs", ""),
		e("mount of the cgroups", "mount", prober, "cgroup2", "cgroup2", ""),
		e("the host's network namespace", "setns", prober, "/proc/"+p.pid+"/ns/net", p.netns),
		e("PID 1's network namespace", "setns", prober, "/proc/1/ns/net", p.netns),
		e("a process of the host's", "signal", prober, p.pid, p.comm),
	}
}
