package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bot-bottle/bottle/scripts/bench/results"
)

// pauses are the pauses of the stream, as in a session with a model and a user who
// is sometimes away.
var pauses = []time.Duration{time.Second, 5 * time.Second, 30 * time.Second, 2 * time.Minute, time.Second, 10 * time.Minute}

// bench holds the sizes of the measurement.
type bench struct {
	slices, tunnels int
	connects        int           // tunnels to open in sequence
	length          time.Duration // of the stream
	scale           int
}

// goalConnect is the highest acceptable ratio of the time to open a tunnel to squid's.
const goalConnect = 1.0

func (b bench) run(ctx context.Context, maxMemory int64, minRatio float64) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	go serve(l)
	port := l.Addr().(*net.TCPAddr).Port
	relayAddr, _, stopRelay, err := child(ctx, "relay", port, b.scale)
	if err != nil {
		return err
	}
	defer stopRelay()
	proxyAddr, pid, stopProxy, err := child(ctx, "proxy", port, b.scale)
	if err != nil {
		return err
	}
	defer stopProxy()
	result := results.Result{Benchmark: "egress"}
	ratio, figures, err := b.throughput(relayAddr, proxyAddr, port)
	if err != nil {
		return err
	}
	result.Figures = figures
	result.Ratios = []results.Ratio{{Name: "tunnel throughput / relay", Value: ratio, Goal: minRatio, More: true}}
	if err := b.opening(ctx, proxyAddr, port, &result); err != nil {
		return err
	}
	if err := b.concurrent(proxyAddr, port); err != nil {
		return err
	}
	fmt.Printf("%d concurrent tunnels: all work\n", b.tunnels)
	if err := b.stream(proxyAddr, port); err != nil {
		return err
	}
	memory, err := peakMemory(pid)
	if err != nil {
		return err
	}
	fmt.Printf("peak memory of the proxy: %.1f MB\n", float64(memory)/1e6)
	if memory > maxMemory {
		return fmt.Errorf("peak memory exceeds %.1f MB", float64(maxMemory)/1e6)
	}
	if ratio < minRatio {
		return fmt.Errorf("throughput ratio is below %.2f", minRatio)
	}
	result.Figures = append(result.Figures, results.FigureOf("peak memory of the proxy", "MB", []float64{float64(memory) / 1e6}))
	return results.Record(result)
}

// throughput returns the proxy's throughput relative to the relay's: the median of
// the ratios of slices. A tunnel and a stream through the relay send slices in
// turn, so that both run under the same conditions.
func (b bench) throughput(relayAddr, proxyAddr string, port int) (ratio float64, figures []results.Figure, err error) {
	relay, err := dial(relayAddr, 0, "S")
	if err != nil {
		return 0, nil, fmt.Errorf("relay: %w", err)
	}
	defer func() { _ = relay.Close() }()
	tunnel, err := dial(proxyAddr, port, "S")
	if err != nil {
		return 0, nil, fmt.Errorf("proxy: %w", err)
	}
	defer func() { _ = tunnel.Close() }()
	var relayed, proxied, ratios []float64
	for i := range b.slices {
		var speeds [2]float64
		for j := range speeds {
			which := (i + j) % 2 // the first one alternates
			if speeds[which], err = send([]*net.TCPConn{relay, tunnel}[which]); err != nil {
				return 0, nil, fmt.Errorf("slice %d: %w", i, err)
			}
		}
		relayed, proxied, ratios = append(relayed, speeds[0]/1e6), append(proxied, speeds[1]/1e6), append(ratios, speeds[1]/speeds[0])
	}
	fmt.Printf("one tunnel, %d MB in slices: relay %.0f MB/s, proxy %.0f MB/s, ratio %.2f\n",
		b.slices*slice/1e6, median(relayed), median(proxied), median(ratios))
	return median(ratios), []results.Figure{results.FigureOf("relay", "MB/s", relayed), results.FigureOf("proxy", "MB/s", proxied)}, nil
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

// dial opens a stream to the server, through the proxy or, if port is 0, through
// the relay.
func dial(addr string, port int, kind string) (*net.TCPConn, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
	if port != 0 {
		const ok = "HTTP/1.1 200 Connection established\r\n\r\n"
		_, err = fmt.Fprintf(c, "CONNECT bench.test:%d HTTP/1.1\r\nHost: bench.test\r\n\r\n", port)
		response := make([]byte, len(ok))
		if err == nil {
			_, err = io.ReadFull(c, response)
		}
		if err == nil && string(response) != ok {
			err = fmt.Errorf("unexpected response of the proxy: %q", response)
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

// send sends a slice, waits for the acknowledgement and returns bytes per second.
func send(c *net.TCPConn) (float64, error) {
	buf, start := make([]byte, 1<<20), time.Now()
	for left := slice; left > 0; {
		n, err := c.Write(buf[:min(left, len(buf))])
		if left -= n; err != nil {
			return 0, err
		}
	}
	if _, err := io.ReadFull(c, buf[:1]); err != nil {
		return 0, fmt.Errorf("wait for the acknowledgement: %w", err)
	}
	return slice / time.Since(start).Seconds(), nil
}

// concurrent opens all tunnels before it uses any of them.
func (b bench) concurrent(addr string, port int) error {
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
		if i%50 == 0 { // the scaled idle timeout is short
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

// stream sends bursts with pauses through a tunnel, which must stay open, next to
// an idle tunnel, which must be closed.
func (b bench) stream(addr string, port int) error {
	c, err := dial(addr, port, "E")
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	idle, err := dial(addr, port, "E")
	if err != nil {
		return err
	}
	defer func() { _ = idle.Close() }()
	bursts, bytes, elapsed, start := 0, 0, time.Duration(0), time.Now()
	for ; elapsed < b.length; bursts++ {
		size := 1 << (8 + bursts*5%13) // 256 bytes to 1 MiB
		if err := echo(c, size); err != nil {
			return fmt.Errorf("burst %d after %s: %w", bursts, elapsed, err)
		}
		bytes += 2 * size
		pause := pauses[bursts%len(pauses)]
		time.Sleep(pause / time.Duration(b.scale))
		elapsed += pause
	}
	fmt.Printf("stream of %s in %.1f s: %d bursts, %.1f MB, pauses of up to %s: stayed open\n",
		elapsed, time.Since(start).Seconds(), bursts, float64(bytes)/1e6, slices.Max(pauses))
	// The control.
	if _, err := io.ReadAll(idle); err != nil {
		return fmt.Errorf("idle tunnel was not closed: %w", err)
	}
	if lasted := time.Since(start); lasted < idleTimeout/time.Duration(b.scale) {
		return fmt.Errorf("idle tunnel was closed after only %s", lasted*time.Duration(b.scale))
	}
	fmt.Printf("idle tunnel: closed after its timeout of %s\n", idleTimeout)
	return nil
}

// peakMemory returns a process's peak resident memory in bytes.
func peakMemory(pid int) (int64, error) {
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
	return 0, fmt.Errorf("no VmHWM in /proc/%d/status", pid)
}
