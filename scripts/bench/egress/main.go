// Command egress measures the built-in proxy, in a process of its own, beside a
// bare TCP relay in another: throughput of one stream and what of it the proxy
// keeps, many tunnels at once, half an hour of a stream that is idle and bursts in
// turn, and the most memory that the proxy took. Everything stays on loopback.
//
// That half hour, and the proxy's timers with it, pass --scale times as fast. A
// tunnel that stays silent shows that the timers are at work: it is cut.
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
	parts := flags.Int("slices", 32, "slices of 64 MiB through one tunnel, and as many through the relay")
	tunnels := flags.Int("tunnels", 500, "tunnels at once")
	length := flags.Duration("stream", 30*time.Minute, "length of the stream of bursts and pauses")
	scale := flags.Int("scale", 600, "how many times as fast as the clock that and the proxy's timers pass")
	memory := flags.Int64("memory", 64<<20, "most memory that the proxy may take, in bytes")
	least := flags.Float64("ratio", 0.9, "least part of the relay's throughput")
	if err := flags.Parse(args); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	switch *role {
	case "proxy":
		return proxy(ctx, *port, *scale)
	case "relay":
		return relay(ctx, *port)
	}
	b := bench{slices: *parts, tunnels: *tunnels, length: *length, scale: *scale}
	return b.run(ctx, *memory, *least)
}

// The built-in proxy's own timers: a silent tunnel ends after the first, and any
// after the second.
const (
	idleTime   = time.Hour
	tunnelTime = 24 * time.Hour
)

// pauses of the stream, in turn: as of a session with a model, in which somebody
// also goes to lunch.
var pauses = []time.Duration{time.Second, 5 * time.Second, 30 * time.Second, 2 * time.Minute, time.Second, 10 * time.Minute}

// local resolves every name to loopback.
type local struct{}

func (local) LookupNetIP(context.Context, string, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
}

// proxy serves until ctx ends. Its address is its only output.
func proxy(ctx context.Context, port, scale int) error {
	s, err := egress.New(egress.Config{
		Resolver: local{}, IdleTimeout: egress.Duration(idleTime / time.Duration(scale)),
		TunnelTimeout: egress.Duration(tunnelTime / time.Duration(scale)),
		Entries:       egress.Entries{SSH: []string{fmt.Sprintf("bench.test:%d", port)}, AllowPrivate: []string{"127.0.0.0/8"}},
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
			return nil // its end
		}
		go func() {
			defer func() { _ = c.Close() }()
			up, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				return
			}
			defer func() { _ = up.Close() }()
			back := make(chan struct{})
			go func() {
				_, _ = io.Copy(c, up)
				close(back)
			}()
			_, _ = io.Copy(up, c)
			_ = up.(*net.TCPConn).CloseWrite()
			<-back
		}()
	}
}

// child runs this program in a role.
func child(ctx context.Context, role string, port, scale int) (addr string, pid int, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return "", 0, nil, err
	}
	cmd := exec.CommandContext(ctx, self, "--role", role, "--port", strconv.Itoa(port), "--scale", strconv.Itoa(scale))
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

// slice is how many bytes are sent before the other side is asked for.
const slice = 64 << 20

// serve tells of each slice that "S" streams send, and echoes what "E" streams do.
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
			for buf := make([]byte, 1<<20); ; {
				for left := slice; left > 0; {
					n, err := c.Read(buf[:min(left, len(buf))])
					if left -= n; err != nil {
						return
					}
				}
				if _, err := c.Write(kind); err != nil {
					return
				}
			}
		}()
	}
}

// bench is what is measured.
type bench struct {
	slices, tunnels int
	length          time.Duration // of the stream
	scale           int
}

