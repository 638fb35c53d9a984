// Command pipelockshape imitates the interface of pipelock: its command line,
// health endpoint, log and reload. It replaces pipelock's image in tests of how
// bottle runs a proxy image and reports its failures. It says nothing about
// pipelock's verdicts.
//
// The entrypoint of the test image passes a mode as the first argument: "serve";
// "exit", which exits immediately; "unhealthy", which never listens; "silent",
// which does not log either. "other" and "unversioned" serve and log another version,
// or none.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v4"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	flags := pflag.NewFlagSet("pipelock", pflag.ContinueOnError)
	listen := flags.String("listen", "", "")
	config := flags.String("config", "", "")
	if len(args) < 2 || args[1] != "run" || flags.Parse(args[2:]) != nil || *listen == "" || *config == "" {
		say("error", "error", fmt.Sprintf("not pipelock's command line: %q", args))
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	switch args[0] {
	case "exit":
		say("error", "error", "config: unknown key")
		return 3
	case "silent":
		<-ctx.Done()
		return 0
	case "unhealthy":
		say("startup", "listen", *listen)
		<-ctx.Done()
		return 0
	}
	version, ok := map[string]string{"other": "3.7.1", "unversioned": ""}[args[0]]
	if !ok {
		version = "2.3.0"
	}
	if err := serve(ctx, *listen, *config, version); err != nil {
		say("error", "error", err.Error())
		return 1
	}
	return 0
}

// say writes one line of the log.
func say(event string, pairs ...string) {
	line := map[string]string{"event": event, "time": time.Now().UTC().Format(time.RFC3339)} // whole seconds
	for i := 0; i+1 < len(pairs); i += 2 {
		line[pairs[i]] = pairs[i+1]
	}
	_ = json.NewEncoder(os.Stdout).Encode(line) // strings only
}

// allowlist is the supported part of the configuration.
type allowlist struct {
	Mode  string   `yaml:"mode"`
	Hosts []string `yaml:"api_allowlist"`
	hash  [sha256.Size]byte
}

func load(path string) (*allowlist, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var a allowlist
	if err := yaml.Unmarshal(data, &a); err != nil {
		return nil, err
	}
	if a.Mode != "strict" || len(a.Hosts) == 0 {
		return nil, errors.New("config: mode strict needs an api_allowlist")
	}
	a.hash = sha256.Sum256(data)
	return &a, nil
}

// skipTime is how long a reload of the same file is ignored, without a line in
// the log: pipelock takes it for a repetition.
const skipTime = 2 * time.Second

func serve(ctx context.Context, listen, config, version string) error {
	var current atomic.Pointer[allowlist]
	a, err := load(config)
	if err != nil {
		return err
	}
	current.Store(a)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", listen)
	if err != nil {
		return err
	}
	srv := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handle(w, r, current.Load())
	})}
	go func() { _ = srv.Serve(l) }()
	say("startup", "listen", listen, "version", version)
	var reloaded time.Time
	for {
		select {
		case <-hup:
			a, err := load(config)
			switch {
			case err != nil:
				say("error", "method", "CONFIG_RELOAD", "resource", config, "error", err.Error())
			case a.hash == current.Load().hash && time.Since(reloaded) < skipTime:
			default:
				current.Store(a)
				reloaded = time.Now()
				say("config_reload", "status", "success")
			}
		case <-ctx.Done():
			say("shutdown")
			return srv.Close()
		}
	}
}

func handle(w http.ResponseWriter, r *http.Request, a *allowlist) {
	host, _, err := net.SplitHostPort(r.Host)
	switch {
	case r.URL.Path == "/health":
		_, _ = io.WriteString(w, `{"status":"healthy"}`)
	case r.Method != http.MethodConnect || err != nil:
		http.Error(w, "only CONNECT", http.StatusBadRequest)
	case !slices.Contains(a.Hosts, strings.ToLower(host)):
		say("blocked", "target", r.Host, "scanner", "allowlist", "reason", "domain not in allowlist: "+host)
		http.Error(w, "CONNECT blocked: domain not in allowlist: "+host, http.StatusForbidden)
	default:
		tunnel(w, r)
	}
}

func tunnel(w http.ResponseWriter, r *http.Request) {
	up, err := (&net.Dialer{Timeout: 3 * time.Second}).DialContext(r.Context(), "tcp", r.Host)
	if err != nil {
		say("error", "target", r.Host, "error", err.Error())
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer func() { _ = up.Close() }()
	client, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = client.Close() }()
	say("tunnel_open", "target", r.Host)
	_, _ = io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n")
	go func() {
		_, _ = io.Copy(up, client)
		_ = up.Close()
	}()
	n, _ := io.Copy(client, up)
	say("tunnel_close", "target", r.Host, "total_bytes", fmt.Sprint(n))
}
