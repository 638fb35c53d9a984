// Command egress measures the built-in proxy and compares it with a plain TCP
// relay, each in its own process: the throughput of one stream relative to the
// relay's, many concurrent tunnels, a long stream with bursts and pauses, and the
// proxy's peak memory. It also compares how fast tunnels are opened, one after the
// other, with squid's, if squid is installed. All traffic is on loopback.
//
// The long stream and the proxy's timers run --scale times faster than real time.
// As a control, an idle tunnel must be closed by these timers.
//
// The exit code is 1 if the throughput is below --ratio, a tunnel fails or the
// memory exceeds --memory.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench egress:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := pflag.NewFlagSet("egress", pflag.ContinueOnError)
	role := flags.String("role", "", "internal: run a server, proxy or relay")
	port := flags.Int("port", 0, "internal: port of the target server")
	parts := flags.Int("slices", 32, "slices of 64 MiB to send through the proxy, and through the relay")
	tunnels := flags.Int("tunnels", 500, "concurrent tunnels")
	connects := flags.Int("connects", 500, "tunnels to open in sequence, through each proxy")
	length := flags.Duration("stream", 30*time.Minute, "length of the stream with bursts and pauses")
	scale := flags.Int("scale", 600, "speed of the stream and the proxy's timers relative to real time")
	memory := flags.Int64("memory", 64<<20, "maximum memory of the proxy, in bytes")
	ratio := flags.Float64("ratio", 0.95, "minimum throughput relative to the relay's")
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
	b := bench{slices: *parts, tunnels: *tunnels, connects: *connects, length: *length, scale: *scale}
	return b.run(ctx, *memory, *ratio)
}
