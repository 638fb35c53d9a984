//go:build !race

package egress

// The race detector multiplies a process's memory: a bound says nothing about it.

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// memoryBound is what the proxy's process may use, whatever its clients and
// servers send. Its cgroup has 256 MiB.
const memoryBound = 128 << 20

// attackers is how many connections attack the proxy: all that it answers.
const attackers = 1024 + spareConnections

// wideLines are 100 header lines of size bytes together.
func wideLines(size int) string {
	const lines = 100
	var b strings.Builder
	for i := range lines {
		fmt.Fprintf(&b, "X-%02d: %s\r\n", i, strings.Repeat("x", size/lines-8))
	}
	return b.String()
}

// Paths of the hostile server.
const (
	holdPath    = "/hold"    // reads the request and does not respond
	floodPath   = "/flood"   // begins a response with many header lines, and does not end it
	widePath    = "/wide"    // begins a response with a long header, and does not end it
	trailerPath = "/trailer" // has a large trailer, and keeps the connection
)

// startHostileServer runs a web server that uses the proxy's memory.
func startHostileServer(t *testing.T) (port int) {
	return serveTCP(t, func(c *net.TCPConn) {
		br := bufio.NewReader(c)
		first, err := br.ReadString('\n')
		if err != nil {
			return
		}
		const ok = "HTTP/1.1 200 OK\r\n"
		switch fields := strings.Fields(first); fields[1] {
		case floodPath:
			_, _ = io.WriteString(c, ok+tinyLines(60_000))
		case widePath:
			_, _ = io.WriteString(c, ok+wideLines(60_000))
		case trailerPath:
			_, _ = io.WriteString(c, ok+"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"+tinyLines(3900)+"\r\n")
		}
		_, _ = io.Copy(io.Discard, br)
	})
}

// The proxy's memory is bounded, whatever an agent, or a server that it may reach,
// sends on all connections that the proxy accepts. The control sends the same to a
// proxy without the bounds.
func TestMemoryBound(t *testing.T) {
	target := fmt.Sprintf("127.0.0.1:%d", startHostileServer(t))
	get := func(path string) string { return "GET http://" + target + path + " HTTP/1.1\r\nHost: x\r\n" }
	post := func(path string) string {
		return "POST http://" + target + path + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
	}
	small := "GET / HTTP/1.1\r\nHost: x\r\n\r\n" // refused, and the connection is kept
	for _, tc := range []struct {
		name, text, then string
		// held is how many of the connections may be without a response: what they
		// sent is in the proxy's memory, or at the server.
		held int
	}{
		{name: "many header lines", text: get(holdPath) + tinyLines(66_000)},
		{name: "many header lines, complete", text: get(holdPath) + tinyLines(66_000) + "\r\n"},
		{name: "long header", text: get(holdPath) + wideLines(60_000), held: headBudget / 60_000},
		{name: "long header, forwarded", text: get(holdPath) + wideLines(60_000) + "\r\n", held: maxForwards},
		{name: "many short heads", text: get(holdPath) + tinyLines(1000), held: attackers},
		{name: "many short heads, forwarded", text: post(holdPath) + tinyLines(1000) + "\r\n1\r\nx\r\n", held: maxForwards},
		{name: "pipelined heads", text: small + post(holdPath) + tinyLines(3800) + "\r\n", held: maxForwards},
		{name: "long first lines", text: "POST http://" + target + "/" + strings.Repeat("x", 60_000) + " HTTP/1.1\r\nHost: x\r\n\r\n"},
		{name: "request trailers", text: post(holdPath) + "\r\n1\r\nx\r\n0\r\n" + tinyLines(3900) + "\r\n", held: maxForwards},
		{name: "response with many header lines", text: get(floodPath) + "\r\n"},
		{name: "response with a long header", text: get(widePath) + "\r\n", held: maxForwards},
		{name: "response trailers", text: get(trailerPath) + "\r\n", held: maxForwards},
		{name: "TLS handshakes", text: "CONNECT " + target + " HTTP/1.1\r\n\r\n", then: "\x16\x03\x01\x40\x00\x01\x00\xff\xf0" + strings.Repeat("x", 0x4000-4), held: attackers},
		{name: "tunnels", text: "CONNECT " + target + " HTTP/1.1\r\n" + wideLines(8000) + "\r\n", then: string(hello(t, "")), held: attackers},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := startProcess(t, fmt.Sprintf(`"allow": [%q]`, target))
			start := p.peakMemory(t)
			n := p.attack(t, attackers, tc.text, tc.then, attackers-tc.held)
			peak := p.peakMemory(t)
			t.Logf("peak memory: %d MiB, %d MiB before the attack; %d connections have a response", peak>>20, start>>20, n)
			if peak > memoryBound {
				t.Errorf("peak memory is %d MiB, want at most %d MiB", peak>>20, int64(memoryBound)>>20)
			}
		})
	}
}

