package egress

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
)

// Main runs the built-in proxy, or the process in front of another one ([Front]), with the
// configuration in configPath until ctx ends. Listen replaces the address that it listens
// on, unless it is empty. The log goes to
// stdout; its startup line is written once clients can connect. Each value received from
// reload (for example SIGHUP) rereads the file. If that fails, the error is logged and
// printed to stderr, and the current policy stays in force. Changes of the listen address
// and of limits take effect at the next start.
func Main(ctx context.Context, configPath, listen string, reload <-chan os.Signal, stdout, stderr io.Writer) error {
	cfg, err := loadConfig(configPath, listen)
	if err != nil {
		return err
	}
	if cfg.Upstream != "" {
		f, err := NewFront(cfg, stdout)
		if err != nil {
			return err
		}
		return f.main(ctx, cfg.Listen, configPath, reload, stderr)
	}
	s, err := New(cfg, stdout)
	if err != nil {
		return err
	}
	s.listenOn = listen
	return s.main(ctx, cfg.Listen, configPath, reload, stderr)
}

func (s *Server) main(ctx context.Context, listen, configPath string, reload <-chan os.Signal, stderr io.Writer) error {
	debug.SetMemoryLimit(memoryLimit)
	l, err := Listen(ctx, listen)
	if err != nil {
		return fmt.Errorf("listen for proxy clients: %w", err)
	}
	s.log.log(line{
		Event: EventStartup, Listen: l.Addr().String(), Mode: "strict",
		Allow: loggedHosts(s.current.Load().policy),
	})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	for {
		select {
		case <-reload:
			s.reloadFile(configPath, stderr)
		case err := <-served:
			s.log.log(line{Event: EventShutdown, Reason: reasonOf(err)})
			return err
		}
	}
}

// Listen listens for a proxy's clients. They do not use MPTCP, which Go's listeners would
// accept: every connection would take longer to accept.
func Listen(ctx context.Context, address string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	return lc.Listen(ctx, "tcp", address)
}

func (s *Server) reloadFile(path string, stderr io.Writer) {
	cfg, err := loadConfig(path, s.listenOn)
	if err == nil {
		err = s.Reload(cfg)
	}
	if err == nil {
		return
	}
	s.log.log(line{Event: EventError, Reason: "policy not reloaded, the current one stays in force: " + err.Error()})
	// A closed stderr must not end the proxy.
	_, _ = fmt.Fprintf(stderr, "bottle proxy: policy not reloaded, the current one stays in force: %v\n", err)
}

func reasonOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
