package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/scripts/bench/results"
)

// blocks is the number of parts in which tunnels are opened, through the proxies in turn.
const blocks = 10

// opening measures from CONNECT to the answer 200 through the proxy, and through squid if
// it is installed.
func (b bench) opening(ctx context.Context, proxyAddr string, port int, result *results.Result) error {
	proxies, names := []string{proxyAddr}, []string{"proxy"}
	if program, err := exec.LookPath("squid"); err == nil {
		addr, stop, err := squid(ctx, program)
		if err != nil {
			return fmt.Errorf("squid: %w", err)
		}
		defer stop()
		proxies, names = append(proxies, addr), append(names, "squid")
	}
	times := make([][]float64, len(proxies))
	for block := range blocks + 1 { // the first for warming up
		for i := range proxies {
			which := (block + i) % len(proxies)
			for range b.connects / blocks {
				took, err := open(proxies[which], port)
				if err != nil {
					return fmt.Errorf("%s: %w", names[which], err)
				}
				if block > 0 {
					times[which] = append(times[which], results.Millis(took))
				}
			}
		}
	}
	var figures []results.Figure
	for i, name := range names {
		f := results.FigureOf("CONNECT, "+name, "ms", times[i])
		figures = append(figures, f)
		fmt.Printf("CONNECT to 200, %d in sequence: %s %.2f ms (%.2f to %.2f)\n", f.Rounds, name, f.Median, f.Low, f.High)
	}
	result.Figures = append(result.Figures, figures...)
	if len(names) == 1 {
		fmt.Println("squid is not installed: no ratio")
		return nil
	}
	ratio := results.Ratio{Name: "CONNECT / squid", Value: figures[0].Median / figures[1].Median, Goal: goalConnect}
	result.Ratios = append(result.Ratios, ratio)
	fmt.Printf("CONNECT / squid: %.2f, goal: at most %.1f\n", ratio.Value, goalConnect)
	return nil
}

// open opens a tunnel and returns the time to the answer.
func open(addr string, port int) (time.Duration, error) {
	start := time.Now()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(start.Add(time.Minute))
	if _, err := fmt.Fprintf(c, "CONNECT bench.test:%d HTTP/1.1\r\nHost: bench.test\r\n\r\n", port); err != nil {
		return 0, err
	}
	answer := make([]byte, 512)
	n, err := c.Read(answer)
	if err != nil {
		return 0, err
	}
	took := time.Since(start)
	const ok = "HTTP/1.1 200"
	if n < len(ok) || string(answer[:len(ok)]) != ok {
		return 0, fmt.Errorf("answer %q", answer[:n])
	}
	return took, nil
}

// squid starts squid as a proxy of tunnels, without a cache and with one process.
func squid(ctx context.Context, program string) (addr string, stop func(), err error) {
	dir, err := os.MkdirTemp("", "bottle-bench-squid-")
	if err != nil {
		return "", nil, err
	}
	remove := func() { _ = os.RemoveAll(dir) }
	port, err := freePort()
	if err != nil {
		remove()
		return "", nil, err
	}
	addr = fmt.Sprintf("127.0.0.1:%d", port)
	config := fmt.Sprintf(`http_port %s
http_access allow all
cache deny all
cache_mem 8 MB
hosts_file %s/hosts
pid_filename none
access_log none
cache_log %s/cache.log
coredump_dir none
pinger_enable off
shutdown_lifetime 1 second
visible_hostname bench.test
`, addr, dir, dir)
	for name, text := range map[string]string{"squid.conf": config, "hosts": "127.0.0.1 bench.test\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			remove()
			return "", nil, err
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil { // squid gives up root
		remove()
		return "", nil, err
	}
	cmd := exec.CommandContext(ctx, program, "-N", "-f", filepath.Join(dir, "squid.conf"))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		remove()
		return "", nil, err
	}
	stop = func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
		remove()
	}
	if err := awaitListener(ctx, addr); err != nil {
		stop()
		return "", nil, err
	}
	return addr, stop, nil
}

// freePort returns a port of 127.0.0.1 on which nothing listens.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// awaitListener waits until a server accepts connections.
func awaitListener(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nothing listens on %s: %w", addr, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
