// Command egress measures the built-in proxy, in a process of its own, beside a
// bare TCP relay in another: throughput of one stream and what of it the proxy
// keeps, many tunnels at once, a stream that is idle and bursts in turn, and the
// most memory that the proxy took. Everything stays on loopback.
//
// The exit code is 1 when the throughput is below --ratio of the relay's, a tunnel
// failed, or memory passed --memory.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/bot-bottle/bottle/egress"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench egress:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := pflag.NewFlagSet("egress", pflag.ContinueOnError)
	role := flags.String("role", "", "proxy or relay: what this process is, for itself")
	port := flags.Int("port", 0, "port of the server, for itself")
	size := flags.Int64("bytes", 2<<30, "bytes through one tunnel")
	rounds := flags.Int("rounds", 3, "runs of which the median counts")
	tunnels := flags.Int("tunnels", 500, "tunnels at once")
	bursts := flags.Int("bursts", 20, "bursts of the idle stream, a second's tenth apart; the idle timeout is half a second")
	memory := flags.Int64("memory", 64<<20, "most memory that the proxy may take, in bytes")
	least := flags.Float64("ratio", 0.9, "least part of the relay's throughput")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	switch *role {
	case "proxy":
		return proxy(ctx, *port)
	case "relay":
		return relay(ctx, *port)
	}
	return bench(ctx, *size, *rounds, *tunnels, *bursts, *memory, *least)
}

// local resolves every name to loopback.
type local struct{}

func (local) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
}

// proxy serves until ctx ends. Its address is its only output.
func proxy(ctx context.Context, port int) error {
	s, err := egress.New(egress.Config{
		Resolver: local{}, IdleTimeout: egress.Duration(500 * time.Millisecond),
		Entries: egress.Entries{SSH: []string{fmt.Sprintf("bench.test:%d", port)}, AllowPrivate: []string{"127.0.0.0/8"}},
	}, io.Discard)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return s.Serve(ctx, l)
}

// relay passes on what it gets, as simply as can be done.
func relay(ctx context.Context, port int) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	fmt.Println(l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			return nil //nolint:nilerr // its end
		}
		go func() {
			defer func() { _ = c.Close() }()
			up, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				return
			}
			defer func() { _ = up.Close() }()
			go func() { _, _ = io.Copy(c, up) }()
			_, _ = io.Copy(up, c)
			_ = up.(*net.TCPConn).CloseWrite()
			_, _ = io.Copy(io.Discard, up)
		}()
	}
}

// child runs this program in a role.
func child(ctx context.Context, role string, port int) (addr string, pid int, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return "", 0, nil, err
	}
	cmd := exec.CommandContext(ctx, self, "--role", role, "--port", strconv.Itoa(port))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", 0, nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", 0, nil, err
	}
	stop = func() { _ = cmd.Process.Signal(unix.SIGTERM); _ = cmd.Wait() }
	addr, err = bufio.NewReader(out).ReadString('\n')
	return strings.TrimSpace(addr), cmd.Process.Pid, stop, err
}

// serve counts what "S" streams send, and echoes what "E" streams do.
func serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			kind := make([]byte, 1)
			if _, err := io.ReadFull(c, kind); err != nil {
				return
			}
			if kind[0] == 'E' {
				_, _ = io.Copy(c, c)
				return
			}
			n, _ := io.Copy(io.Discard, c)
			_, _ = fmt.Fprintln(c, n)
		}()
	}
}

