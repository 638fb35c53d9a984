package egress

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
)

// Main is the built-in proxy's process: it serves the configuration in
// configPath until ctx ends. The log goes to stdout; its startup line is
// written once clients can connect. Each value from reload (SIGHUP, say) reads
// the file again: a file that cannot be used is logged and told on stderr, and
// the old policy stays in force. A changed listen address or limit is taken at
// the next start.
func Main(ctx context.Context, configPath string, reload <-chan os.Signal, stdout, stderr io.Writer) error {
	cfg, err := LoadConfig(configPath)
	if err != nil {
		return err
	}
	s, err := New(cfg, stdout)
	if err != nil {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		return fmt.Errorf("listening for the proxy's clients: %w", err)
	}
	s.log.log(line{
		Event: EventStartup, Listen: l.Addr().String(), Mode: "strict",
		Allow: shownHosts(s.current.Load().policy),
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

func (s *Server) reloadFile(path string, stderr io.Writer) {
	cfg, err := LoadConfig(path)
	if err == nil {
		err = s.Reload(cfg)
	}
	if err == nil {
		return
	}
	s.log.log(line{Event: EventError, Reason: "the old policy stays in force: " + err.Error()})
	// A closed stderr must not end the proxy.
	_, _ = fmt.Fprintf(stderr, "bottle proxy: the old policy stays in force: %v\n", err)
}

func reasonOf(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