func (b bench) run(ctx context.Context, memory int64, least float64) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	go serve(l)
	port := l.Addr().(*net.TCPAddr).Port
	bareAddr, _, stopBare, err := child(ctx, "relay", port, b.scale)
	if err != nil {
		return err
	}
	defer stopBare()
	proxyAddr, pid, stopProxy, err := child(ctx, "proxy", port, b.scale)
	if err != nil {
		return err
	}
	defer stopProxy()
	ratio, err := b.throughput(bareAddr, proxyAddr, port)
	if err != nil {
		return err
	}
	if err := b.many(proxyAddr, port); err != nil {
		return err
	}
	fmt.Printf("%d tunnels at once: all answered\n", b.tunnels)
	if err := b.stream(proxyAddr, port); err != nil {
		return err
	}
	most, err := peak(pid)
	if err != nil {
		return err
	}
	fmt.Printf("most memory of the proxy: %.1f MB\n", float64(most)/1e6)
	if most > memory || ratio < least {
		return errors.New("the bound is not met")
	}
	return nil
}

// throughput gives what the proxy keeps of the relay's: one tunnel and one stream
// through the relay take turns, a slice each, so that both have the same machine,
// and the median of the pairs counts.
func (b bench) throughput(bareAddr, proxyAddr string, port int) (float64, error) {
	relay, err := dial(bareAddr, 0, "S")
	if err != nil {
		return 0, fmt.Errorf("relay: %w", err)
	}
	defer func() { _ = relay.Close() }()
	tunnel, err := dial(proxyAddr, port, "S")
	if err != nil {
		return 0, fmt.Errorf("proxy: %w", err)
	}
	defer func() { _ = tunnel.Close() }()
	var bare, through, ratios []float64
	for i := range b.slices {
		var speeds [2]float64
		for j := range speeds {
			which := (i + j) % 2 // nobody is always the first
			if speeds[which], err = send([]*net.TCPConn{relay, tunnel}[which]); err != nil {
				return 0, fmt.Errorf("slice %d: %w", i, err)
			}
		}
		bare, through, ratios = append(bare, speeds[0]), append(through, speeds[1]), append(ratios, speeds[1]/speeds[0])
	}
	fmt.Printf("one tunnel, %d MB in slices: relay %.0f MB/s, proxy %.0f MB/s, ratio %.2f\n",
		b.slices*slice/1e6, median(bare)/1e6, median(through)/1e6, median(ratios))
	return median(ratios), nil
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

// send sends a slice and gives bytes per second, until the server has them all.
func send(c *net.TCPConn) (float64, error) {
	buf, began := make([]byte, 1<<20), time.Now()
	for left := slice; left > 0; {
		n, err := c.Write(buf[:min(left, len(buf))])
		if left -= n; err != nil {
			return 0, err
		}
	}
	if _, err := io.ReadFull(c, buf[:1]); err != nil {
		return 0, fmt.Errorf("the server does not tell that it has it: %w", err)
	}
	return slice / time.Since(began).Seconds(), nil
}

// many opens all tunnels before any of them is used.
func (b bench) many(addr string, port int) error {
	var conns []*net.TCPConn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for i := range b.tunnels {
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
	errs := make([]error, len(conns))
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

// stream is one that bursts and is silent in turn, beside one that is silent.
func (b bench) stream(addr string, port int) error {
	c, err := dial(addr, port, "E")
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	silent, err := dial(addr, port, "E")
	if err != nil {
		return err
	}
	defer func() { _ = silent.Close() }()
	bursts, bytes, passed, began := 0, 0, time.Duration(0), time.Now()
	for ; passed < b.length; bursts++ {
		size := 1 << (8 + bursts*5%13) // 256 bytes to 1 MiB
		if err := echo(c, size); err != nil {
			return fmt.Errorf("burst %d, %s into the stream: %w", bursts, passed, err)
		}
		bytes += 2 * size
		pause := pauses[bursts%len(pauses)]
		time.Sleep(pause / time.Duration(b.scale))
		passed += pause
	}
	fmt.Printf("a stream of %s in %.1f s: %d bursts, %.1f MB, pauses of up to %s; not cut\n",
		passed, time.Since(began).Seconds(), bursts, float64(bytes)/1e6, slices.Max(pauses))
	// The control.
	if _, err := io.ReadAll(silent); err != nil {
		return fmt.Errorf("a silent tunnel is not cut: %w", err)
	}
	if lasted := time.Since(began); lasted < idleTime/time.Duration(b.scale) {
		return fmt.Errorf("a silent tunnel was cut after %s", lasted*time.Duration(b.scale))
	}
	fmt.Printf("a silent tunnel beside it: cut after its %s\n", idleTime)
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