func bench(ctx context.Context, size int64, rounds, tunnels, bursts int, memory int64, least float64) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	go serve(l)
	port := l.Addr().(*net.TCPAddr).Port
	bareAddr, _, stopBare, err := child(ctx, "relay", port)
	if err != nil {
		return err
	}
	defer stopBare()
	proxyAddr, pid, stopProxy, err := child(ctx, "proxy", port)
	if err != nil {
		return err
	}
	defer stopProxy()
	var bare, through []float64
	for range rounds { // in turn, so that both have the same machine
		b, err := send(bareAddr, 0, size)
		if err != nil {
			return fmt.Errorf("relay: %w", err)
		}
		p, err := send(proxyAddr, port, size)
		if err != nil {
			return fmt.Errorf("proxy: %w", err)
		}
		bare, through = append(bare, b), append(through, p)
	}
	ratio := median(through) / median(bare)
	fmt.Printf("one tunnel, %d MB: relay %.0f MB/s, proxy %.0f MB/s, ratio %.2f\n", size/1e6, median(bare)/1e6, median(through)/1e6, ratio)
	if err := many(proxyAddr, port, tunnels); err != nil {
		return err
	}
	if err := idle(proxyAddr, port, bursts); err != nil {
		return err
	}
	most, err := peak(pid)
	if err != nil {
		return err
	}
	fmt.Printf("%d tunnels at once and a stream of %d bursts: all answered\nmost memory of the proxy: %.1f MB\n", tunnels, bursts, float64(most)/1e6)
	if most > memory || ratio < least {
		return errors.New("the bound is not met")
	}
	return nil
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// dial opens a stream to the server; port 0 is by the relay.
func dial(addr string, port int, kind string) (*net.TCPConn, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
	if port != 0 {
		const ok = "HTTP/1.1 200 Connection established\r\n\r\n"
		_, err = fmt.Fprintf(c, "CONNECT bench.test:%d HTTP/1.1\r\nHost: bench.test\r\n\r\n", port)
		answer := make([]byte, len(ok))
		if err == nil {
			_, err = io.ReadFull(c, answer)
		}
		if err == nil && string(answer) != ok {
			err = fmt.Errorf("the proxy answered %q", answer)
		}
	}
	if err == nil {
		_, err = io.WriteString(c, kind)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c.(*net.TCPConn), nil
}

// send gives bytes per second, until the server has them all.
func send(addr string, port int, size int64) (float64, error) {
	c, err := dial(addr, port, "S")
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	buf, began := make([]byte, 1<<20), time.Now()
	for left := size; left > 0; left -= int64(len(buf)) {
		if _, err := c.Write(buf[:min(left, int64(len(buf)))]); err != nil {
			return 0, err
		}
	}
	if err := c.CloseWrite(); err != nil {
		return 0, err
	}
	got, err := io.ReadAll(c)
	if err != nil || strings.TrimSpace(string(got)) != strconv.FormatInt(size, 10) {
		return 0, fmt.Errorf("the server got %q of %d bytes: %w", got, size, err)
	}
	return float64(size) / time.Since(began).Seconds(), nil
}

// many opens all tunnels before any of them is used.
func many(addr string, port, n int) error {
	var conns []*net.TCPConn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for i := range n {
		c, err := dial(addr, port, "E")
		if err != nil {
			return fmt.Errorf("tunnel %d: %w", i, err)
		}
		conns = append(conns, c)
		if i%50 == 0 { // the idle timeout is short here
			for _, c := range conns {
				if err := echo(c, 1); err != nil {
					return err
				}
			}
		}
	}
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i, c := range conns {
		wg.Go(func() { errs[i] = echo(c, 16<<10) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func echo(c *net.TCPConn, n int) error {
	data := make([]byte, n)
	if _, err := c.Write(data); err != nil {
		return err
	}
	_, err := io.ReadFull(c, data)
	return err
}

// idle is one stream that is silent for a while between bursts, as a session with
// a model is: for longer in all than the idle timeout, never at once.
func idle(addr string, port, bursts int) error {
	c, err := dial(addr, port, "E")
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	for i := range bursts {
		if err := echo(c, 64<<10); err != nil {
			return fmt.Errorf("burst %d: %w", i, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil
}

// peak is the most resident memory that a process has had, in bytes.
func peak(pid int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
			return kib << 10, nil
		}
	}
	return 0, errors.New("no VmHWM")
}