// Without the bounds, the same connections use more.
func TestMemoryBoundControl(t *testing.T) {
	p := startProcess(t, `"allow": []`, proxyUnboundedEnv+"=1")
	p.attack(t, 400, "GET http://a.example.com/ HTTP/1.1\r\nHost: x\r\n"+tinyLines(60_000), "", 0)
	peak := p.peakMemory(t)
	t.Logf("peak memory without bounds: %d MiB", peak>>20)
	if peak <= memoryBound {
		t.Errorf("peak memory is %d MiB without the bounds: the attack shows nothing", peak>>20)
	}
}

// attack sends text on n connections, and then, after a response with status 200,
// more on each of them. It waits until so many connections have a final response,
// or are closed, and until the proxy has read what the others sent. It returns how
// many have a response.
func (p *proxyProcess) attack(t *testing.T, n int, text, then string, answers int) int {
	t.Helper()
	var wg sync.WaitGroup
	done := make(chan struct{}, n)
	for range n {
		c := p.dial(t)
		wg.Go(func() {
			_, _ = io.WriteString(c, text) // it may be refused before the end
			br := bufio.NewReader(c)
			res, err := http.ReadResponse(br, &http.Request{Method: http.MethodConnect})
			if err == nil && res.StatusCode == http.StatusOK && then != "" {
				_, _ = io.WriteString(c, then)
				_, _ = io.ReadAll(br)
			}
			if err == nil {
				_ = res.Body.Close()
			}
			done <- struct{}{}
		})
	}
	limit := time.After(waitTimeout)
	for range answers {
		select {
		case <-done:
		case <-limit:
			t.Fatalf("%d of %d connections have a response, want %d", len(done), n, answers)
		}
	}
	left, deadline := unread(t, portOf(p.addr)), time.Now().Add(waitTimeout)
	for left > 0 {
		if time.Now().After(deadline) {
			t.Fatalf("the proxy does not read %d bytes", left)
		}
		if now := unread(t, portOf(p.addr)); now != left {
			left, deadline = now, time.Now().Add(waitTimeout) // it reads
		}
		time.Sleep(10 * time.Millisecond) // another process's reads cannot be awaited
	}
	return answers + len(done)
}

// unread returns the bytes on their way to, and in the receive buffers of, the
// server on a local port.
func unread(t *testing.T, port int) (n int64) {
	t.Helper()
	table, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	const established = "01"
	hexPort := fmt.Sprintf(":%04X", port)
	for line := range strings.Lines(string(table)) {
		f := strings.Fields(line) // proc_net_tcp(5): slot, local, remote, state, tx:rx
		if len(f) < 5 || f[3] != established {
			continue
		}
		var tx, rx int64
		if _, err := fmt.Sscanf(f[4], "%x:%x", &tx, &rx); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if strings.HasSuffix(f[1], hexPort) {
			n += rx
		}
		if strings.HasSuffix(f[2], hexPort) {
			n += tx
		}
	}
	return n
}

// peakMemory is the largest resident set that the process has had, in bytes.
func (p *proxyProcess) peakMemory(t *testing.T) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(status, []byte("VmHWM:"))
	var kib int64
	if _, err := fmt.Sscanf(string(rest), "%d kB", &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
